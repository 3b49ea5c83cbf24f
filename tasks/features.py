"""Frozen features computed once and shared by every method that reads them, in memory and, if wanted, on disk."""

from __future__ import annotations

import hashlib
import re
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reprogram.features import source_features
from reprogram.files import atomic_file
from reprogram.programs import Identity
from reprogram.sources import Codec, Record, Source, load

Weights = Literal["pretrained", "random"]


class Remembered:
    """A codec that encodes each input once: descriptors and graphs cost more than many a network."""

    def __init__(self, codec: Codec, known: dict[Any, Record]):
        self._codec, self._known = codec, known

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self._codec, name)

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        """Records of the inputs in their order; only those not seen before are encoded."""
        new = {name: value for name, value in named(inputs).items() if name not in self._known}
        self._known.update(zip(new, self._codec.encode(list(new.values())) if new else [], strict=True))
        return [self._known[name_of(value)] for value in inputs]


class FeatureTable:
    """The frozen features of inputs under sources, each computed once.

    `table.features("minimol", smiles)` is (n, D) float32, rows in the order of the inputs. One table serves all methods,
    label budgets and seeds on the same inputs. With a `folder` the features of a whole task are also kept as one npz
    file per source and input list, named by the digest of the source's weights and a hash of its revision and the
    inputs, so that a benchmark over splits and seeds computes them once. A damaged file is computed again.

    Raises: ValueError when a source is absent (the sentence has the install command) or an input cannot be read.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = None if folder is None else Path(folder)
        self._sources: dict[str, Source] = {}
        self._encoded: dict[str, dict[Any, Record]] = {}  # records by source name: random weights read the same ones
        self._rows: dict[str, dict[Any, np.ndarray]] = {}
        self._spent: dict[str, tuple[float, int]] = {}  # seconds and rows of what was computed, by source

    def source(self, source: str | Source, *, weights: Weights = "pretrained", seed: int = 0, **options: Any) -> Source:
        """A source by name, loaded once; a `Source` is handed back as it is unless random weights are asked for."""
        if isinstance(source, Source):
            return source.randomised(seed) if weights == "random" else source
        label = f"{source} {sorted(options.items())}"
        name = f"{label}:random{seed}" if weights == "random" else label
        if name not in self._sources:
            loaded = load(source, weights=weights, seed=seed, **options)
            loaded.codec = Remembered(loaded.codec, self._encoded.setdefault(label, {}))
            self._sources[name] = loaded
        return self._sources[name]

    def prepare(self, source: str | Source, inputs: Sequence[str], needed: Sequence[str] | None = None) -> None:
        """Compute features ahead: of `needed` (by default all) inputs, or of all of them when they go to the disk."""
        found = self.source(source)
        if self.folder is None:
            self._compute(found, inputs if needed is None else needed)
            return
        path = self.folder / f"{_key(found)}-{_hash([found.revision, *inputs])}.npz"
        if not self._read(path, found, inputs):
            self._compute(found, inputs)
            known, (seconds, rows) = self._rows[_key(found)], self._spent[_key(found)]
            with atomic_file(path) as writing, writing.open("wb") as file:
                table = np.stack([known[name_of(value)] for value in inputs])
                np.savez_compressed(file, features=table, seconds=np.array([seconds, rows]))

    def features(self, source: str | Source, inputs: Sequence[str]) -> np.ndarray:
        """(n, D) float32 features of the inputs, in their order; only those not seen before are computed."""
        found = self.source(source)
        self._compute(found, inputs)
        known = self._rows[_key(found)]
        return np.stack([known[name_of(value)] for value in inputs])

    def seconds(self, source: str | Source, count: int) -> float:
        """What the features of `count` inputs cost, from the mean over the rows computed here or read with their cost."""
        seconds, rows = self._spent.get(_key(self.source(source)), (0.0, 0))
        return seconds / rows * count if rows else 0.0

    def _compute(self, source: Source, inputs: Sequence[str]) -> None:
        known = self._rows.setdefault(_key(source), {})
        missing = {name: value for name, value in named(inputs).items() if name not in known}
        if not missing:
            return
        start, program = time.perf_counter(), Identity()
        program.bind(source)
        values = (
            source_features(program, source, program.encode(list(missing.values()))).cpu().numpy().astype(np.float32)
        )
        seconds, rows = self._spent.get(_key(source), (0.0, 0))
        self._spent[_key(source)] = (seconds + time.perf_counter() - start, rows + len(missing))
        known.update(zip(missing, values, strict=True))

    def _read(self, path: Path, source: Source, inputs: Sequence[str]) -> bool:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                values, (seconds, rows) = saved["features"], saved["seconds"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False
        if values.shape != (len(inputs), source.width):
            return False
        self._rows.setdefault(_key(source), {}).update(zip(map(name_of, inputs), values, strict=True))
        self._spent.setdefault(_key(source), (float(seconds), int(rows)))
        return True


def _key(source: Source) -> str:
    """Name, weights, and options such as the size of images."""
    plain = ("_target_", "name_or_module", "revision", "weights", "seed")
    options = [f"{key}={value}" for key, value in (source.spec or {}).items() if key not in plain]
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', '-'.join([source.name, *options]))}-{source.digest}"


def _hash(texts: Sequence[Any]) -> str:
    return hashlib.sha256("\n".join(map(name_of, texts)).encode()).hexdigest()[:16]


def named(inputs: Sequence[Any]) -> dict[str, Any]:
    """Different inputs by name, in order."""
    return {name_of(value): value for value in inputs}


def name_of(value: Any) -> str:
    """A text itself; of an array or picture a hash of what it holds."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
