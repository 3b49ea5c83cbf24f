"""Molecules in lists, and their splits by scaffold; files are read by `tasks.data`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.data import FRACTIONS, Inputs, load_task, read_inputs
from tasks.labels import short
from tasks.molecules.standardise import scaffold
from tasks.splits import Split, group_split, random_split
from tasks.task import Task


def from_molecules(
    molecules: Iterable[Any],
    y: Any,
    *,
    names: Sequence[str] | None = None,
    name: str = "molecules",
    **options: Any,
) -> Task:
    """A task from a list of SMILES or RDKit molecules and targets (n,) or (n, T); options are those of `load_task`.

    `names` are the label names of a (n, T) target. A `split` other than "scaffold" and "random" is a list of words.
    """
    inputs = list(molecules)
    values = np.asarray(y, dtype=object)
    if values.ndim not in (1, 2) or len(values) != len(inputs):
        raise DataError(f"expected one target per molecule, got {len(inputs)} molecules and targets {values.shape}")
    columns: dict[str, Any] = {"smiles": inputs}
    labels = list(names or (["y"] if values.ndim == 1 else [f"y{t}" for t in range(values.shape[1])]))
    if len(labels) != (1 if values.ndim == 1 else values.shape[1]) or "smiles" in labels:
        raise DataError(f"expected one name per target column, got {labels} for targets {values.shape}")
    columns |= {label: list(values if values.ndim == 1 else values[:, t]) for t, label in enumerate(labels)}
    split = options.get("split")
    if split is not None and not isinstance(split, str):
        columns["split"], options["split"] = list(split), "split"
    return load_task(columns, smiles="smiles", target=labels, name=name, **options)


def read_molecules(data: Any, *, smiles: str = "smiles", **standardisation: Any) -> Inputs:
    """Molecules to predict on, from anything `load_task` reads or a list of SMILES; nothing is merged or reordered."""
    return read_inputs(data, modality="molecules", input=smiles, **standardisation)


def scaffold_split(inputs: Sequence[str], *, fractions: Sequence[float] = FRACTIONS) -> Split:
    """Deterministic Bemis-Murcko split: no scaffold is in two parts (see `tasks.splits.group_split`)."""
    return group_split([scaffold(smiles) for smiles in inputs], fractions=fractions)


def resplit(task: Task, split: str, *, seed: int = 0, fractions: Sequence[float] = FRACTIONS) -> Task:
    """The same task under another "scaffold" or "random" split, without reading it again."""
    if split not in ("scaffold", "random"):
        raise DataError(f'expected split "scaffold" or "random", got {short(split)}')
    if split == "scaffold":
        return replace(task, split=scaffold_split(task.inputs, fractions=fractions))
    return replace(task, split=random_split(len(task), seed=seed, fractions=fractions))
