"""Tables of the rewrites benchmark: how far models move, by kind of rewrite, and what other SMILES in training bring."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from benchmarks.summary import spread

COLUMNS = {
    "regression": {
        "error_given": "RMSE", "error_rewritten": "RMSE over rewrites", "error_worst": "RMSE, worst rewrite", "growth": "growth",
        "change": "mean change", "change_95": "95th percentile", "worst_change": "largest change",
    },
    "classification": {
        "roc_auc": "ROC-AUC", "accuracy_given": "accuracy", "accuracy_rewritten": "accuracy over rewrites",
        "accuracy_worst": "accuracy, worst rewrite", "flip_rate": "flip rate", "flipped": "molecules flipped",
    },
}  # fmt: skip
GAINS = {
    "regression": ("error_given", "error_rewritten", "error_worst", "change", "worst_change"),
    "classification": ("error_given", "error_rewritten", "error_worst", "flip_rate", "flipped"),
}
KEY = ["source", "labels", "count", "seed"]


def tables(rows: list[dict]) -> str:
    """Every table as Markdown, task by task."""
    kept = [row for row in rows if "rewrites" in row]
    if not kept:
        return "nothing measured yet\n"
    data = pd.DataFrame([flat(row) for row in kept])
    parts = [check(data)]
    for (task, kind, labels, count), some in data.groupby(["task", "kind", "labels", "count"], sort=False):
        tested = "–".join(str(n) for n in sorted({some.test.min(), some.test.max()}))
        parts.append(f"### {task}: {labels} labels, {tested} test molecules, at most {count} rewrites of each")
        parts += [moved(some, kind), by_kind(some, kind), gains(some, kind)]
    return "\n\n".join(part for part in parts if part) + "\n"


def flat(row: dict) -> dict:
    """Plain numbers of a row: values without their own intervals, moves by kind of rewrite as columns."""
    found = {
        key: value[0] if isinstance(value, list) else value for key, value in row.items() if key != "moved_by_kind"
    }
    found |= {f"moved {form}": value for form, value in row["moved_by_kind"].items()}
    if row["kind"] == "classification":
        found |= {
            key.replace("error", "accuracy"): 1 - found[key]
            for key in ("error_given", "error_rewritten", "error_worst")
        }
    return found


def check(data: pd.DataFrame) -> str:
    """What was drawn, and whether it is what it should be."""
    total, refused = data.rewrites.sum(), data.refused.sum()
    equal = (data.same * data.rewrites).sum() / total
    return (
        f"{total} rewrites read, {refused} refused as too long for a source; {100 * equal:.2f} % have the InChI key of their "
        "molecule."
    )


def moved(data: pd.DataFrame, kind: str) -> str:
    """A line per source and training: mean and 95 % interval over seeds."""
    columns = COLUMNS[kind]
    lines = header("source", "training", "seeds", *columns.values(), "refused", "seconds to train")
    for (source, method), part in groups(data):
        cells = [str(len(part)), *(shown(part[key].to_numpy()) for key in columns)]
        refused = part.refused.sum() / (part.refused + part.rewrites).sum()
        lines.append(line(source, method, *cells, f"{refused:.1%}", f"{part.seconds.mean():.0f}"))
    return "\n".join(lines)


def by_kind(data: pd.DataFrame, kind: str) -> str:
    """Mean change, or flip rate, under each kind of rewrite alone."""
    forms = [name for name in data if name.startswith("moved ") and data[name].notna().any()]
    what = "mean change" if kind == "regression" else "flip rate"
    lines = header("source", "training", *(f"{what}, {name.removeprefix('moved ')}" for name in forms))
    for (source, method), part in groups(data):
        lines.append(line(source, method, *(shown(part[name].to_numpy()) for name in forms)))
    return "\n".join(lines)


def gains(data: pd.DataFrame, kind: str) -> str:
    """Each training with rewrites over the training as given, paired by source and seed; controls have no second one."""
    lines = header("training", "pairs", *(f"{name}, ratio to as given" for name in GAINS[kind]))
    for method in (name for name in dict.fromkeys(data.method) if name != "as given"):
        ratios = [paired(data, method, key) for key in GAINS[kind]]
        lines.append(line(method, str(max(map(len, ratios))), *map(shown, ratios)))
    return "\n".join(lines) if len(lines) > 2 else ""


def paired(data: pd.DataFrame, method: str, key: str) -> np.ndarray:
    """Ratio of a measure to that of the training as given, one per source and seed; without pairs whose divisor is zero."""
    wide = data.pivot_table(index=KEY, columns="method", values=key)
    pair = wide[["as given", method]].dropna()
    pair = pair[pair["as given"] > 0]
    return (pair[method] / pair["as given"]).to_numpy()


def shown(values: np.ndarray) -> str:
    """Mean and 95 % interval; a single value has none."""
    known = values[~np.isnan(values)]
    return f"{known[0]:.3f}" if len(known) == 1 else spread(known)


def groups(data: pd.DataFrame) -> Iterable[tuple[tuple[str, str], pd.DataFrame]]:
    return data.groupby(["source", "method"], sort=False)


def header(*names: str) -> list[str]:
    return [line(*names), "| --- " * len(names) + "|"]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
