r"""Programs for image sources: universal prompts around, over and in the place of pixels.

Legend: B batch, C channels, (H, W) the source's image, (h, w) the target's. Pixels lie in [0, 1]; a program may leave that
range unless it says otherwise, as the published ones do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.programs.base import first_binding
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record
from reprogram.sources.images import as_image, resized

Region = Literal["full", "strip", "patch"]


class ImageProgram(nn.Module):
    """Shared by the programs below: target images are read at the size `inner` says and stacked."""

    def bind(self, source: Source) -> None:
        if source.takes != "image":
            raise ValueError(
                f"expected a source that takes images, got '{source.name}' ({source.takes}); use efficientnet-lite0"
            )
        self.channels, self.size = source.codec.channels, tuple(source.codec.size)
        if first_binding(self, source):
            self.start(source)

    def start(self, source: Source) -> None:
        """Create the parameters for this source."""

    def inner(self) -> tuple[int, int]:
        """The size at which target images are read."""
        return self.size

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        images = (as_image(value, row, self.channels) for row, value in enumerate(inputs))
        return [{"image": resized(image, self.inner())} for image in images]

    def collate(self, records: Sequence[Record]) -> Batch:
        return {key: torch.stack([record[key] for record in records]) for key in records[0]}

    def length(self, record: Record) -> int:
        return 1


def border(size: tuple[int, int], inner: tuple[int, int]) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Mask (H, W), 1 where a centred image of size `inner` is not, and the padding (left, right, top, bottom) around it."""
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    mask = torch.ones(size)
    mask[top : top + inner[0], left : left + inner[1]] = 0
    return mask, (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top)


@configurable
class Pad(ImageProgram):
    r"""The image in the centre of a learned frame: $x' = \text{pad}(x) + \sigma(W) \odot M$.

    Elsayed et al. write $\tanh(W)$ for pixels in [-1, 1], which is $\sigma(2W)$ for pixels in [0, 1]. W starts at 0, a
    grey frame. `image_size` is the side of the target image inside, by default half of the source's.

    Shapes: image (B, C, h, w) -> pixels (B, C, H, W). Trainable: the C (HW - hw) numbers of the frame.
    Reference: Elsayed, Goodfellow & Sohl-Dickstein, "Adversarial Reprogramming of Neural Networks", ICLR 2019,
    arXiv:1806.11146; the same frame in Chen et al., "Understanding and Improving Visual Prompting: A Label-Mapping
    Perspective", CVPR 2023, arXiv:2211.11635.
    """

    def __init__(self, *, image_size: int | None = None):
        super().__init__()
        self.image_size = image_size

    def inner(self) -> tuple[int, int]:
        if self.image_size is None:
            return self.size[0] // 2, self.size[1] // 2
        if not 0 < self.image_size <= min(self.size):
            raise DataError(f"expected image_size from 1 to {min(self.size)}, got {self.image_size}")
        return self.image_size, self.image_size

    def start(self, source: Source) -> None:
        mask, _ = border(self.size, self.inner())
        self.frame = nn.Parameter(torch.zeros(self.channels, int(mask.sum())))

    def forward(self, batch: Batch) -> Batch:
        mask, padding = border(self.size, self.inner())
        frame = self.frame.new_zeros(self.channels, *self.size)
        frame[:, mask.bool()] = (2 * self.frame).sigmoid()
        return {"pixels": F.pad(batch["image"], padding) + frame}


@configurable
class Additive(ImageProgram):
    r"""One change added to every image: $x' = \text{resize}(x) + \delta \odot M$.

    `region` is where M is 1: the whole image ("full"), a strip `width` pixels wide along its edges ("strip"), or a
    square of side `width` in its upper left corner ("patch").

    Shapes: image (B, C, H, W) -> pixels (B, C, H, W). Trainable: C numbers per pixel of M.
    Reference: Bahng et al., "Exploring Visual Prompts for Adapting Large-Scale Models", 2022, arXiv:2203.17274.
    Differs from the paper: δ starts at 0, so the start is the frozen source; the paper draws it from a normal law.
    """

    def __init__(self, *, region: Region = "full", width: int = 30):
        super().__init__()
        if region not in ("full", "strip", "patch"):
            raise DataError(f"expected region to be full, strip or patch, got {region!r}")
        self.region, self.width = region, width

    def mask(self) -> Tensor:
        """(H, W), True where δ acts."""
        height, width = self.size
        if self.region == "full":
            return torch.ones(self.size, dtype=torch.bool)
        if not 0 < self.width <= min(height, width) // (2 if self.region == "strip" else 1):
            raise DataError(f"expected width of at least 1 that fits into {height}×{width} pixels, got {self.width}")
        if self.region == "strip":
            return border(self.size, (height - 2 * self.width, width - 2 * self.width))[0].bool()
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[: self.width, : self.width] = True
        return mask

    def start(self, source: Source) -> None:
        self.delta = nn.Parameter(torch.zeros(self.channels, int(self.mask().sum())))

    def forward(self, batch: Batch) -> Batch:
        delta = self.delta.new_zeros(self.channels, *self.size)
        delta[:, self.mask()] = self.delta
        return {"pixels": batch["image"] + delta}


@configurable
class Resize(ImageProgram):
    r"""A learned size and a learned frame: $x' = m_s \odot \text{scale}_s(x) + (1 - m_s) \odot \sigma(W)$.

    s is the side of the image as a share of the source's, one trained number, kept in [0.1, 1]; $m_s$ is 1 where the
    scaled image lies, with soft edges, so that gradients reach s.

    Shapes: image (B, C, H, W) -> pixels (B, C, H, W). Trainable: C H W + 1.
    Reference: Tsao et al., "AutoVP: An Automated Visual Prompting Framework and Benchmark", ICLR 2024,
    arXiv:2310.08381. Differs from the paper: bilinear sampling with a soft mask instead of a rounded size, so s moves with
    every step; images larger than the source are not cropped.
    """

    def __init__(self, *, scale: float = 0.6):
        super().__init__()
        if not 0.1 <= scale <= 1:
            raise DataError(f"expected scale from 0.1 to 1, got {scale}")
        self.start_scale = scale

    def start(self, source: Source) -> None:
        self.frame = nn.Parameter(torch.zeros(self.channels, *self.size))
        self.scale = nn.Parameter(torch.tensor(float(self.start_scale)))

    def forward(self, batch: Batch) -> Batch:
        image = batch["image"]
        zero = torch.zeros_like(self.scale)
        theta = torch.stack([1 / self.scale, zero, zero, zero, 1 / self.scale, zero]).view(1, 2, 3)
        grid = F.affine_grid(theta, [1, 1, *self.size], align_corners=False)
        inside = F.grid_sample(image.new_ones(1, 1, *self.size), grid, align_corners=False)
        scaled = F.grid_sample(image, grid.expand(len(image), -1, -1, -1), align_corners=False)
        return {"pixels": scaled + (1 - inside) * (2 * self.frame).sigmoid()}

    @torch.no_grad()
    def project(self) -> None:
        self.scale.clamp_(0.1, 1)


@configurable
class SampleMask(ImageProgram):
    r"""A shared change, weighed pixel by pixel by a small network that looks at each image: $x' = r(x) + \delta \odot f(r(x))$.

    f: five 3×3 convolutions (8, 16, 32, 64, C channels) with batch normalisation, ReLU, and three 2×2 poolings, its output
    repeated over 8×8 patches. δ starts at 0.

    Shapes: image (B, C, H, W) -> pixels (B, C, H, W). Trainable: C H W and the mask network (26,499 for C = 3).
    Reference: Cai et al., "Sample-specific Masks for Visual Reprogramming-based Prompting", ICML 2024, arXiv:2406.03150.
    Differs from the paper: the batch normalisation is replaced by one over each image (group normalisation with one
    group), so that the prediction for a sample never depends on its batch mates and training equals evaluation.
    """

    WIDTHS = (8, 16, 32, 64)

    def __init__(self, *, seed: int = 0):
        super().__init__()
        self.seed = seed

    def start(self, source: Source) -> None:
        self.delta = nn.Parameter(torch.zeros(self.channels, *self.size))
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.seed)
            self.masks = mask_network(self.channels, self.WIDTHS)

    def forward(self, batch: Batch) -> Batch:
        image = batch["image"]
        mask = F.interpolate(self.masks(image), image.shape[-2:], mode="nearest")
        return {"pixels": image + self.delta * mask}


def mask_network(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """(B, C, H, W) -> (B, C, H/8, W/8)."""
    layers: list[nn.Module] = []
    before = channels
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i < 3 else []
        before = width
    return nn.Sequential(*layers, nn.Conv2d(before, channels, 3, padding=1))


@configurable
class Coordinator(ImageProgram):
    r"""A change made for each image by a decoder on frozen features: $x' = \text{clip}(r(x) + \epsilon\, h_\phi(z(x), t))$.

    z are the features of a frozen encoder, a second source, computed once per image; t is a learned trigger vector that
    fills z up to a 7×7 grid, from which h grows the change by transposed convolutions. Only φ and t are trained, about
    ten thousand numbers: few enough for queries alone.

    Shapes: image (B, C, H, W), code (B, Z) -> pixels (B, C, H, W) in [0, 1].
    Reference: Oh et al., "BlackVIP: Black-Box Visual Prompting for Robust Transfer Learning", CVPR 2023,
    arXiv:2303.14773. Differs from the paper: the encoder is any image source of ours (their ViT-MAE is not in a wheel).
    """

    def __init__(
        self, *, encoder: str = "efficientnet-lite0", eps: float = 0.3, width: int = 16, seed: int = 0
    ):  # fmt: skip
        super().__init__()
        self.encoder_name, self.eps, self.width, self.seed = encoder, eps, width, seed

    def bind(self, source: Source) -> None:
        from reprogram.sources import load

        object.__setattr__(self, "encoder", load(self.encoder_name, size=source.codec.size, returns="features"))
        super().bind(source)

    def start(self, source: Source) -> None:
        planes = self.encoder.width // 49 + 1
        self.trigger = nn.Parameter(torch.zeros(49 * planes - self.encoder.width))
        doublings = max(1, round(math.log2(min(self.size) / 7)) - 1)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.seed)
            self.decoder = decoder(planes, self.width, self.channels, doublings)

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        from reprogram.features import source_features
        from reprogram.programs.base import Identity

        look = Identity()
        look.bind(self.encoder)
        codes = source_features(look, self.encoder, look.encode(inputs))
        return [record | {"code": code} for record, code in zip(super().encode(inputs), codes.cpu(), strict=True)]

    def forward(self, batch: Batch) -> Batch:
        image, code = batch["image"], batch["code"]
        change = self.decoder(torch.cat([code, self.trigger.expand(len(code), -1)], dim=1))
        return {"pixels": (image + self.eps * resized(change, self.size)).clamp(0, 1)}


def decoder(planes: int, width: int, channels: int, doublings: int) -> nn.Sequential:
    """(B, 49 planes) -> (B, channels, 7·2^doublings, 7·2^doublings) in [-1, 1]."""
    layers: list[nn.Module] = [nn.Unflatten(1, (planes, 7, 7))]
    for i in range(doublings):
        layers += [nn.ConvTranspose2d(planes if i == 0 else width, width, 2, stride=2), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())


@configurable
class Affine(ImageProgram):
    r"""A learned affine move, colour change and additive prompt: $x' = g \odot A_\theta(r(x)) + b + \delta$.

    θ (2×3) starts as the identity, the gains g at 1, the offsets b and δ at 0: the start is the frozen source.

    Shapes: image (B, C, H, W) -> pixels (B, C, H, W). Trainable: 6 + 2 C + C H W.
    Reference: Enomoto, "Enhancing Visual Prompting through Expanded Transformation Space and Overfitting Mitigation"
    (ACAVP), 2025, arXiv:2510.07823. Differs from the paper: its data augmentation is not part of the program.
    """

    def start(self, source: Source) -> None:
        self.theta = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        self.gain = nn.Parameter(torch.ones(self.channels))
        self.offset = nn.Parameter(torch.zeros(self.channels))
        self.delta = nn.Parameter(torch.zeros(self.channels, *self.size))

    def forward(self, batch: Batch) -> Batch:
        image = batch["image"]
        grid = F.affine_grid(self.theta[None], [1, 1, *self.size], align_corners=False)
        moved = F.grid_sample(image, grid.expand(len(image), -1, -1, -1), padding_mode="border", align_corners=False)
        return {"pixels": self.gain[:, None, None] * moved + self.offset[:, None, None] + self.delta}
