"""Classes of noisy copies of inputs, block of draws after block: the sampling that every smoothing shares.

All inputs see the same draws. For each of them they are independent, which is all that its own certificate leans on; a
sample's numbers depend on the seed and on nothing else in its batch; and one block of noise serves all inputs, which for
small models saves a good part of the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from certify.errors import CertifyError
from certify.noise import NOISES

BLOCK = 64  # draws at a time, so that looks fall on their ends
SECONDS = 20.0  # between two checkpoints


class Sampler:
    """Draws noise for inputs x (B, …) and asks the model, at most `batch_size` noisy inputs at a time."""

    def __init__(self, model: nn.Module, x: Tensor, noise: str, sigma: float, seed: int, batch_size: int):
        self.model, self.x, self.noise, self.sigma, self.batch_size = model, x, NOISES[noise], sigma, batch_size
        self.generator = torch.Generator(x.device).manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """The next `count` draws, of a block of their own, scaled by sigma (count, …)."""
        block = self.x.new_empty(BLOCK, *self.x.shape[1:])  # always whole: numbers depend on how many are drawn at once
        return self.noise.draw(block, self.generator)[:count].mul_(self.sigma)

    def logits(self, rows: Tensor, noise: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Logits (inputs, draws, classes) of these rows under this noise, in pieces with their places."""
        inputs = max(1, self.batch_size // len(noise))
        draws = min(len(noise), self.batch_size)
        for first in range(0, len(rows), inputs):
            some = rows[first : first + inputs]
            clean = self.x[some, None]
            for start in range(0, len(noise), draws):
                shaken = (clean + noise[None, start : start + draws]).flatten(0, 1)
                found = self.model(shaken)
                if found.ndim != 2 or len(found) != len(shaken):
                    raise CertifyError(
                        f"expected logits (B, classes) for inputs {tuple(shaken.shape)}, got {tuple(found.shape)}"
                    )
                place = slice(first, first + len(some)), slice(start, start + draws)
                yield *place, found.unflatten(0, (len(some), -1))

    @torch.no_grad()
    def classes(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Classes (rows, count) under the next draws, -1 where a logit is not finite, and the draws (count, …)."""
        noise = self.draw(count)
        found = torch.empty(len(rows), count, dtype=torch.long, device=rows.device)
        for some, draws, logits in self.logits(rows, noise):
            found[some, draws] = torch.where(logits.isfinite().all(2), logits.argmax(2), -1)
        return found, noise

    def counts(self, rows: Tensor, n: int, classes: int) -> Tensor:
        """How often each class came up in the next n draws (rows, classes)."""
        found = torch.zeros(len(rows), classes + 1, dtype=torch.long, device=rows.device)
        for start in range(0, n, BLOCK):
            named = self.classes(rows, min(BLOCK, n - start))[0]
            found.scatter_add_(1, named + 1, torch.ones_like(named))
        return found[:, 1:]


class Keeper:
    """Tensors of a run that may be stopped, in one file of a folder that is replaced whole; without a folder, nowhere."""

    def __init__(self, folder: Path | None, mark: str):
        self.path, self.mark, self.written = folder and folder / "smoothing.safetensors", mark, time.monotonic()

    def read(self) -> dict[str, Tensor] | None:
        from safetensors import safe_open

        if self.path is None or not self.path.is_file():
            return None
        with safe_open(self.path, "pt") as file:
            if (file.metadata() or {}).get("mark") != self.mark:
                raise CertifyError(
                    f"expected the run that {self.path.parent} was begun with, got other inputs, labels, weights or "
                    "options; choose another folder"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping

    def write(self, state: dict[str, Tensor], *, now: bool = False) -> None:
        from safetensors.torch import save_file

        from reprogram.files import atomic_file

        if self.path is None or not (now or time.monotonic() - self.written > SECONDS):
            return
        with atomic_file(self.path) as path:
            save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"mark": self.mark})
        self.written = time.monotonic()
