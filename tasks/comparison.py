"""Methods side by side on one task: the table, paired differences with intervals, and what they say in words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from reprogram.errors import DataError
from tasks.metrics import METRICS, Estimate, bootstrap_draws, checked, interval_of, macro, rank_metric
from tasks.task import Task
from tasks.verdict import NAMES, sentences

if TYPE_CHECKING:
    import pandas

Array = np.ndarray


@dataclass(frozen=True)
class Row:
    """One method: its metrics on the test rows, seconds for features, fit and prediction, numbers learned.

    A method that could not run has no metrics and says why in `error`.
    """

    method: str
    group: str
    metrics: dict[str, Estimate] = field(default_factory=dict)
    seconds: float | None = None
    trainable: int | None = None
    error: str = ""
    summary: str = ""


def paired_difference(
    kind: str, y: Array, first: Array, second: Array, *, metric: str | None = None, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """How much better `first` predicts `y` than `second`: positive is better, whichever way the metric points.

    Both are measured on the same bootstrap draws of the rows (`scipy.stats.bootstrap`), so what makes a draw easy or
    hard for both cancels. The 95 % percentile interval speaks of other test rows, not of other training rows.
    """
    name = metric or rank_metric(kind)
    y, first = checked(kind, y, first)
    second = checked(kind, y, second)[1]
    known, function = ~np.isnan(y), METRICS[name].function
    sign = 1 if METRICS[name].larger_is_better else -1

    def gain(weights: Array) -> Array:
        return sign * (macro(function, y, first, known, weights) - macro(function, y, second, known, weights))

    draws = bootstrap_draws(gain, len(y), seed, resamples) if len(y) > 1 else np.zeros(0)
    return interval_of(float(gain(np.ones(len(y)))), draws, int(known.sum()))


@dataclass(frozen=True, eq=False)
class Comparison:
    """The answer of `compare`: rows, best first within `ranked`, and the test predictions behind them.

    `predictions` maps a method to its predictions of the test rows, `models` a reprogrammed method to its trained model.
    """

    task: Task
    rows: tuple[Row, ...]
    predictions: dict[str, Array]
    seed: int = 0
    models: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return self.task.metric

    def __getitem__(self, method: str) -> Row:
        for row in self.rows:
            if row.method == method:
                return row
        raise DataError(f"expected a method among {', '.join(r.method for r in self.rows)}, got {method!r}")

    def ranked(self, *groups: str) -> list[Row]:
        """Rows with a result, best first, of these groups or of all."""
        sign = -1 if METRICS[self.metric].larger_is_better else 1
        done = [r for r in self.rows if r.metrics and (not groups or r.group in groups)]
        return sorted(done, key=lambda r: (math.isnan(v := r.metrics[self.metric].value), sign * v))

    def difference(self, first: str, second: str) -> Estimate:
        """How much better `first` is than `second` on the test rows, paired (see `paired_difference`)."""
        for name in (first, second):
            if self[name].error:
                raise DataError(f"expected a method with a result, got {name!r}, which did not run: {self[name].error}")
        y = self.task.part("test")[1]
        given = self.predictions[first], self.predictions[second]
        return paired_difference(self.task.kind, y, *given, metric=self.metric, seed=self.seed)

    def verdict(self) -> list[str]:
        """What the table says, in plain sentences; "better" and "worse" only where the paired interval leaves out zero.

        The best baseline is picked on the very test rows it is then compared on, which flatters it: a reprogrammed
        model called better is so against a favoured opponent.
        """
        return sentences(self)

    def to_frame(self) -> pandas.DataFrame:
        """One line per method, best first; each metric with its interval in `<metric>_low` and `<metric>_high`."""
        import pandas

        return pandas.DataFrame([_flat(row) for row in [*self.ranked(), *(r for r in self.rows if r.error)]])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: NaN becomes None; predictions are left out."""
        train, test = (len(self.task.split[part]) for part in ("train", "test"))
        facts: dict[str, Any] = {
            "task": self.task.name,
            "kind": self.task.kind,
            "metric": self.metric,
            "units": self.task.units,
        }
        facts |= {"train": train, "test": test, "seed": self.seed}
        return facts | {"rows": [_plain(asdict(row)) for row in self.rows], "verdict": self.verdict()}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_markdown(self) -> str:
        """The table as Markdown, best first, then the verdict."""
        shown = _columns(self)
        units = {"rmse": self.task.units, "mae": self.task.units}
        titles = [f"{NAMES[m]} ({units[m]})" if units.get(m) else NAMES[m] for m in shown]
        lines = [_line(["method", "group", *titles, "trainable", "seconds"]), _line(["---"] * (len(shown) + 4))]
        for row in self.ranked():
            facts = [
                "" if row.trainable is None else f"{row.trainable:,}",
                "" if row.seconds is None else f"{row.seconds:.1f}",
            ]
            lines.append(_line([row.method, row.group, *(str(row.metrics[m]) for m in shown), *facts]))
        lines += [
            _line([r.method, r.group, f"did not run: {r.error}", *[""] * (len(shown) + 1)])
            for r in self.rows
            if r.error
        ]
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.verdict())]) + "\n"


def _columns(comparison: Comparison) -> list[str]:
    """Metrics with a value for some method, the ranking one first."""
    names = [comparison.metric, *METRICS]
    seen = [m for row in comparison.rows for m, e in row.metrics.items() if not math.isnan(e.value)]
    return [m for m in dict.fromkeys(names) if m in seen]


def _flat(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = {"method": row.method, "group": row.group}
    for name, e in row.metrics.items():
        values |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high, "n": e.n}
    return values | {"seconds": row.seconds, "trainable": row.trainable, "error": row.error}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
