"""Output maps: frozen features (B, S) to the target's logits (B, T), trained by gradient or solved in closed form."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable

Kind = Literal["regression", "classification", "multilabel"]
Columns = tuple[tuple[int, int], ...] | None
CLIP = 6.0  # standard deviations: one odd descriptor must not own a prediction


class Mapping(Protocol):
    """What `Reprogrammed` asks of its last term. Legend: B batch, n rows, S source features, T outputs."""

    kind: Kind
    outputs: int
    solved: bool  # whether `refit` changes anything; where it is absent, it does

    def prepare(self, features: Tensor, y: Tensor) -> None: ...  # scales, and a sensible start, from training rows
    def refit(self, features: Tensor, y: Tensor) -> Mapping: ...  # closed form; a trained map leaves itself alone
    def forward(self, features: Tensor) -> Tensor: ...  # (B, T): user's units, or logits


def per_row_loss(kind: Kind, output: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Loss of each row (B,): squared error in units of `scale`, cross-entropy, or masked binary cross-entropy.

    Regression and multilabel take y (B, T), where NaN marks a missing label; classes take y (B,) long.
    """
    if kind == "classification":
        return F.cross_entropy(output, y.long(), reduction="none")
    known = ~y.isnan()
    target = torch.where(known, y, torch.zeros_like(y))
    if kind == "regression":
        each = ((output - target) / scale).square()
    else:
        each = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return (each * known).sum(1) / known.sum(1).clamp_min(1)


def probabilities(kind: Kind, output: Tensor) -> Tensor:
    """What a user reads: values as they are, softmax over classes, or one sigmoid per label."""
    if kind == "classification":
        return output.softmax(-1)
    return output.sigmoid() if kind == "multilabel" else output


def spread(y: Tensor) -> Tensor:
    """Standard deviation of each target column (T,) over its observed rows; 1e-12 for a constant one."""
    y = y.double()
    return (y - y.nanmean(0)).square().nanmean(0).sqrt().clamp_min(1e-12)


class Scaler(nn.Module):
    """Standardise features by training statistics, clipped; buffers, so saved with the map."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, features: Tensor) -> None:
        features = features.detach().double()
        spread = features.std(0, correction=0)
        floor = 1e-3 * features.abs().amax(0) + 1e-12  # a nearly constant column carries no unit of its own
        self.mean.copy_(features.mean(0))
        self.std.copy_(spread + floor)

    def forward(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.std).clamp(-CLIP, CLIP)


def blocks(columns: Columns, width: int) -> tuple[tuple[int, int], ...]:
    """The (start, stop) feature blocks that a map reads; all features when none are named."""
    return tuple((int(start), int(stop)) for start, stop in columns) if columns else ((0, width),)


def select(features: Tensor, columns: tuple[tuple[int, int], ...]) -> Tensor:
    """The blocks `columns` of features (n, S), side by side."""
    return torch.cat([features[:, start:stop] for start, stop in columns], dim=1)


@configurable
class LinearMap(nn.Module):
    r"""Trained linear map on standardised features: $f(z) = m + s\,(Wz + b)$ for values, $Wz + b$ for logits.

    m, s are the training targets' mean and standard deviation, so the weights live in unit scale and the output in the
    user's units. `ridge=True` solves W in closed form instead (leave-one-out ridge, or cross-validated logistic
    regression, both by scikit-learn), which is the linear probe.

    Shapes: features (B, S) -> (B, T). Differs from common practice: W starts at 0, so the start predicts the mean.
    """

    def __init__(
        self, width: int, outputs: int = 1, *, kind: Kind = "regression", ridge: bool = False, columns: Columns = None
    ):
        super().__init__()
        self.kind, self.outputs, self.ridge = kind, outputs, ridge
        self.columns = blocks(columns, width)
        width = sum(stop - start for start, stop in self.columns)
        self.scaler = Scaler(width)
        self.linear = nn.Linear(width, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("center", torch.zeros(outputs))
        self.register_buffer("scale", torch.ones(outputs))

    @property
    def solved(self) -> bool:
        return self.ridge

    def prepare(self, features: Tensor, y: Tensor) -> None:
        self.scaler.fit(select(features, self.columns))
        if self.kind == "regression":
            self.center.copy_(y.nanmean(0))
            self.scale.copy_(spread(y))

    def forward(self, features: Tensor) -> Tensor:
        return self.center + self.scale * self.linear(self.scaler(select(features, self.columns)))

    @torch.no_grad()
    def refit(self, features: Tensor, y: Tensor) -> LinearMap:
        if not self.solved:
            return self
        from reprogram.readout import solve_linear

        self.prepare(features, y)
        weight, bias = solve_linear(
            self.kind, self.outputs, self.scaler(select(features, self.columns)), y, self.center, self.scale
        )
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
        return self
