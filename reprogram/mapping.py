"""Output maps: frozen features (B, S) to the target's logits (B, T), trained by gradient or solved in closed form."""

from __future__ import annotations

import copy
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.kernels import KERNELS

Kind = Literal["regression", "classification", "multilabel"]
Columns = tuple[tuple[int, int], ...] | None
TUNING_ROWS = 400  # evidence costs the cube of the rows, and a few hundred settle half a dozen numbers
CLIP = 6.0  # standard deviations: one odd descriptor must not own a prediction


class Mapping(Protocol):
    """What `Reprogrammed` asks of its last term. Legend: B batch, n rows, S source features, T outputs."""

    kind: Kind
    outputs: int

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


class Scaler(nn.Module):
    """Standardise features by training statistics, clipped; buffers, so saved with the map."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, features: Tensor) -> None:
        features = features.detach().double()
        spread = features.std(0, correction=0)
        floor = 1e-3 * features.abs().amax(0) + 1e-6  # a nearly constant column carries no unit of its own
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

    def prepare(self, features: Tensor, y: Tensor) -> None:
        self.scaler.fit(select(features, self.columns))
        if self.kind == "regression":
            self.center.copy_(y.nanmean(0))
            self.scale.copy_((y - self.center).square().nanmean(0).sqrt().clamp_min(1e-12))

    def forward(self, features: Tensor) -> Tensor:
        return self.center + self.scale * self.linear(self.scaler(select(features, self.columns)))

    @torch.no_grad()
    def refit(self, features: Tensor, y: Tensor) -> LinearMap:
        if not self.ridge:
            return self
        from reprogram.readout import solve_linear

        self.prepare(features, y)
        weight, bias = solve_linear(
            self.kind, self.outputs, self.scaler(select(features, self.columns)), y, self.center, self.scale
        )
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
        return self


@configurable
class GaussianProcess(nn.Module):
    r"""Gaussian-process readout: $f(x) = m + s\,k(x, X)\,(k(X, X) + \sigma^2 I)^{-1} y$ with hyper-parameters by evidence.

    The kernel is a sum over feature blocks (`columns`) and over `kernels`, each with its own amplitude and length scale:
    one block per source lets the evidence weigh the sources. `evidence` is the training loss of the program (the map
    is integrated out, so a few labels cannot be memorised by it); `refit` conditions on the training rows.
    Classes and labels are regressed as ±1 and calibrated on leave-one-out scores (least-squares classification,
    Rasmussen & Williams 2006, section 6.5). Above `landmarks` rows the subset-of-regressors approximation is used.

    Shapes: features (n, S), y (n,) or (n, T) with NaN for missing labels -> (B, T).
    Reference: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, sections 2.2, 5.4 and 8.3.
    Differs from the book: weak log-normal priors on every hyper-parameter (maximum a posteriori), for small n.
    """

    def __init__(
        self,
        width: int,
        outputs: int = 1,
        *,
        kind: Kind = "regression",
        kernels: tuple[str, ...] = ("linear", "matern"),
        columns: Columns = None,
        landmarks: int = 400,
        tune: bool = True,
    ):
        super().__init__()
        self.kind, self.outputs, self.kernels, self.landmarks = kind, outputs, tuple(kernels), landmarks
        self.tune = tune
        self.columns = blocks(columns, width)
        self.raw = self.kernels == ("tanimoto",)  # counts are compared as they are
        if "tanimoto" in self.kernels and not self.raw:
            raise ValueError(f"expected the tanimoto kernel alone, got {self.kernels}; stack two maps instead")
        width = sum(stop - start for start, stop in self.columns)
        terms = len(self.columns) * len(self.kernels)
        self.log_amplitude = nn.Parameter(torch.full((terms,), -1.0))
        self.log_length = nn.Parameter(torch.zeros(terms))
        self.log_noise = nn.Parameter(torch.tensor(-2.0))
        self.scaler = Scaler(width)
        for name in ("center", "scale", "slope", "offset"):
            self.register_buffer(name, torch.zeros(outputs) if name in ("center", "offset") else torch.ones(outputs))
        # the rows that a prediction is a kernel expansion over, small enough to travel: rounded before they are fitted
        self.register_buffer("support", torch.zeros(0, width, dtype=torch.uint8 if self.raw else torch.float16))
        self.register_buffer("dual", torch.zeros(0, outputs, dtype=torch.float64))

    # saved artefacts hold as many support rows as were fitted: take the shape that comes
    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("support", "dual"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def select(self, features: Tensor) -> Tensor:
        """The map's own columns, standardised (n, D), float64."""
        own = select(features, self.columns)
        return own.double() if self.raw else self.scaler(own).double()

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum kernel between selected features (n, D) and (m, D) -> (n, m), float64."""
        total, start = 0.0, 0
        amplitude, length = self.log_amplitude.double().exp(), self.log_length.double().exp()
        for block, (first, last) in enumerate(self.columns):
            stop = start + last - first
            for k, name in enumerate(self.kernels):
                term = block * len(self.kernels) + k
                total = total + amplitude[term] * KERNELS[name](a[:, start:stop], b[:, start:stop], length[term])
            start = stop
        return total

    @property
    def noise(self) -> Tensor:
        return self.log_noise.double().exp() + 1e-4

    def targets(self, y: Tensor) -> Tensor:
        """y as (n, T) float64 in unit scale; classes become ±1 one against the rest; NaN stays missing."""
        if self.kind == "classification":
            y = 2.0 * F.one_hot(y.long(), self.outputs) - 1
        elif self.kind == "multilabel":
            y = 2.0 * y - 1
        return (y.double() - self.center) / self.scale

    def prepare(self, features: Tensor, y: Tensor) -> None:
        self.scaler.fit(select(features, self.columns))
        self.center.zero_()
        self.scale.fill_(1.0)
        raw = self.targets(y)
        self.center.copy_(raw.nanmean(0))
        self.scale.copy_((raw - self.center).square().nanmean(0).sqrt().clamp_min(1e-12))

    def evidence(self, features: Tensor, y: Tensor) -> Tensor:
        """Negative log marginal likelihood per row plus the priors: the loss that trains program and kernel."""
        from reprogram.readout import negative_log_evidence

        prior = (self.log_amplitude + 1).square().sum() / 18 + self.log_length.square().sum() / 2
        prior = prior + (self.log_noise + 2).square() / 8
        inputs = self.select(features)
        covariance = self.kernel(inputs, inputs)
        return (negative_log_evidence(covariance, self.noise, self.targets(y)) + prior) / len(features)

    def forward(self, features: Tensor) -> Tensor:
        latent = (self.kernel(self.select(features), self.support.double()) @ self.dual).to(features.dtype)
        if self.kind == "regression":
            return self.center + self.scale * latent
        return self.slope * (self.center + self.scale * latent) + self.offset

    @torch.no_grad()
    def refit(self, features: Tensor, y: Tensor) -> GaussianProcess:
        from reprogram.readout import calibrate, condition, spread_rows, tune_hyperparameters

        if self.tune:
            few = spread_rows(len(features), TUNING_ROWS)
            tune_hyperparameters(self, features[few], y[few])
        rows = spread_rows(len(features), self.landmarks)
        inputs = self.select(features).to(self.support.dtype)
        self.support = inputs[rows].clone()
        self.dual, left_out = condition(self.kernel, inputs.double(), rows, self.noise, self.targets(y))
        if self.kind != "regression":
            scores = self.center + self.scale * left_out
            self.slope.copy_(torch.ones_like(self.slope)), self.offset.zero_()
            slope, offset = calibrate(self.kind, scores, y)
            self.slope.copy_(slope)
            self.offset.copy_(offset)
        return self


@configurable
class Stack(nn.Module):
    r"""Stacked readout: $f(x) = \sum_m w_m f_m(x)$, w non-negative and summing to one, from out-of-fold predictions.

    Each member is a closed-form map over some columns of the concatenated features, so a member is a source, or several,
    with its own readout. For classes and labels probabilities are averaged and returned as logits.

    `weigh=False` keeps equal weights. Shapes: features (B, S) -> (B, T).
    Reference: Breiman, "Stacked regressions", Machine Learning 1996. Differs: weights shrunk half-way to equal ones.
    """

    def __init__(
        self, members: list[nn.Module], *, weigh: bool = True, folds: int = 5, shrink: float = 0.5, seed: int = 0
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
            self.scale.copy_((y - y.nanmean(0)).square().nanmean(0).sqrt().clamp_min(1e-12))

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

        target = F.one_hot(y.long(), self.outputs).float() if self.kind == "classification" else y
        known = ~target.isnan()
        unit = target.nanmean(0), (target - target.nanmean(0)).square().nanmean(0).sqrt().clamp_min(1e-12)
        matrix = ((held_out - unit[0]) / unit[1])[:, known].T.double().cpu().numpy()
        values = ((target - unit[0]) / unit[1])[known].double().cpu().numpy()
        self.weights.copy_(torch.from_numpy(stack_weights(matrix, values, shrink=self.shrink)))
