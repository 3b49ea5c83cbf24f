"""A model of the objective from what a search has measured: cheap, uncertain where it knows nothing, drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reprogram.gaussian_process import GaussianProcess
from tasks.molecules.molecule import BITS, Molecule, morgan
from tasks.molecules.objective import Objective
from tasks.molecules.search import Search

GROWTH = 1.3  # hyper-parameters are tuned again when there are so many times as many rows


def counts(molecules: Sequence[Molecule]) -> Tensor:
    """Morgan counts (n, 2048)."""
    rows = [morgan().GetCountFingerprintAsNumPy(molecule.mol) for molecule in molecules]
    return torch.from_numpy(np.stack(rows).astype(np.float32)) if rows else torch.zeros(0, BITS)


class Surrogate:
    """A Gaussian process per value of the objective, Tanimoto kernel on Morgan counts.

    `draw` gives values from the joint posterior of a pool: ranking by them is Thompson sampling, for any preference
    between several objectives. Reference: Thompson, Biometrika 1933; Ralaivola et al., Neural Networks 2005 (kernel).
    """

    least = 10  # rows below which everything is as good as anything

    def __init__(self, objective: Objective):
        self.objective = objective
        self.models = [GaussianProcess(BITS, kernels=("tanimoto",)) for _ in objective.oracles]
        self.tuned = 0
        self.features: dict[str, Tensor] = {}

    def encoded(self, search: Search, names: Sequence[str]) -> Tensor:
        """Counts of molecules the search knows, each made once."""
        new = [name for name in dict.fromkeys(names) if name not in self.features]
        molecules = [search.known[name].molecule for name in new]
        rows = counts([molecule for molecule in molecules if molecule is not None])
        self.features |= dict(zip(new, rows, strict=True))
        return torch.stack([self.features[name] for name in names])

    def fit(self, search: Search) -> bool:
        """Condition on everything that was measured; False while that is too little."""
        rows = [call for call in search.calls if np.isfinite(call.values).all()]
        if len(rows) < self.least:
            return False
        features = self.encoded(search, [call.smiles for call in rows])
        values = torch.tensor([call.values for call in rows], dtype=torch.float64)
        tune = len(rows) >= GROWTH * self.tuned
        self.tuned = len(rows) if tune else self.tuned
        for model, column in zip(self.models, values.T, strict=True):
            model.tune = tune
            model.prepare(features, column[:, None])
            model.refit(features, column[:, None])
        return True

    @torch.no_grad()
    def draw(self, search: Search, names: Sequence[str], generator: torch.Generator) -> np.ndarray:
        """Values (n, k) of the molecules, one draw from the joint posterior."""
        features = self.encoded(search, names)
        columns = []
        for model in self.models:
            covariance = model.covariance(features)
            vectors = torch.linalg.eigh(covariance + 1e-9 * torch.eye(len(names), dtype=torch.float64))
            root = vectors.eigenvectors * vectors.eigenvalues.clamp_min(0).sqrt()
            noise = torch.randn(len(names), dtype=torch.float64, generator=generator)
            columns.append(model(features)[:, 0] + model.scale * (root @ noise))
        return torch.stack(columns, 1).double().numpy()
