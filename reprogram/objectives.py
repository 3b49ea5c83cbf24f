"""What `fit` minimises and by which steps: losses of a model on a batch, and optimizers of its program and map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.features import column
from reprogram.model import Reprogrammed

Loss = Callable[[nn.Module, Any, Tensor], Tensor]
Optimizer = Callable[[Reprogrammed], torch.optim.Optimizer]
Decay = Callable[[int, int], float]  # (step, steps) -> factor of every learning rate


def supervised(model: Reprogrammed, x: Any, y: Tensor) -> Tensor:
    """The task's own loss, averaged over rows: squared error in target standard deviations, or cross-entropy."""
    return model.row_losses(model(x), y).mean()


def evidence(model: Reprogrammed, x: Any, y: Tensor) -> Tensor:
    """Negative log evidence of a `GaussianProcess` map on the programmed features: no head to overfit, only a program.

    It couples all rows of the batch, so a batch should hold as many rows as memory allows (`whole_batch`).
    """
    return model.mapping.evidence(model.features(x), column(y, model.mapping.kind))


evidence.whole_batch = True  # type: ignore[attr-defined]  # not a mean over rows: processes repeat it instead of sharing rows


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))


def constant(step: int, steps: int) -> float:
    """The rate as it is."""
    return 1.0


@dataclass(frozen=True)
class Descent:
    """A torch optimizer for a model, `make(model)`, and how its learning rates decay."""

    make: Optimizer
    decay: Decay = cosine

    def __call__(self, model: Reprogrammed) -> torch.optim.Optimizer:
        return self.make(model)


def adam(*, program: float = 3e-3, mapping: float = 1e-2, weight_decay: float = 0.0, adapter: float = 1e-3) -> Descent:
    """Adam with one learning rate for the program, one for the map and one for low-rank updates beside a program."""
    return Descent(lambda model: torch.optim.Adam(rated(model, program, mapping, adapter), weight_decay=weight_decay))


def momentum(*, program: float = 0.05, mapping: float = 0.01) -> Descent:
    """Gradient descent with Nesterov momentum 0.9, one learning rate for the program and one for the map."""
    return Descent(
        lambda model: torch.optim.SGD(rated(model, program, mapping), lr=program, momentum=0.9, nesterov=True)
    )


def spsa_rates(
    *, program: float = 0.01, mapping: float = 0.01, decay: float = 0.4, offset: float = 1.0, correction: float = 0.9
) -> Descent:
    r"""The steps of SPSA, $a_k = a / (k + o)^\alpha$, with BlackVIP's gradient `correction` (SPSA-GC), 0 for none.

    The correction is Nesterov momentum. Reference: Oh et al., "BlackVIP", CVPR 2023, arXiv:2303.14773.
    """

    def make(model: Reprogrammed) -> torch.optim.Optimizer:
        groups = rated(model, program, mapping)
        return torch.optim.SGD(groups, lr=program, momentum=correction, nesterov=correction > 0)

    return Descent(make, lambda step, steps: 1 / (step + 1 + offset) ** decay)


def cma_rates(*, mapping: float = 0.01) -> Descent:
    """Plain descent that takes the program where `CMAES` says, at its full rate to the end."""
    return Descent(lambda model: torch.optim.SGD(rated(model, 1.0, mapping), lr=1.0), constant)


def rated(model: Reprogrammed, program: float, mapping: float, adapter: float | None = None) -> list[dict[str, Any]]:
    """Parameter groups of program, map and low-rank updates with their learning rates, by default the program's."""
    rates = {"program": program, "mapping": mapping, "adapter": program if adapter is None else adapter}
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in rates}
    for name, parameter in model.trainable():
        parts = name.split(".")
        groups["adapter" if "adapter" in parts else parts[0]].append(parameter)
    return [{"params": groups[part], "lr": rate} for part, rate in rates.items() if groups[part]]
