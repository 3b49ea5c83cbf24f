"""Repeated inputs become one: agreeing labels are joined, disagreeing ones are flagged or dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.labels import Value, short
from tasks.modalities import Modality
from tasks.splits import WORDS
from tasks.task import Dropped, Merged, shown

HELD_OUT = {"train": 0, "validation": 1, "test": 2}


@dataclass
class Merge:
    """One entry per distinct input, in the order of first appearance; `words` says which part each is in."""

    labels: dict[str, list[Value]]
    inputs: list[Any] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    words: list[Any] = field(default_factory=list)
    groups: list[Merged] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def merge(
    clean: Mapping[int, Any],
    labels: Mapping[str, Sequence[Value]],
    rows: Sequence[int],
    *,
    words: Sequence[Any] | None = None,
    numeric: bool,
    tolerance: float | None = None,
    modality: Modality,
) -> Merge:
    """Joins the records of `clean` (position to input) that hold one molecule, text, …: where the modality joins.

    Numbers become their mean, flagged where they spread wider than `tolerance` (default: a fifth of the standard
    deviation of the column). Classes that disagree lose the label, and the row when no label is left.
    """
    members: dict[Any, list[int]] = {}
    for i, value in clean.items():
        members.setdefault(modality.digest(value) if modality.joins else i, []).append(i)
    limits = {c: _limit([values[i] for i in clean], tolerance) if numeric else None for c, values in labels.items()}
    out = Merge({c: [] for c in labels})
    for places in members.values():
        value = clean[places[0]]
        joined = {c: _join([values[i] for i in places], limits[c]) for c, values in labels.items()}
        conflict = "; ".join(f"{c}: {why}" for c, (_, why) in joined.items() if why)
        if len(places) > 1:
            out.groups.append(Merged(shown(value), tuple(rows[i] for i in places), conflict))
        if all(label is None for label, _ in joined.values()):
            out.dropped += [Dropped(rows[i], shown(value), f"repeated {modality.one}, {conflict}") for i in places]
            continue
        out.inputs.append(value)
        out.rows.append(rows[places[0]])
        if words is not None:
            # the most held-out place wins, so that a repeat can never carry a test label into training
            out.words.append(max((words[i] for i in places), key=_held_out))
        for c, (label, _) in joined.items():
            out.labels[c].append(label)
    return out


def _join(values: Sequence[Value], limit: float | None) -> tuple[Value, str]:
    """One label from repeats, and what was done if they disagree; `limit` is None for classes."""
    known = [v for v in values if v is not None]
    if len(set(known)) < 2:
        return (known[0] if known else None), ""
    if limit is None:
        return None, f"classes {', '.join(sorted(map(_word, set(known))))} disagree, label dropped"
    numbers = [float(v) for v in known]
    mean, spread = math.fsum(numbers) / len(numbers), max(numbers) - min(numbers)
    return mean, f"values differ by {spread:.4g}, over the tolerance {limit:.4g}, mean kept" if spread > limit else ""


def _word(value: float | str) -> str:
    return f"{value:.12g}" if isinstance(value, float) else value


def _limit(values: Sequence[Value], tolerance: float | None) -> float:
    if tolerance is None:
        return 0.2 * float(np.std([v for v in values if isinstance(v, float)] or [0.0]))
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise DataError(f"expected tolerance of at least 0, in the units of the target, got {short(tolerance)}")
    return float(tolerance)


def _held_out(word: Any) -> int:
    # an unknown word ranks highest so that it is reported and not merged away
    return HELD_OUT.get(WORDS.get(str(word).strip().lower(), ""), 3)
