"""A trained artefact as an oracle: cautious where it is unsure, silent where it knows nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reprogram.errors import DataError
from reprogram.features import features_of
from reprogram.mapping import probabilities
from reprogram.model import Reprogrammed
from reprogram.uncertainty import deviation, strange, strangeness, variance
from tasks.molecules.oracles import Oracle


def artefact(
    folder: str | Path | Reprogrammed, *, target: str | None = None, maximise: bool = True, caution: float = 0.0,
    domain: float | None = 0.95, batch: int = 64, timeout: float | None = None,
) -> Oracle:  # fmt: skip
    """The predictions of the model in `folder`, which stay predictions: the column says so.

    Args:
        target: a target column, or for classes the name of a class; the first target, or the last class, by default.
        caution: standard deviations taken off a prediction that is to be large, put on one that is to be small; the
            column is then called a bound.
        domain: share of the training molecules that a molecule may be stranger than (`reprogram.uncertainty`); beyond it
            the oracle does not answer (NaN), so a search does not leave for where the model is wrong. None: no limit.
        batch, timeout: those of `Oracle`.

    Raises: DataError for an unknown target, a limit for a model whose domain is not known, or caution with a model that
    does not know how sure it is.
    """
    model = folder if isinstance(folder, Reprogrammed) else Reprogrammed.from_pretrained(folder)
    model.eval()
    about = model.metadata.get("task", {})
    column, name = chosen(model, about, target)
    if domain is not None:
        try:
            strangeness(model, ["CCO"])
        except ValueError as error:
            raise DataError(f"{error}; pass domain=None to search without a limit") from error

    if caution and not deviation(model, ["CCO"]).any():
        raise DataError(
            "expected a model that knows its deviation to be cautious with, got one without, such as a single Gaussian "
            "process on classes; pass caution=0, or train with source='auto', which stacks readouts"
        )

    @torch.no_grad()
    def values(smiles: list[str]) -> np.ndarray:
        found = np.full(len(smiles), np.nan)
        records = [encoded(model, text) for text in smiles]
        fine = [i for i, record in enumerate(records) if record is not None]
        if not fine:
            return found
        features = features_of(model, [record for record in records if record is not None])  # once for all questions
        answer = probabilities(model.mapping.kind, model.mapping(features))[:, column].double().numpy()
        if caution:
            spread = variance(model.mapping, features).sqrt().numpy()
            answer = answer + (-caution if maximise else caution) * spread[:, min(column, spread.shape[1] - 1)]
        if domain is not None:
            answer = np.where(strange(model.mapping, features) <= domain, answer, np.nan)
        found[fine] = answer
        return found

    label = f"predicted_{name}" if not caution else f"predicted_{'lower' if maximise else 'upper'}_bound_{name}"
    identity = f"predicted_{name} {fingerprint(model, [column, caution, domain, maximise])}"
    return Oracle(values, label, maximise=maximise, batch=batch, timeout=timeout, failing=True, identity=identity)


def fingerprint(model: Reprogrammed, options: list[Any]) -> str:
    """What a model's values depend on: another training or another caution is another oracle."""
    total = hashlib.sha256(f"{model.source.digest} {options}".encode())
    for name, tensor in sorted(model.learned_state().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def chosen(model: Reprogrammed, about: dict, target: str | None) -> tuple[int, str]:
    """Column of the predictions and its name."""
    names = [str(name) for name in about.get("target") or [about.get("name", "value")]]
    if model.mapping.kind == "classification":
        names = [str(name) for name in about.get("classes") or range(model.mapping.outputs)]
    if target is None:
        last = len(names) - 1 if model.mapping.kind == "classification" else 0
        return last, names[last]
    if target not in names:
        raise DataError(f"expected a target among {', '.join(names)}, got {target!r}")
    return names.index(target), target


def encoded(model: Reprogrammed, smiles: str) -> Any | None:
    """The record of a molecule that the model's source takes, else None."""
    try:
        return model.encode([smiles])[0]
    except ValueError:
        return None
