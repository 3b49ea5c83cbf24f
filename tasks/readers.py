"""Files, data frames and data sets as one table of columns; every failure is one sentence."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reprogram.errors import DataError
from tasks.labels import short

SUFFIXES = (".csv", ".tsv", ".parquet", ".sdf", ".ts")
FROM_ZERO = "index, from 0"
FROM_ONE = "record, from 1"
SHEET = "spreadsheet row, the header is row 1"


@dataclass(frozen=True)
class Table:
    """Columns of equal length, the row number of each record as its user counts it, structures when the file has them.

    `order` lists the class names of a column in the order its data set gives them; `parted` names the column that
    says which part a row came from, if the data came in parts, `labelled` the one that holds its label, if the form of the
    data says so, `identity` what only names a row, as `modality` says what its inputs are. Paths in the table start at `folder`.
    """

    columns: Mapping[str, Any]
    rows: Sequence[int]
    origin: str
    numbering: str = FROM_ZERO
    structures: Sequence[Any] | None = None
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parted: str | None = None
    labelled: str | None = None
    identity: str | None = None
    modality: str | None = None
    folder: Path | None = None

    def find(self, name: str) -> str:
        """The column of that name, also when only its case differs."""
        if name in self.columns:
            return name
        alike = [c for c in self.columns if str(c).strip().lower() == str(name).strip().lower()]
        if len(alike) == 1:
            return alike[0]
        there = ", ".join(short(str(c), 40) for c in list(self.columns)[:20])
        more = f" and {len(self.columns) - 20} more" if len(self.columns) > 20 else ""
        raise DataError(f"expected a column {short(name)} in {self.origin}, got {there or 'no columns'}{more}")

    def column(self, name: str) -> list[Any]:
        """The values of a column as plain Python objects."""
        values = self.columns[name]
        try:
            return values.to_pylist() if hasattr(values, "to_pylist") else list(values)
        except Exception as error:  # a decoder of a foreign type may fail in any way
            raise DataError(f"expected readable values in column {short(name)}, got {say(error)}") from None


def read(data: Any) -> Table:
    """A table from a path, a pandas DataFrame, a mapping of columns, a datasets.Dataset or DatasetDict, or a hub id.

    Raises: DataError when it cannot be read or holds no rows.
    """
    if isinstance(data, Table):
        table = data
    elif isinstance(data, str | Path):
        table = _hub(str(data)) if _is_hub_id(data) else read_path(Path(data))
    elif type(data).__module__.split(".")[0] == "datasets":
        table = _dataset(data, type(data).__name__)
    elif hasattr(data, "columns") and hasattr(data, "iloc"):
        names = [str(c) for c in data.columns]
        if len(set(names)) < len(names):
            twice = next(c for c in names if names.count(c) > 1)
            raise DataError(f"expected columns of different names in the data frame, got {short(twice)} twice")
        table = Table({str(c): data[c] for c in data.columns}, range(len(data)), "the data frame")
    elif isinstance(data, Mapping) and data:
        lengths = {len(values) for values in data.values()}
        if len(lengths) != 1:
            raise DataError(f"expected columns of equal length, got lengths {sorted(lengths)}")
        table = Table(dict(data), range(lengths.pop()), "the mapping")
    else:
        raise DataError(f"expected a bundled task, a file, a data frame or a data set, got {type(data).__name__}")
    if not len(table.rows):
        raise DataError(f"expected at least one row of data in {table.origin}, got none")
    return table


def read_path(path: Path) -> Table:
    """A folder of images, a pair of .ts files, or a file."""
    from tasks.folders import picture_folder, series_files

    if path.is_dir():
        return picture_folder(path)
    if path.suffix.lower() == ".ts":
        return series_files(path)
    return replace(read_file(path), folder=path.parent)


def read_file(path: Path) -> Table:
    """A CSV, TSV (also gzipped), Parquet or SDF file."""
    suffixes = [s.lower() for s in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[-2:-1] if packed else suffixes[-1:]) or [""]
    content = _bytes(path, kind[0])
    if packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"expected a complete gzip file, got {say(error)} in {path.name}") from None
    if not content.strip():
        raise DataError(f"expected rows of data in {path.name}, got an empty file")
    if kind[0] == ".parquet":
        return _parquet(content, path.name)
    if kind[0] == ".sdf":
        return _sdf(_text(content, path.name), path.name)
    return _delimited(_text(content, path.name), path.name, "\t" if kind[0] == ".tsv" else ",")


def _bytes(path: Path, kind: str) -> bytes:
    try:
        if kind not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            missing = "" if path.exists() else ", and there is no such file or bundled task"
            raise DataError(f"expected a file that ends in one of {known}, got {short(str(path))}{missing}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"expected an existing file, got {short(str(path), 200)}; check the path") from None
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise DataError(f"expected a readable file, got {short(str(path), 200)}: {reason}") from None
    except DataError:
        raise
    except ValueError:
        raise DataError(f"expected a path, got {short(str(path))}") from None


def _text(content: bytes, name: str) -> str:
    if b"\0" in content:
        raise DataError(f"expected a text table in UTF-8, got binary or UTF-16 content in {name}; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is 0x{content[error.start]:02x}" if error.start < len(content) else "cut off"
        raise DataError(f"expected UTF-8 text, got something else in {name} ({where}); save it as UTF-8") from None


def _delimited(text: str, name: str, separator: str) -> Table:
    import pandas as pd

    header = text.split("\n", 1)[0]
    if separator not in header:
        separator = next((s for s in ("\t", ";", ",") if s in header), separator)
    try:
        with warnings.catch_warnings():
            # a row longer than the header is only a warning to pandas, which then cuts it
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # everything stays text here: what a column means is decided where its row numbers are known
            options = {"dtype": str, "na_filter": False, "skip_blank_lines": False, "index_col": False}
            frame = pd.read_csv(io.StringIO(text), sep=separator, engine="c", on_bad_lines="error", **options)
    except Exception as error:  # pandas raises its own, csv, unicode and memory errors on malformed text
        raise DataError(f"expected a table with equal columns in {name}, got {say(error)}") from None
    cells = {str(c): ["" if v is None or v != v else str(v) for v in frame[c]] for c in frame.columns}
    filled = [i for i in range(len(frame)) if any(values[i].strip() for values in cells.values())]
    kept = {c: [values[i] for i in filled] for c, values in cells.items()}
    return Table(kept, [i + 2 for i in filled], name, SHEET)


def _parquet(content: bytes, name: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise DataError(f"expected a complete Parquet file, got {say(error)} in {name}") from None
    columns = {field.name: table.column(i) for i, field in enumerate(table.schema)}
    return Table(columns, range(1, table.num_rows + 1), name, FROM_ONE)


def _sdf(text: str, name: str) -> Table:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        supplier = Chem.SDMolSupplier()
        supplier.SetData(text.replace("\r\n", "\n"))
        try:
            molecules = [supplier[i] for i in range(len(supplier))]
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"expected an SDF file, got {say(error)} in {name}") from None
    if not any(molecules):
        raise DataError(f"expected an SDF file, got no readable structure in {name} ({len(molecules)} records)")
    properties = [m.GetPropsAsDict(autoConvertStrings=False) if m is not None else {} for m in molecules]
    names = dict.fromkeys(key for record in properties for key in record)
    columns = {key: [record.get(key) for record in properties] for key in names}
    return Table(columns, range(1, len(molecules) + 1), name, FROM_ONE, structures=molecules, modality="molecules")


def _is_hub_id(data: str | Path) -> bool:
    text = str(data)
    plain = text.count("/") == 1 and all(part and part.strip(".") for part in text.split("/"))
    known = any(text.lower().removesuffix(".gz").endswith(suffix) for suffix in SUFFIXES)
    folder = Path(text).parent
    return isinstance(data, str) and plain and not known and "\0" not in text and not folder.exists()


def _hub(name: str) -> Table:
    try:
        import datasets

        data = datasets.load_dataset(name)
    except Exception as error:  # the hub, its cache and every reader behind it raise their own types
        raise DataError(f"expected a file or a data set of the hub, got {short(name)}: {say(error)}") from None
    return _dataset(data, name)


def _dataset(data: Any, origin: str) -> Table:
    import datasets

    if isinstance(data, datasets.Dataset):
        data = data.with_format(None)
        names = {c: tuple(f.names) for c, f in data.features.items() if isinstance(f, datasets.ClassLabel)}
        columns: dict[str, Any] = {c: data[c] for c in data.column_names}
        for column, classes in names.items():
            columns[column] = [None if v is None or v < 0 else classes[v] for v in data[column]]
        return Table(columns, range(len(data)), origin, order=names)
    if isinstance(data, datasets.DatasetDict) and len(data):
        parts = [_dataset(part, origin) for part in data.values()]
        shared = [c for c in parts[0].columns if all(c in part.columns for part in parts)]
        joined: dict[str, Any] = {c: [v for part in parts for v in part.column(c)] for c in shared}
        parted = "split" if "split" not in joined else "part of the data set"
        joined[parted] = [name for name, part in zip(data, parts, strict=True) for _ in part.rows]
        return Table(joined, range(len(joined[parted])), origin, order=parts[0].order, parted=parted)
    raise DataError(f"expected a datasets.Dataset or a DatasetDict with rows, got {type(data).__name__}")


def say(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f'"{short(text, 160)[1:-1]}"' if text else type(error).__name__
