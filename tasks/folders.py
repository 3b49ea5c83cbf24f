"""Data that is no table of its own: folders of pictures, and pairs of .ts files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from tasks.labels import short
from tasks.readers import FROM_ONE, Table, say
from tasks.splits import WORDS

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def picture_folder(root: Path) -> Table:
    """Pictures in folders named like their class, or like part and class; one beside the folders has no class."""
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"expected a file, or a folder with images, got the folder {short(str(root))} without any")
    places = [file.relative_to(root).parts[:-1] for file in files]
    columns: dict[str, Any] = {"file": [str(file.relative_to(root)) for file in files]}
    if any(places):
        columns["class"] = [place[-1] if place else None for place in places]
    parted = all(len(place) > 1 and place[0].lower() in WORDS for place in places)
    if parted:
        columns["part"] = [WORDS[place[0].lower()] for place in places]
    return Table(
        columns, range(1, len(files) + 1), root.name, "file, from 1", structures=list(map(str, files)),
        modality="images", identity="file", parted="part" if parted else None, labelled="class" if "class" in columns else None,
    )  # fmt: skip


def ts_file(file: Path) -> tuple[list[np.ndarray], list[Any] | None]:
    """Series (C, L) of a .ts file and their classes or values; None where it holds none.

    Raises: DataError when aeon is absent, or the file cannot be read or is empty.
    """
    try:
        from aeon.datasets import load_from_ts_file
    except ImportError as error:
        raise DataError("expected aeon to read series, got none; run: pip install aeon") from error
    try:
        found = load_from_ts_file(str(file))
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"expected a .ts file of series, got {short(str(file), 200)} ({say(error)})") from error
    x, y = found if isinstance(found, tuple) else (found, ())
    if not len(x):
        raise DataError(f"expected a .ts file of series, got none in {file.name}")
    series = [np.asarray(one, dtype=np.float32) for one in x]
    if len(y) != len(x):
        return series, None
    return series, [float(v) for v in y] if np.asarray(y).dtype.kind == "f" else [f"class {c}" for c in y]


def series_files(path: Path) -> Table:
    """A .ts file; the test file that lies beside a training file is read with it."""
    ends = {"_TRAIN": "_TEST", "_Train": "_Test", "_train": "_test"}
    stem = next((path.stem.removesuffix(a) + b for a, b in ends.items() if path.stem.endswith(a)), path.stem)
    other = path.with_name(stem + path.suffix)
    return series_table({"train": path, "test": other} if other != path and other.is_file() else {"": path})


def series_table(files: Mapping[str, Path]) -> Table:
    """The series of .ts files by part, one file after the other, with their labels where every file has them."""
    read = {word: ts_file(file) for word, file in files.items()}
    inputs = [series for x, _ in read.values() for series in x]
    columns: dict[str, Any] = {"series": list(range(1, len(inputs) + 1))}
    if labelled := all(y is not None for _, y in read.values()):
        columns["class"] = [label for _, y in read.values() for label in y or ()]
    if parted := len(read) > 1:
        columns["part"] = [word for word, (x, _) in read.items() for _ in x]
    return Table(
        columns, range(1, len(inputs) + 1), next(iter(files.values())).name, FROM_ONE, structures=inputs, modality="series",
        identity="series", parted="part" if parted else None, labelled="class" if labelled else None,
    )  # fmt: skip
