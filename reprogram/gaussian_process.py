"""The Gaussian-process readout: its evidence trains a program, its posterior mean predicts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.kernels import KERNELS
from reprogram.mapping import Columns, Kind, Scaler, blocks, select

LABEL_NOISE = 0.3  # of the variance of ±1 labels at least: 8 % errors; else a few labels look like noiseless values
TUNING_ROWS = 400  # evidence costs the cube of the rows, and a few hundred settle half a dozen numbers


def block_by_block(kernels: tuple[str, ...] | tuple[tuple[str, ...], ...], count: int) -> tuple[tuple[str, ...], ...]:
    """The kernels of each of `count` blocks; one tuple of names is for all of them."""
    own = (kernels,) * count if all(isinstance(name, str) for name in kernels) else kernels
    found = tuple(tuple(names) for names in own)
    if len(found) != count:
        raise ValueError(f"expected kernels for {count} blocks, got {len(found)}; give one tuple of names for all")
    if any("tanimoto" in names and len(names) > 1 for names in found):
        raise ValueError(f"expected the tanimoto kernel alone in its block, got {kernels}; stack two maps instead")
    return found


@configurable
class GaussianProcess(nn.Module):
    r"""Gaussian-process readout: $f(x) = m + s\,k(x, X)\,(k(X, X) + \sigma^2 I)^{-1} y$ with hyper-parameters by evidence.

    The kernel is a sum over feature blocks (`columns`) and over `kernels`, each with its own amplitude and length scale:
    one block per source lets the evidence weigh the sources. `evidence` is the training loss of the program (the map
    is integrated out, so a few labels cannot be memorised by it); `refit` conditions on the training rows.
    `kernels` may also be given block by block, as a tuple of tuples. The Tanimoto kernel compares counts, cut at 255, and
    stands alone in its block. Classes and labels are regressed as ±1 and calibrated on
    leave-one-out scores (least-squares classification, Rasmussen & Williams 2006, section 6.5); `kernels` are by default
    linear and Matérn for values, Matérn for classes. Above `landmarks` rows it is the subset of regressors.

    Shapes: features (n, S), y (n,) or (n, T) with NaN for missing labels -> (B, T).
    Reference: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, sections 2.2, 5.4 and 8.3.
    Differs from the book: weak log-normal priors on every hyper-parameter (maximum a posteriori), and a floor
    under the noise of ±1 labels, for small n.
    """

    def __init__(
        self,
        width: int,
        outputs: int = 1,
        *,
        kind: Kind = "regression",
        kernels: tuple[str, ...] | tuple[tuple[str, ...], ...] | None = None,
        columns: Columns = None,
        landmarks: int = 400,
        tune: bool = True,
    ):
        super().__init__()
        kernels = kernels or (("linear", "matern") if kind == "regression" else ("matern",))
        self.kind, self.outputs, self.landmarks, self.tune = kind, outputs, landmarks, tune
        self.columns = blocks(columns, width)
        self.kernels = block_by_block(kernels, len(self.columns))
        sizes = [stop - start for start, stop in self.columns]
        counted = [names == ("tanimoto",) for names in self.kernels]
        # counts are compared as they are
        self.register_buffer(
            "raw", torch.repeat_interleave(torch.tensor(counted), torch.tensor(sizes)), persistent=False
        )
        width, terms = sum(sizes), sum(map(len, self.kernels))
        self.log_amplitude = nn.Parameter(torch.full((terms,), -1.0))
        self.log_length = nn.Parameter(torch.zeros(terms))
        self.log_noise = nn.Parameter(torch.tensor(-2.0))
        self.scaler = Scaler(width)
        for name in ("center", "scale", "slope", "offset"):
            self.register_buffer(name, torch.zeros(outputs) if name in ("center", "offset") else torch.ones(outputs))
        # the rows that a prediction is a kernel expansion over, small enough to travel: rounded before they are fitted
        self.register_buffer("support", torch.zeros(0, width, dtype=torch.uint8 if all(counted) else torch.float16))
        self.register_buffer("dual", torch.zeros(0, outputs, dtype=torch.float64))

    # saved artefacts hold as many support rows as were fitted: take the shape that comes
    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("support", "dual"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def select(self, features: Tensor) -> Tensor:
        """The map's own columns, standardised (n, D), float64."""
        own = select(features, self.columns)
        return torch.where(self.raw, own.clamp(0, 255), self.scaler(own)).double()

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum kernel between selected features (n, D) and (m, D) -> (n, m), float64."""
        total, start, term = 0.0, 0, 0
        amplitude, length = self.log_amplitude.double().exp(), self.log_length.double().exp()
        for (first, last), names in zip(self.columns, self.kernels, strict=True):
            stop = start + last - first
            for name in names:
                total = total + amplitude[term] * KERNELS[name](a[:, start:stop], b[:, start:stop], length[term])
                term += 1
            start = stop
        return total

    @property
    def noise(self) -> Tensor:
        return self.log_noise.double().exp() + (1e-4 if self.kind == "regression" else LABEL_NOISE)

    def targets(self, y: Tensor) -> Tensor:
        """y as (n, T) float64 in unit scale; classes become ±1 one against the rest; NaN stays missing."""
        if self.kind == "classification":
            y = 2.0 * F.one_hot(y.long(), self.outputs) - 1
        elif self.kind == "multilabel":
            y = 2.0 * y - 1
        return (y.double() - self.center) / self.scale

    def prepare(self, features: Tensor, y: Tensor) -> None:
        counts = select(features, self.columns)[:, self.raw]
        if not torch.equal(counts, counts.round().clamp_min(0)):
            raise DataError("expected counts for the tanimoto kernel, got other numbers; use kernels=('matern',)")
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
    def covariance(self, features: Tensor) -> Tensor:
        """Posterior covariance (B, B) of the latent function in units of each target's variance, without the noise.

        Above `landmarks` rows it knows the support rows only, and is then larger than it need be.
        """
        inputs, support = self.select(features), self.support.double()
        prior = self.kernel(support, support) + self.noise * torch.eye(len(support), dtype=torch.float64)
        explained = torch.linalg.solve_triangular(
            torch.linalg.cholesky(prior), self.kernel(support, inputs), upper=False
        )
        return self.kernel(inputs, inputs) - explained.T @ explained

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
