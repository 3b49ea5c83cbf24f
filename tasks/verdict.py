"""The sentences of a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tasks.metrics import METRICS, Estimate

if TYPE_CHECKING:
    from tasks.comparison import Comparison, Row

NAMES = {"rmse": "RMSE", "mae": "MAE", "r2": "R²", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC", "brier": "Brier score",
         "accuracy": "accuracy", "log_loss": "log loss"}  # fmt: skip
DESCRIPTORS = ("forest-morgan", "forest-morgan-descriptors", "ridge-descriptors", "gp-tanimoto")


def verdict_word(gain: Estimate) -> str:
    """ "better" or "worse" where the interval of a gain leaves out zero, else "not distinguishable"."""
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "not distinguishable"


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
        f"On {task.name} with {train} training rows, {first.method} has the {extreme} {NAMES[comparison.metric]} on {test} test rows: "
        f"{_value(comparison, first)}"
    )
    ties = [r.method for r in ranked[1:] if verdict_word(_gain(comparison, first, r)) == "not distinguishable"]
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
    if verdict_word(gain) == "worse":
        said.append(f"A descriptor baseline, {simple.method}, beats {row.method} here: use the baseline for this task.")
    elif verdict_word(gain) == "not distinguishable":
        said.append(
            f"A descriptor baseline, {simple.method}, does as well as {row.method} as far as these test rows can tell, "
            "and costs less."
        )
    elif simple is not best:
        said.append(_compared(comparison, row, simple, f"the best descriptor baseline, {simple.method}"))
    return said


# (method, its control, what it means when the method is better, not distinguishable, worse)
MEANINGS = (
    ("auto", "auto-frozen", "the reprogrammed source adds to the stack", "the reprogrammed source is not shown to add anything",
     "the reprogrammed source makes the stack worse"),
    ("reprogrammed", "random-weights", "what the source learned in pretraining helps", "pretraining is not shown to help",
     "pretraining hurts here"),
    ("reprogrammed", "no-source", "the source helps", "the source is not shown to help", "the source hurts here"),
    ("reprogrammed", "linear-probe", "reprogramming beats the linear probe",
     "reprogramming is not shown to beat the linear probe", "the linear probe beats reprogramming"),
    ("reprogrammed", "no-program", "the program itself adds to the same readouts",
     "the program itself is not shown to add anything", "the program makes it worse than the same readouts without one"),
)  # fmt: skip


def _against_controls(comparison: Comparison) -> list[str]:
    done = {row.method: row for row in comparison.ranked()}
    said = []
    for name, control, better, same, worse in MEANINGS:
        if name not in done or control not in done:
            continue
        gain = _gain(comparison, done[name], done[control])
        text = _compared(comparison, done[name], done[control], control)
        meaning = {"better": better, "not distinguishable": same, "worse": worse}[verdict_word(gain)]
        said.append(text if math.isnan(gain.value) else f"{text[:-1]}: {meaning}.")
    return said


def _compared(comparison: Comparison, row: Row, other: Row, called: str) -> str:
    gain = _gain(comparison, row, other)
    values = f"{NAMES[comparison.metric]} {row.metrics[comparison.metric].value:.3g} against {other.metrics[comparison.metric].value:.3g}"
    if math.isnan(gain.value):
        return f"{row.method} cannot be compared with {called}: the test rows have no {NAMES[comparison.metric]}."
    interval = f"95 % interval {gain.low:.2g} to {gain.high:.2g}"
    if verdict_word(gain) == "not distinguishable":
        return f"{row.method} is not distinguishable from {called} ({values}, gain {gain.value:.2g}, {interval})."
    return f"{row.method} is {verdict_word(gain)} than {called} ({values}, gain {gain.value:.2g}, {interval})."


def _gain(comparison: Comparison, first: Row, second: Row) -> Estimate:
    return comparison.difference(first.method, second.method)


def _value(comparison: Comparison, row: Row) -> str:
    estimate = row.metrics[comparison.metric]
    units = f" {comparison.task.units}" if comparison.task.units and comparison.task.kind == "regression" else ""
    return f"{estimate.value:.3g}{units} (95 % interval {estimate.low:.3g} to {estimate.high:.3g})"
