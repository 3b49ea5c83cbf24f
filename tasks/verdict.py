"""The sentences of a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tasks.metrics import METRICS, Estimate

if TYPE_CHECKING:
    from tasks.comparison import Comparison, Row

DESCRIPTORS = ("forest-morgan", "forest-morgan-descriptors", "ridge-descriptors", "gp-tanimoto")


def sentences(comparison: Comparison) -> list[str]:
    """Who leads, what reprogramming is worth against each kind of opponent, what did not run."""
    ranked = comparison.ranked()
    said = [_leader(comparison, ranked)] if ranked else []
    for row in comparison.ranked("reprogrammed"):
        said += _against_baselines(comparison, row)
    said += _against_controls(comparison)
    for row in comparison.rows:
        if row.error:
            said.append(f"{row.method} did not run: {row.error}.")
    return said


def _leader(comparison: Comparison, ranked: list[Row]) -> str:
    task, first = comparison.task, ranked[0]
    train, test = len(task.split["train"]), len(task.split["test"])
    extreme = "highest" if METRICS[comparison.metric].larger_is_better else "lowest"
    text = (
        f"On {task.name} with {train} training rows, {first.method} has the {extreme} {_name(comparison)} on {test} test rows: "
        f"{_value(comparison, first)}"
    )
    ties = [r.method for r in ranked[1:] if _word(_gain(comparison, first, r)) == "not distinguishable"]
    if len(ranked) == 1:
        return text + "."
    if not ties:
        return text + ", better than every other method."
    return text + f"; not distinguishable from it: {', '.join(ties)}."


def _against_baselines(comparison: Comparison, row: Row) -> list[str]:
    said = []
    best = next(iter(comparison.ranked("baseline")), None)
    if best is not None:
        said.append(_compared(comparison, row, best, f"the best baseline, {best.method}"))
    simple = next((r for r in comparison.ranked("baseline") if r.method in DESCRIPTORS), None)
    if simple is None:
        return said
    gain = _gain(comparison, row, simple)
    if _word(gain) == "worse":
        said.append(f"A descriptor baseline, {simple.method}, beats {row.method} here: use the baseline for this task.")
    elif _word(gain) == "not distinguishable":
        said.append(
            f"A descriptor baseline, {simple.method}, does as well as {row.method} as far as these test rows can tell, "
            "and costs less."
        )
    elif simple is not best:
        said.append(_compared(comparison, row, simple, f"the best descriptor baseline, {simple.method}"))
    return said


def _against_controls(comparison: Comparison) -> list[str]:
    done = {row.method: row for row in comparison.ranked()}
    row = done.get("reprogrammed")
    if row is None:
        return []
    meaning = {
        "random-weights": ("what the source learned in pretraining helps", "pretraining is not shown to help",
                           "pretraining hurts here"),
        "no-source": ("the source helps", "the source is not shown to help", "the source hurts here"),
        "linear-probe": ("reprogramming beats the linear probe", "reprogramming is not shown to beat the linear probe",
                         "the linear probe beats reprogramming"),
        "gp-probe": ("the program itself adds to the same readout", "the program itself is not shown to add anything",
                     "the program makes it worse than the same readout without one"),
    }  # fmt: skip
    said = []
    for name, (better, same, worse) in meaning.items():
        if name in done:
            gain = _gain(comparison, row, done[name])
            if math.isnan(gain.value):
                continue
            word = {"better": better, "not distinguishable": same, "worse": worse}[_word(gain)]
            said.append(_compared(comparison, row, done[name], name)[:-1] + f": {word}.")
    return said


def _compared(comparison: Comparison, row: Row, other: Row, called: str) -> str:
    gain = _gain(comparison, row, other)
    values = f"{_name(comparison)} {row.metrics[comparison.metric].value:.3g} against {other.metrics[comparison.metric].value:.3g}"
    if math.isnan(gain.value):
        return f"{row.method} cannot be compared with {called}: the test rows have no {_name(comparison)}."
    interval = f"95 % interval {gain.low:.2g} to {gain.high:.2g}"
    if _word(gain) == "not distinguishable":
        return f"{row.method} is not distinguishable from {called} ({values}, gain {gain.value:.2g}, {interval})."
    return f"{row.method} is {_word(gain)} than {called} ({values}, gain {gain.value:.2g}, {interval})."


def _gain(comparison: Comparison, first: Row, second: Row) -> Estimate:
    return comparison.difference(first.method, second.method)


def _word(gain: Estimate) -> str:
    from tasks.comparison import verdict_word

    return verdict_word(gain)


def _name(comparison: Comparison) -> str:
    from tasks.comparison import NAMES

    return NAMES[comparison.metric]


def _value(comparison: Comparison, row: Row) -> str:
    estimate = row.metrics[comparison.metric]
    units = f" {comparison.task.units}" if comparison.task.units and comparison.task.kind == "regression" else ""
    return f"{estimate.value:.3g}{units} (95 % interval {estimate.low:.3g} to {estimate.high:.3g})"
