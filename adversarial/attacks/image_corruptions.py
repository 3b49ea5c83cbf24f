"""The image corruptions of ImageNet-C but the weather: noise, blur, light, colour, files; images (B, C, H, W)."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.lifting import image
from adversarial.streams import Streams
from adversarial.threat import ThreatError

SIDE = 224  # pixels of the images that the published lengths are for


def rows_of(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def pixels(x: Tensor, length: float) -> float:
    """A length for images of 224 pixels in pixels of these."""
    return length * min(x.shape[-2:]) / SIDE


def places(x: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the column of every pixel, (H, W) each."""
    lines = [torch.arange(side, dtype=x.dtype, device=x.device) for side in x.shape[2:]]
    down, right = torch.meshgrid(*lines, indexing="ij")
    return down, right


def read(x: Tensor, down: Tensor, right: Tensor, padding: str) -> Tensor:
    """Images read between their pixels, in these rows and columns (B, H, W)."""
    height, width = x.shape[2:]
    grid = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=3)
    return F.grid_sample(x, grid.to(x.dtype), padding_mode=padding, align_corners=False)


def gaussian(x: Tensor, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """A Gaussian filter over the last two axes."""
    from scipy.ndimage import gaussian_filter

    widths = (0.0,) * (x.ndim - 2) + (sigma, sigma)
    return torch.from_numpy(gaussian_filter(x.detach().cpu().numpy(), widths, mode=mode, truncate=truncate)).to(x)


# ---- noise


def gaussian_noise(x: Tensor, level: int, streams: Streams) -> Tensor:
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * streams.normal(rows_of(x), *x.shape[1:])


def shot_noise(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Poisson counts of so many photons at full brightness."""
    from scipy.stats import poisson

    photons, uniform = (60, 25, 12, 5, 3)[level], streams.uniform(rows_of(x), *x.shape[1:])
    counts = poisson.ppf(uniform.cpu().double().numpy(), (x.detach().cpu().double() * photons).numpy())
    return torch.from_numpy(counts).to(x).clamp_min(0) / photons


def impulse_noise(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Salt and pepper."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    uniform = streams.uniform(rows_of(x), *x.shape[1:])
    return torch.where(uniform < amount / 2, 0.0, torch.where(uniform > 1 - amount / 2, 1.0, x))


# ---- blur


def filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Each image (B, C, H, W) filtered by its own kernel (B, n, n) of odd size; the border is mirrored, or repeats."""
    reach = kernels.shape[-1] // 2
    mode = "reflect" if reach < min(x.shape[-2:]) else "replicate"
    padded = F.pad(x, (reach,) * 4, mode=mode)
    count, channels = x.shape[:2]
    weight = kernels.to(x.dtype)[:, None].repeat_interleave(channels, 0)
    grouped = F.conv2d(padded.reshape(1, count * channels, *padded.shape[2:]), weight, groups=count * channels)
    return grouped.view_as(x)


def grid_of(reach: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets down and to the right, (n, n)."""
    line = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    down, right = torch.meshgrid(line, line, indexing="ij")
    return down, right


def defocus_blur(x: Tensor, level: int, streams: Streams) -> Tensor:
    """A disk, its points shared between the pixels that they lie among: also a disk smaller than a pixel blurs."""
    radius = pixels(x, (3, 4, 6, 8, 10)[level])
    line = torch.linspace(-radius, radius, 41, dtype=x.dtype, device=x.device)
    points = torch.cartesian_prod(line, line)
    points = points[points.square().sum(1) <= radius**2]
    down, _ = grid_of(math.ceil(radius), x)
    tents = (1 - (points[:, :, None] - down[:, 0]).abs()).clamp(0)  # (points, 2, n)
    disk = tents[:, 0].T @ tents[:, 1] / len(points)
    return filtered(x, disk.expand(len(x), -1, -1))


def glass_blur(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Pixels read from random places nearby, between two Gaussian blurs."""
    sigma, reach, turns = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    x, (down, right) = gaussian(x, pixels(x, sigma)), places(x)
    for _ in range(turns):
        moves = pixels(x, reach) * (2 * streams.uniform(rows_of(x), 2, *x.shape[2:]).to(x.dtype) - 1)
        x = read(x, down + moves[:, 0], right + moves[:, 1], "border")
    return gaussian(x, pixels(x, sigma))


def motion_blur(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Streaks whose angle within ±45° is drawn for each image."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return streaked(x, radius, sigma, (streams.uniform(rows_of(x)) - 0.5).to(x.dtype) * (math.pi / 2))


def streaked(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """Half of a Gaussian along a line at each image's own angle (B,); lengths for images of 224 pixels."""
    length, spread, angle = pixels(x, 2 * radius), max(pixels(x, sigma), 0.3), angle.view(-1, 1, 1)
    down, right = grid_of(max(math.ceil(length), 1), x)
    along, across = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
    line = (1 - across.abs()).clamp(0) * torch.exp(-(along / spread).square() / 2)
    line = line * ((along >= -0.5) & (along <= length))
    return filtered(x, line / line.sum((1, 2), keepdim=True))


def zoom_blur(x: Tensor, level: int, streams: Streams) -> Tensor:
    """The mean of the image and of enlargements, the first of which is the image once more."""
    count, step = ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))[level]
    return sum((zoomed(x, 1 + step * one) for one in range(count)), x) / (count + 1)


def zoomed(x: Tensor, factor: float) -> Tensor:
    matrix = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=x.dtype, device=x.device)
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


# ---- light, colour, files


def brightness(x: Tensor, level: int, streams: Streams) -> Tensor:
    """The value of HSV raised: all channels are scaled alike."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clamp(max=1)
    return torch.where(value > 0, x * raised / torch.where(value > 0, value, 1), raised)


def contrast(x: Tensor, level: int, streams: Streams) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level]


def saturate(x: Tensor, level: int, streams: Streams) -> Tensor:
    """The saturation of HSV changed: channels move away from the largest one or towards it. Grey counts as red."""
    factor, shift = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[level]
    value = image(x, 3).amax(1, keepdim=True)
    away = value - x
    most = away.amax(1, keepdim=True)
    saturation = most / torch.where(value > 0, value, 1)
    red = torch.tensor([0, 1, 1], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    away = torch.where(most > 0, away / torch.where(most > 0, most, 1), red)
    return value * (1 - (saturation * factor + shift).clamp(0, 1) * away)


def pixelate(x: Tensor, level: int, streams: Streams) -> Tensor:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    size = [max(int(side * share), 1) for side in x.shape[2:]]
    return F.interpolate(F.interpolate(x, size=size, mode="area"), size=x.shape[2:], mode="nearest")


def jpeg(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Written to JPEG and read back, by Pillow; one or three channels."""
    import numpy as np
    from PIL import Image

    if x.shape[1] not in (1, 3):
        raise ThreatError(f"expected images of 1 or 3 channels for jpeg, got {x.shape[1]}")
    quality, found = (25, 18, 15, 10, 7)[level], []
    whole = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for one in whole:  # a file each: Pillow has no batches
        written = io.BytesIO()
        Image.fromarray(one[..., 0] if one.shape[2] == 1 else one).save(written, "JPEG", quality=quality)
        read = np.asarray(Image.open(written), dtype=np.float32) / 255
        found.append(torch.from_numpy(read).view(*x.shape[2:], -1).permute(2, 0, 1))
    return torch.stack(found).to(x)


def elastic(x: Tensor, level: int, streams: Streams) -> Tensor:
    """Smooth random shifts of every pixel, after the affine map that moves three corners of a square by random steps."""
    size, smooth, corner = (
        (488.0, 170.8, 24.4), (488.0, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88),
    )[level]  # fmt: skip
    side = min(x.shape[2:])
    noise = 2 * streams.uniform(rows_of(x), 2, *x.shape[2:]).to(x.dtype) - 1
    # averages over so many times fewer pixels are so many times larger
    shift = gaussian(noise, pixels(x, smooth), mode="reflect", truncate=3.0) * pixels(x, size) * side / SIDE
    moves = pixels(x, corner) * (2 * streams.uniform(rows_of(x), 3, 2).to(x.dtype) - 1)
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=x.dtype, device=x.device) * (side // 3)
    corners = square + torch.tensor([each // 2 for each in x.shape[2:]], dtype=x.dtype, device=x.device)
    back = torch.linalg.solve(F.pad(corners + moves, (0, 1), value=1.0), corners.expand(len(x), 3, 2))
    here = torch.stack([*(line + each for line, each in zip(places(x), shift.unbind(1), strict=True))], dim=3)
    down, right = (F.pad(here, (0, 1), value=1.0).flatten(1, 2) @ back).view_as(here).unbind(3)
    return read(x, down, right, "reflection")
