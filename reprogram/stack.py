"""Several readouts of the same features under one: weighted by how they predict rows they were not fitted on."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.mapping import Kind, probabilities, spread

SHRINK = 0.8  # towards equal weights; on validation rows better than trusting what 50 to 200 labels say


@configurable
class Stack(nn.Module):
    r"""Stacked readout: $f(x) = \sum_m w_m f_m(x)$, w non-negative and summing to one, from out-of-fold predictions.

    Each member is a closed-form map over some columns of the concatenated features, so a member is a source, or several,
    with its own readout. For classes and labels probabilities are averaged and returned as logits.

    `weigh=False` keeps equal weights. Shapes: features (B, S) -> (B, T).
    Reference: Breiman, "Stacked regressions", Machine Learning 1996. Differs: weights shrunk towards equal
    ones by `shrink`.
    """

    def __init__(
        self, members: list[nn.Module], *, weigh: bool = True, folds: int = 5, shrink: float = SHRINK, seed: int = 0
    ):
        super().__init__()
        self.weigh = weigh
        self.members = nn.ModuleList(members)
        self.kind, self.outputs = members[0].kind, members[0].outputs
        self.folds, self.shrink, self.seed = folds, shrink, seed
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(self.outputs))

    def prepare(self, features: Tensor, y: Tensor) -> None:
        for member in self.members:
            member.prepare(features, y)
        if self.kind == "regression":
            self.scale.copy_(spread(y))

    def combine(self, outputs: list[Tensor]) -> Tensor:
        """Weighted mean of what users read, back as outputs."""
        mean = sum(w * probabilities(self.kind, o) for w, o in zip(self.weights, outputs, strict=True))
        mean = mean.to(outputs[0].dtype)
        if self.kind == "regression":
            return mean
        mean = mean.clamp(1e-6, 1 - 1e-6)
        return mean.log() if self.kind == "classification" else mean.logit()

    def forward(self, features: Tensor) -> Tensor:
        return self.combine([member(features) for member in self.members])

    @torch.no_grad()
    def refit(self, features: Tensor, y: Tensor) -> Stack:
        held_out = self.out_of_fold(features, y) if self.weigh else None
        self.fit_members(features, y)
        if held_out is not None:
            self.set_weights(held_out, y)
        return self

    def evidence(self, features: Tensor, y: Tensor) -> Tensor:
        """Mean evidence loss of the members that have one: each program is trained by the member that reads it."""
        return torch.stack(
            [member.evidence(features, y) for member in self.members if hasattr(member, "evidence")]
        ).mean()

    @torch.no_grad()
    def fit_members(self, features: Tensor, y: Tensor) -> None:
        """Solve every member on all training rows."""
        self.prepare(features, y)
        for member in self.members:
            member.refit(features, y)

    def out_of_fold(self, features: Tensor, y: Tensor) -> Tensor:
        """Predictions of every member for rows it was not fitted on, (M, n, T)."""
        from reprogram.readout import folds

        predictions = features.new_zeros(len(self.members), len(features), self.outputs)
        for train, test in folds(self.kind, y, self.folds, self.seed):
            for m, member in enumerate(self.members):
                fresh = copy.deepcopy(member)
                fresh.prepare(features[train], y[train])
                fresh.refit(features[train], y[train])
                predictions[m, test] = probabilities(self.kind, fresh(features[test])).to(features.dtype)
        return predictions

    def set_weights(self, held_out: Tensor, y: Tensor) -> None:
        """Weights from out-of-fold predictions (M, n, T), every observed target counted in unit scale."""
        from reprogram.readout import stack_weights

        self.weights.copy_(torch.from_numpy(stack_weights(*unit_scale(self.kind, held_out, y), shrink=self.shrink)))


def unit_scale(kind: Kind, held_out: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold predictions (M, n, T) as (n·T, M) and targets as (n·T,), observed ones only, each column standardised."""
    target = F.one_hot(y.long(), held_out.shape[2]).float() if kind == "classification" else y
    target, held_out = target.double().cpu(), held_out.double().cpu()
    mean = target.nanmean(0)
    unit = (target - mean).square().nanmean(0).sqrt()
    known = ~target.isnan() & (unit > 1e-9 * mean.abs().clamp_min(1e-300))  # a constant column tells nothing apart
    matrix = ((held_out - mean) / unit)[:, known].T.numpy()
    return matrix, ((target - mean) / unit)[known].numpy()
