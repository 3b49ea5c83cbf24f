"""Classes of noisy copies of inputs, block of draws after block: the sampling that every smoothing shares.

Every input has draws of its own: those of its block number k come from a generator whose seed depends on the input's
numbers, on the seed and on k alone. So a result is the same alone, in any batch, in any number of processes, and where a
run goes on that was stopped. (Numbers by `adversarial.streams.Streams` take twenty times as long as torch's generator,
and longer than a small model.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from adversarial.streams import GOLDEN, Streams
from certify.errors import CertifyError
from certify.randomised.noise import NOISES

BLOCK = 64  # draws at a time, so that looks fall on their ends
SECONDS = 20.0  # between two checkpoints
Seen = Callable[[Tensor, Tensor, Tensor], None]
Precision = Literal["bfloat16", "float16"] | None


class Drawing(Protocol):
    """What a smoothing says of its draws."""

    @property
    def noise(self) -> str: ...
    @property
    def sigma(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def precision(self) -> Precision: ...


class Sampler:
    """Draws noise for inputs x (B, …) and asks the model, at most `batch_size` noisy inputs at a time."""

    def __init__(self, model: nn.Module, x: Tensor, drawing: Drawing, batch_size: int):
        self.model, self.dtype, self.sigma, self.batch_size = model, x.dtype, drawing.sigma, batch_size
        # noise of half precision is no such noise; rounding what it is added to is the model's own affair
        self.x = x if x.dtype == torch.float64 else x.float()
        self.noise, self.precision = NOISES[drawing.noise], drawing.precision
        self.keys = Streams(x, drawing.seed).key.tolist()
        self.generator = torch.Generator(x.device)

    def draw(self, rows: list[int], number: int) -> Tensor:
        """Block `number` of the draws of these inputs (rows, BLOCK, …)."""
        noise = self.x.new_empty(len(rows), BLOCK, *self.x.shape[1:])
        for empty, row in zip(noise, rows, strict=True):
            # torch's generator for CPUs keeps 32 bits of a seed; an odd step never comes to the same ones twice
            self.generator.manual_seed((self.keys[row] + number * GOLDEN) & 0xFFFFFFFF)
            self.noise.draw(empty, self.generator)
        return noise

    def cast(self) -> AbstractContextManager:
        """The precision the model works in."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.x.device.type, getattr(torch, self.precision))

    @torch.no_grad()
    def classes(self, rows: Tensor, number: int, count: int, seen: Seen | None = None) -> Tensor:
        """Classes (rows, count) under the first draws of a block, -1 where a logit is not finite.

        `seen` is called with some of the rows, their classes and their draws (rows, count, …), before scaling, at a time.
        """
        found = []
        for some in rows.split(max(1, self.batch_size // count)):
            noise = self.draw(some.tolist(), number)[:, :count]
            clean = self.x[some, None]
            if seen is None:  # nobody needs the draws again
                shaken = noise.mul_(self.sigma).add_(clean).flatten(0, 1)
            else:
                shaken = torch.add(clean, noise, alpha=self.sigma).flatten(0, 1)
            with self.cast():
                logits = torch.cat([self.model(part) for part in shaken.to(self.dtype).split(max(1, self.batch_size))])
            if logits.ndim != 2 or len(logits) != len(shaken):
                raise CertifyError(
                    f"expected logits (B, classes) for inputs {tuple(shaken.shape)}, got {tuple(logits.shape)}"
                )
            found.append(torch.where(logits.isfinite().all(1), logits.argmax(1), -1).view(len(some), count))
            if seen is not None:
                seen(some, found[-1], noise)
        return torch.cat(found)

    @torch.no_grad()
    def counts(self, rows: Tensor, n: int) -> Tensor:
        """How often each class came up in the first n draws (rows, classes)."""
        classes = self.model(self.x[:1].to(self.dtype)).shape[1]
        found = torch.zeros(len(rows), classes + 1, dtype=torch.long, device=rows.device)
        for number in range(blocks(n)):
            named = self.classes(rows, number, min(BLOCK, n - number * BLOCK))
            found.scatter_add_(1, named + 1, torch.ones_like(named))
        return found[:, 1:]


def blocks(n: int) -> int:
    """How many blocks hold n draws."""
    return -(-n // BLOCK)


class Keeper:
    """Tensors of a run that may be stopped, in one file of a folder that is replaced whole; without a folder, nowhere."""

    def __init__(self, folder: Path | None, mark: str):
        self.path, self.mark, self.written = folder and folder / "smoothing.safetensors", mark, time.monotonic()

    def read(self) -> dict[str, Tensor] | None:
        from safetensors import SafetensorError, safe_open

        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                if (file.metadata() or {}).get("mark") != self.mark:
                    raise CertifyError(
                        f"expected the run that {self.path.parent} was begun with, got other inputs, labels, weights or "
                        "options; choose another folder"
                    )
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except SafetensorError as error:
            raise CertifyError(f"expected a stopped run in {self.path}, got a damaged file; delete it") from error

    def write(self, state: dict[str, Tensor], *, now: bool = False) -> None:
        from safetensors.torch import save_file

        from reprogram.files import atomic_file

        if self.path is None or not (now or time.monotonic() - self.written > SECONDS):
            return
        with atomic_file(self.path) as path:
            save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"mark": self.mark})
        self.written = time.monotonic()
