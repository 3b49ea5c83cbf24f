"""A model of the objective from what a search has measured: cheap, uncertain where it knows nothing, drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprogram.errors import DataError
from reprogram.gaussian_process import GaussianProcess
from tasks.molecules.molecule import BITS, morgan
from tasks.molecules.objective import Objective
from tasks.molecules.search import Search

GROWTH = 1.3  # hyper-parameters are tuned again when there are so many times as many rows


def described(mol: Any) -> list[float]:
    """Size, polarity, shape: fifteen numbers that cost 0.2 ms."""
    from rdkit.Chem import Crippen, GraphDescriptors, rdMolDescriptors as of  # noqa: I001 - one family

    return [
        mol.GetNumHeavyAtoms(), of.CalcExactMolWt(mol), Crippen.MolLogP(mol), Crippen.MolMR(mol), of.CalcTPSA(mol),
        of.CalcNumHBD(mol), of.CalcNumHBA(mol), of.CalcNumRotatableBonds(mol), of.CalcNumRings(mol),
        of.CalcNumAromaticRings(mol), of.CalcNumAliphaticRings(mol), of.CalcNumHeteroatoms(mol),
        of.CalcFractionCSP3(mol), of.CalcNumSpiroAtoms(mol) + of.CalcNumBridgeheadAtoms(mol),
        GraphDescriptors.BalabanJ(mol),
    ]  # fmt: skip


def counts(mol: Any) -> np.ndarray:
    """Morgan counts."""
    return morgan().GetCountFingerprintAsNumPy(mol)


# what a molecule is described by: how many numbers, how they are made, and by which kernel they are compared
FEATURES: dict[str, tuple[int, Callable[[Any], Any], str]] = {
    "descriptors": (15, described, "matern"),
    "morgan": (BITS, counts, "tanimoto"),
}


class Surrogate:
    """A Gaussian process per value of the objective, a sum of kernels over `kinds` of `FEATURES`.

    `draw` gives values from the joint posterior of a pool: ranking by them is Thompson sampling, for any preference
    between several objectives. Reference: Thompson, Biometrika 1933; Ralaivola et al., Neural Networks 2005 (kernel).
    """

    least = 10  # rows below which everything is as good as anything

    def __init__(self, objective: Objective, kinds: Sequence[str] = tuple(FEATURES)):
        if strange := [kind for kind in kinds if kind not in FEATURES]:
            raise DataError(f"expected features among {', '.join(FEATURES)}, got {strange[0]}")
        self.objective, self.kinds = objective, kinds
        stops = np.cumsum([FEATURES[kind][0] for kind in kinds]).tolist()
        columns, kernels = tuple(pairwise([0, *stops])), tuple((FEATURES[kind][2],) for kind in kinds)
        self.models = [GaussianProcess(stops[-1], columns=columns, kernels=kernels) for _ in objective.oracles]
        self.tuned = 0
        self.features: dict[str, Tensor] = {}

    def encoded(self, search: Search, names: Sequence[str]) -> Tensor:
        """Features (n, S) of molecules the search knows, each made once."""
        for name in names:
            if name not in self.features:
                molecule = search.known[name].molecule
                assert molecule is not None
                row = np.concatenate([FEATURES[kind][1](molecule.mol) for kind in self.kinds])
                self.features[name] = torch.from_numpy(row.astype(np.float32))
        return torch.stack([self.features[name] for name in names])

    def fit(self, search: Search) -> bool:
        """Condition on everything that was asked; False while that is too little.

        What could not be measured counts as the worst that was, so that the search leaves there.
        """
        values, rows = search.values(), len(search.calls)
        if np.isfinite(values).all(1).sum() < self.least:
            return False
        worst = np.nanmin(values * self.objective.sign, axis=0) * self.objective.sign
        values = torch.from_numpy(np.where(np.isnan(values), worst, values))
        inputs = self.encoded(search, [call.smiles for call in search.calls])
        tune = rows >= GROWTH * self.tuned
        self.tuned = rows if tune else self.tuned
        for model, column in zip(self.models, values.T, strict=True):
            model.tune = tune
            model.prepare(inputs, column[:, None])
            model.refit(inputs, column[:, None])
        return True

    @torch.no_grad()
    def draw(self, search: Search, names: Sequence[str], generator: torch.Generator) -> np.ndarray:
        """Values (n, k) of the molecules, one draw from the joint posterior."""
        inputs = self.encoded(search, names)
        columns = []
        for model in self.models:
            covariance = model.covariance(inputs)
            vectors = torch.linalg.eigh(covariance + 1e-9 * torch.eye(len(names), dtype=torch.float64))
            root = vectors.eigenvectors * vectors.eigenvalues.clamp_min(0).sqrt()
            noise = torch.randn(len(names), dtype=torch.float64, generator=generator)
            columns.append(model(inputs)[:, 0] + model.scale * (root @ noise))
        return torch.stack(columns, 1).double().numpy()
