"""Splits of n rows into train, validation and test by chance, by group, or by the user's own words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reprogram.errors import DataError

Rows = Sequence[int] | np.ndarray
Split = dict[str, np.ndarray]
WORDS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
WORDS |= {"dev": "validation", "test": "test", "testing": "test"}


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Three positive shares that sum to one, or a DataError."""
    try:
        shares = tuple(float(f) for f in fractions)
    except (TypeError, ValueError):
        shares = ()
    if len(shares) != 3 or not all(0 < f < 1 for f in shares) or abs(sum(shares) - 1) > 1e-6:
        raise DataError(f"expected three positive fractions that sum to 1 (train, validation, test), got {fractions!r}")
    return shares[0], shares[1], shares[2]


def rows_needed(fractions: Sequence[float]) -> int:
    """The fewest rows of which every part gets at least one."""
    return int(np.ceil(1 / min(fractions) - 1e-9))


def random_split(n: int, *, seed: int = 0, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> Split:
    """Rows 0..n-1 in three parts by chance; the same seed gives the same parts."""
    shares = _enough(n, "random", fractions)
    order = np.random.default_rng(seed).permutation(n)
    held = [max(1, int(share * n + 1e-9)) for share in shares[1:]]
    train = n - sum(held)
    return _sorted(order[:train], order[train : train + held[0]], order[train + held[0] :])


def group_split(groups: Sequence[str], *, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> Split:
    """Whole groups in three parts, deterministic: the largest groups fill train, then validation, the rest is test.

    Groups are taken by size, then by first row, both descending; a group that does not fit goes to the next part.

    Reference: Wu et al., Chemical Science 2018, arXiv:1703.00564 (the scaffold split of MoleculeNet)
    """
    n = len(groups)
    shares = _enough(n, "scaffold", fractions)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for rows in sorted(members.values(), key=lambda r: (len(r), r[0]), reverse=True):
        if len(train) + len(rows) <= shares[0] * n:
            train += rows
        elif len(train) + len(validation) + len(rows) <= (shares[0] + shares[1]) * n:
            validation += rows
        else:
            test += rows
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if not part:
            largest = max(len(r) for r in members.values())
            raise DataError(
                f"expected scaffolds that can fill three parts, got an empty {name} part ({len(members)} scaffolds, "
                f'the largest holds {largest} of {n} molecules); use split="random" or your own split column'
            )
    return _sorted(train, validation, test)


def given_split(
    words: Sequence[object], rows: Sequence[int], column: str, *, seed: int = 0, share: float = 0.1
) -> tuple[Split, str]:
    """The user's own split from a column of words; also a note when validation had to be drawn from train.

    Raises: DataError for a word it does not know, or when train or test is empty.
    """
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for i, (word, row) in enumerate(zip(words, rows, strict=True)):
        part = WORDS.get(str(word).strip().lower())
        if part is None:
            raise DataError(
                f"expected train, validation (valid, val) or test in split column {column!r}, "
                f"got {str(word)[:40]!r} at row {row}"
            )
        parts[part].append(i)
    for name in ("train", "test"):
        if not parts[name]:
            raise DataError(f"expected rows marked {name} in split column {column!r}, got none in {len(rows)} rows")
    note = ""
    if not parts["validation"]:
        if len(parts["train"]) < 2:
            raise DataError(f"expected at least 2 train rows in split column {column!r} to draw validation from, got 1")
        order = np.random.default_rng(seed).permutation(parts["train"])
        number = max(1, round(share * len(order)))
        parts["validation"], parts["train"] = list(order[:number]), list(order[number:])
        note = f"no validation rows in column {column!r}: {number} train rows drawn with seed {seed}"
    return _sorted(parts["train"], parts["validation"], parts["test"]), note


def _enough(n: int, name: str, fractions: Sequence[float]) -> tuple[float, float, float]:
    shares = check_fractions(fractions)
    if n < (need := rows_needed(shares)):
        shown = "/".join(f"{share:g}" for share in shares)
        raise DataError(
            f"expected at least {need} usable rows for a {name} split of {shown}, got {n}; add data or other fractions"
        )
    return shares


def _sorted(train: Rows, validation: Rows, test: Rows) -> Split:
    parts = {"train": train, "validation": validation, "test": test}
    return {name: np.sort(np.asarray(rows, dtype=int)) for name, rows in parts.items()}
