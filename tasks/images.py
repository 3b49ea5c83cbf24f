"""Image tasks: scikit-learn's digits, Fashion-MNIST where Debian's package has put it, folders, hub data sets."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError
from reprogram.sources import FeatureCodec, Features, Source
from tasks.arrays import from_arrays
from tasks.task import Task

FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_INSTALL = "apt-get install dataset-fashion-mnist"
BUFFER = 1000  # rows of a stream among which the next one is drawn
CLOTHES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def digits(*, seed: int = 0, **options: Any) -> Task:
    """1797 handwritten digits, 8×8 grey, from scikit-learn; options are those of `from_arrays`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = list((data.images / 16).astype(np.float32))
    options = {
        "name": "digits", "fractions": (0.5, 0.1, 0.4), "kind": "classification", "license": "CC-BY-4.0",
        "source": "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, doi:10.24432/C50P49",
    } | options  # fmt: skip
    return from_arrays(images, data.target, modality="images", seed=seed, **options)


def fashion_mnist(*, seed: int = 0, folder: str | Path = FASHION, **options: Any) -> Task:
    """70,000 grey 28×28 pictures of clothes in ten classes; 10,000 are the test part, as published.

    Reference: Xiao, Rasul & Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.
    Raises: DataError with the command that installs it when it is absent.
    """
    folder = Path(folder)
    parts = {"train": "train", "t10k": "test"}
    files = [folder / f"{part}-{kind}-ubyte.gz" for part in parts for kind in ("images-idx3", "labels-idx1")]
    if not all(file.is_file() for file in files):
        raise DataError(f"expected Fashion-MNIST in {folder}, got none; run: {FASHION_INSTALL}")
    images = [np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16) for file in files[::2]]
    labels = [np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=8) for file in files[1::2]]
    words = [word for word, part in zip(parts.values(), labels, strict=True) for _ in part]
    options = {
        "name": "fashion-mnist", "classes": CLOTHES, "license": "MIT", "split": words,
        "source": "Xiao et al., Fashion-MNIST, 2017, arXiv:1708.07747",
    } | options  # fmt: skip
    pictures = list(np.concatenate(images).reshape(-1, 28, 28))
    return from_arrays(pictures, np.concatenate(labels).astype(int), modality="images", seed=seed, **options)


def image_folder(folder: str | Path, *, seed: int = 0, **options: Any) -> Task:
    """Pictures in folders named like their class, `root/cat/1.png`, or like part and class, `root/train/cat/1.png`.

    Raises: DataError for a folder without pictures in at least two classes.
    """
    from tasks.data import load_task

    return load_task(str(folder), modality="images", seed=seed, **options)


def from_dataset(
    dataset: Any, *, image: str = "image", label: str = "label", take: int | None = None, seed: int = 0, **options: Any
) -> Task:
    """A `datasets.Dataset`, an `IterableDataset`, or several as parts in a dict, with a column of pictures and of labels.

    `take` reads only so many rows of each part, drawn by `seed`: a stream (`streaming=True`) is read as far as its shuffle
    buffer of `take` rows, or 1000, wants, and never whole.

    Raises: DataError for a missing column, and for a stream without `take`.
    """
    parts = dict(dataset) if isinstance(dataset, dict) else {"": dataset}
    inputs: list[Any] = []
    labels: list[Any] = []
    words: list[str] = []
    for word, part in parts.items():
        pictures, theirs = read_columns(part, (image, label), take, seed)
        inputs, labels, words = inputs + pictures, labels + theirs, words + [word] * len(pictures)
        if names := getattr((part.features or {}).get(label), "names", None):
            options.setdefault("classes", names)
    if len(parts) > 1:
        options.setdefault("split", words)
    return from_arrays(
        inputs, labels, modality="images", seed=seed, **{"name": "dataset", "kind": "classification"} | options
    )


def read_columns(part: Any, columns: Sequence[str], take: int | None, seed: int) -> list[list[Any]]:
    """Columns of a data set, or of `take` rows of it drawn by `seed`."""
    streamed = not hasattr(part, "__len__")
    if streamed and take is None:
        raise DataError("expected take=, how many rows to read from a stream, got none; pass for example take=1000")
    names = part.column_names or list(next(iter(part), {}))  # a stream may not know its columns before it is read
    if missing := [column for column in columns if column not in names]:
        raise DataError(f"expected a column {missing[0]!r} in the data set, got {', '.join(names)}")
    if take is not None:
        buffer = {"buffer_size": max(take, BUFFER)} if streamed else {}
        part = part.shuffle(seed=seed, **buffer).take(take if streamed else min(take, len(part)))
    rows = list(part.select_columns(list(columns)))
    return [[row[column] for row in rows] for column in columns]


def sized(task: Task, rows: dict[str, int], seed: int = 0) -> Task:
    """The same task with no more than so many rows in a part, drawn by `seed`: Fashion-MNIST is large for two cores."""
    from dataclasses import replace

    drawn = np.random.default_rng(seed)
    split = {part: np.asarray(have) for part, have in task.split.items()}
    for part, count in rows.items():
        split[part] = np.sort(drawn.permutation(split[part])[:count])
    return replace(task, split=split)


def flat_pixels(inputs: Sequence[Any], side: int = 16) -> np.ndarray:
    """(n, side²) grey pixels: what a user without a source would fit on."""
    from reprogram.sources.images import as_image, resized

    pictures = (as_image(value, row, 1) for row, value in enumerate(inputs))
    return np.stack([resized(picture, (side, side)).flatten().numpy() for picture in pictures])


def pixel_source(side: int = 16) -> Source:
    """`flat_pixels` as a frozen source of features."""
    names = [f"pixel {i}" for i in range(side * side)]
    return Source(
        Features(names),
        FeatureCodec(lambda inputs: flat_pixels(inputs, side)),
        name="pixels",
        takes="features",
        width=side * side,
    )
