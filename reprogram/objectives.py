"""What `fit` minimises and by which steps: losses of a model on a batch, and optimizers of its program and map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.features import column
from reprogram.model import Reprogrammed

Loss = Callable[[nn.Module, Any, Tensor], Tensor]
Optimizer = Callable[[Reprogrammed], torch.optim.Optimizer]


def supervised(model: Reprogrammed, x: Any, y: Tensor) -> Tensor:
    """The task's own loss, averaged over rows: squared error in target standard deviations, or cross-entropy."""
    return model.row_losses(model(x), y).mean()


def evidence(model: Reprogrammed, x: Any, y: Tensor) -> Tensor:
    """Negative log evidence of a `GaussianProcess` map on the programmed features: no head to overfit, only a program.

    It couples all rows of the batch, so a batch should hold as many rows as memory allows (`whole_batch`).
    """
    return model.mapping.evidence(model.features(x), column(y, model.mapping.kind))


evidence.whole_batch = True  # type: ignore[attr-defined]  # not a mean over rows: processes repeat it instead of sharing rows


def adam(*, program: float = 3e-3, mapping: float = 1e-2, weight_decay: float = 0.0) -> Optimizer:
    """Adam with one learning rate for the program and one for the map."""

    return lambda model: torch.optim.Adam(rated(model, program, mapping), weight_decay=weight_decay)


def momentum(*, program: float = 0.05, mapping: float = 0.01) -> Optimizer:
    """Gradient descent with Nesterov momentum 0.9, one learning rate for the program and one for the map."""
    return lambda model: torch.optim.SGD(rated(model, program, mapping), lr=program, momentum=0.9, nesterov=True)


def rated(model: Reprogrammed, program: float, mapping: float) -> list[dict[str, Any]]:
    """Parameter groups of program and map with their learning rates."""
    rates = {"program.": program, "mapping.": mapping}
    groups = [{"params": [p for n, p in model.trainable() if n.startswith(k)], "lr": r} for k, r in rates.items()]
    return [group for group in groups if group["params"]]
