"""A report: measured rows with n, seed and interval, what they mean in words, and what is needed to repeat them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprogram.card import readouts_table
from reprogram.errors import DataError
from reprogram.files import atomic_folder
from reprogram.model import versions
from tasks.comparison import NAMES, Comparison
from tasks.metrics import METRICS, Estimate, rank_metric
from tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCHEMA = 1
JSON, MARKDOWN = "report.json", "report.md"


def available_cores() -> int:
    """Cores this process may use, which containers limit below what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Row:
    """One metric of one method: its value, 95 % interval, number of labels behind it, and what it cost in seconds."""

    method: str
    group: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    seconds: float | None = None
    train_size: int | None = None


@dataclass(frozen=True)
class Report:
    """What was measured on one task. Written as `report.json` (schema below) and `report.md`.

    JSON: `schema` (1), `task`, `kind`, `metric` (the one that ranks), `units`, `rows` (the fields of `Row`; a value that
    does not exist is null), `verdict` and `notes` (sentences), `data` (what was read, dropped and merged), `versions`,
    `cores`.
    """

    task: str
    kind: str
    units: str = ""
    rows: tuple[Row, ...] = ()
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)
    cores: int = field(default_factory=available_cores)

    @property
    def metric(self) -> str:
        """The metric that ranks methods of this kind of task."""
        return rank_metric(self.kind)

    @property
    def label(self) -> str:
        """The ranking metric as an axis shows it, with units."""
        return (
            f"{NAMES[self.metric]} ({self.units})" if self.units and self.kind == "regression" else NAMES[self.metric]
        )

    @classmethod
    def of(cls, comparison: Comparison, **data: Any) -> Report:
        """The report of a comparison; `data` joins what is said about the rows read. One method alone gets no verdict."""
        task, size = comparison.task, len(comparison.task.split["train"])
        rows = [
            one
            for row in comparison.rows
            for one in measured(
                row.method, row.group, row.metrics, seed=comparison.seed, seconds=row.seconds, train_size=size
            )
        ]
        verdict = tuple(comparison.verdict()) if len(comparison.rows) > 1 else ()
        return cls(task.name, task.kind, task.units, tuple(rows), verdict, data=read_facts(task) | data)

    def ranked(self, metric: str | None = None) -> list[Row]:
        """Rows of one metric (the ranking one by default), best first; rows without a value last."""
        metric = metric or self.metric
        sign = -1 if METRICS[metric].larger_is_better else 1
        rows = [row for row in self.rows if row.metric == metric]
        return sorted(rows, key=lambda row: (math.isnan(row.value), sign * row.value))

    def to_frame(self) -> pd.DataFrame:
        """One line per row, the fields of `Row` as columns."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=[f.name for f in fields(Row)])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON: NaN becomes None."""
        facts = {"schema": SCHEMA, "task": self.task, "kind": self.kind, "metric": self.metric, "units": self.units}
        facts |= {"rows": [asdict(row) for row in self.rows], "verdict": self.verdict, "notes": self.notes}
        return plain(facts | {"data": self.data, "versions": self.versions, "cores": self.cores})

    def to_json(self) -> str:
        """The report as standard JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_markdown(self) -> str:
        """Verdict and one table: a line per method, a column per metric, value and 95 % interval in each cell."""
        names = [name for name in METRICS if any(row.metric == name for row in self.rows)]
        head = ["method", "group", *names, "seconds"]
        said = [f"- {sentence}" for sentence in (*self.verdict, *self.notes)]
        lines = [f"# {self.task}", "", *(said and [*said, ""])]
        lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in self.table(names)]
        first = self.rows[0] if self.rows else None
        facts = f"{first.n} test labels, seed {first.seed}, " if first else ""
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        units = f" Errors are in {self.units}." if self.units else ""
        lines += ["", f"Values with 95 % bootstrap intervals; {facts}{self.cores} cores.{units} Made with {made}.", ""]
        return "\n".join([*lines, *self.account()])

    def account(self) -> list[str]:
        """Markdown lines on the rows and on how the model was made, as far as they are known."""
        data, lines = self.data, []
        counts = ("read", "kept", "dropped", "merged", "conflicts", "train_rows", "validation_rows", "test_rows")
        if rows := [f"{key.removesuffix('_rows')} {data[key]}" for key in counts if key in data]:
            lines += [f"Rows of {data.get('origin', 'the data')}: {', '.join(rows)}.", ""]
        made = {**data.get("parts", {}), **data.get("training", {})}
        if made:
            facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in made.items() if value is not None)
            lines += [f"Made with {facts}.", ""]
        return [*lines, *readouts_table(data.get("readouts", []))]

    def table(self, metrics: Iterable[str]) -> list[list[str]]:
        """Cells of a table: method, group, one cell per metric, seconds; best method first, one line per method."""
        found = {(row.method, row.train_size, row.metric): row for row in self.rows}
        cells = []
        for row in self.ranked():
            values = [found.get((row.method, row.train_size, name)) for name in metrics]
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            cells.append([row.method, row.group, *map(show, values), seconds])
        return cells

    def plot(self, ax: Axes | None = None) -> Axes:
        """The ranking metric of every method with its interval (`reprogram.plot.comparison`)."""
        from reprogram.plot import comparison

        frame = self.to_frame()
        larger = METRICS[self.metric].larger_is_better
        return comparison(frame[frame["metric"] == self.metric], ax, larger_is_better=larger, label=self.label)

    def write(self, folder: str | Path) -> Path:
        """Write `report.json` and `report.md` into `folder`, all or nothing; returns the folder."""
        text, table = self.to_json() + "\n", self.to_markdown()
        with atomic_folder(folder) as writing:
            (writing / JSON).write_text(text, encoding="utf-8")
            (writing / MARKDOWN).write_text(table, encoding="utf-8")
        return Path(folder)

    @classmethod
    def read(cls, folder: str | Path) -> Report:
        """The report in `folder` (or the JSON file itself).

        Raises: DataError when there is none, or it is damaged or of a newer schema.
        """
        path = Path(folder) / JSON if Path(folder).is_dir() else Path(folder)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] > SCHEMA:
                raise DataError(f"expected report schema {SCHEMA} or older, got {content['schema']}; upgrade reprogram")
            rows = tuple(Row(**{k: _number(k, v) for k, v in row.items()}) for row in content["rows"])
            kept = {k: content[k] for k in ("task", "kind", "units", "data", "versions", "cores")}
            return cls(rows=rows, verdict=tuple(content["verdict"]), notes=tuple(content["notes"]), **kept)
        except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                f"expected a readable {JSON} in {folder}, got {type(error).__name__}; make it again"
            ) from error


def read_facts(task: Task) -> dict[str, Any]:
    """Counts of rows read, kept, dropped, merged, in conflict, and of every part."""
    read = task.report
    facts = {"origin": read.origin, "read": read.read, "kept": read.kept, "dropped": len(read.dropped)}
    facts |= {"merged": len(read.merged), "conflicts": len(read.conflicts), "notes": list(read.notes)}
    return facts | {f"{part}_rows": len(rows) for part, rows in task.split.items()}


def measured(method: str, group: str, estimates: Mapping[str, Estimate], **facts: Any) -> list[Row]:
    """Rows of one method from `tasks.evaluate`; `facts` are seed, seconds and train_size."""
    return [Row(method, group, name, e.value, e.low, e.high, e.n, **facts) for name, e in estimates.items()]


def show(value: Row | Estimate | None) -> str:
    """A value with its interval, three significant digits; a dash where there is none."""
    if value is None or math.isnan(value.value):
        return "–"
    if math.isnan(value.low):
        return f"{value.value:.3g}"
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"


def plain(value: Any) -> Any:
    """JSON-able copy: NaN and infinities become None, tuples lists, numpy numbers Python ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(key: str, value: Any) -> Any:
    return math.nan if value is None and key in ("value", "low", "high") else value
