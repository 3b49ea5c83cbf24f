"""Tables of the property benchmark: means with intervals over seeds, paired win counts, mean ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

METRIC = {"regression": "rmse", "classification": "roc_auc"}
CELL = ["task", "split", "size", "seed", "source"]
PAIRS = (
    ("reprogrammed", "linear-probe"), ("reprogrammed", "no-program"), ("reprogrammed", "random-weights"),
    ("reprogrammed", "no-source"), ("auto", "auto-frozen"), ("auto", "stack"), ("auto", "mean"),
    ("auto", "ridge-minimol-descriptors"), ("auto", "ridge-descriptors"), ("auto", "forest-morgan-descriptors"),
)  # fmt: skip


def frame(rows: list[dict]) -> pd.DataFrame:
    """One line per method and cell with `loss`: RMSE, or one minus ROC-AUC, so that less is better everywhere."""
    kept = [r for r in rows if METRIC[r["kind"]] in r]
    table = pd.DataFrame(
        [{k: r[k] for k in (*CELL, "kind", "method", "seconds")} | {"value": r[METRIC[r["kind"]]][0]} for r in kept]
    )
    table["loss"] = np.where(table.kind == "classification", 1 - table.value, table.value)
    return table


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over cells; the value itself for a single one."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap((values,), np.mean, n_resamples=2000, rng=0, method="percentile").confidence_interval
    return float(found.low), float(found.high)


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Mean with its 95 % bootstrap interval, as it stands in a table; NaN are left out."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if not len(known):
        return "–"
    low, high = interval(known)
    return f"{known.mean():.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def wins(table: pd.DataFrame) -> str:
    """Paired comparisons: share of cells won, and the geometric mean of the loss ratio with its interval."""
    wide = table.pivot_table(index=CELL, columns="method", values="loss")
    lines = [
        "| A | B | source | cells | A wins | loss of A / loss of B (95 % interval over cells) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for source, part in wide.groupby(level="source"):
        for a, b in PAIRS:
            if a not in part or b not in part:
                continue
            pair = part[[a, b]].dropna()
            if pair.empty:
                continue
            ratio = np.log((pair[a] / pair[b]).to_numpy())
            low, high = np.exp(interval(ratio))
            won, tied = (ratio < 0).mean(), (ratio == 0).mean()
            share = f"{won:.0%}" + (f" ({tied:.0%} ties)" if tied else "")
            lines.append(
                f"| {a} | {b} | {source} | {len(pair)} | {share} | {np.exp(ratio.mean()):.3f} ({low:.3f} to {high:.3f}) |"
            )
    return "\n".join(lines)


def means(table: pd.DataFrame) -> str:
    """Mean metric over seeds, from three on with its interval, a row per method and a column per task, split and size."""
    cells = list(dict.fromkeys(zip(table.task, table.split, table["size"], strict=True)))
    order = {"50": 0, "100": 1, "200": 2, "full": 3}
    cells = sorted(cells, key=lambda c: (c[0], c[1], order.get(c[2], 9)))
    lines = [
        "| source | method | " + " | ".join(f"{t} {s} {n}" for t, s, n in cells) + " |",
        "| --- | --- |" + " --- |" * len(cells),
    ]
    for (source, method), part in table.groupby(["source", "method"], sort=False):
        texts = []
        for task, split, size in cells:
            values = part[(part.task == task) & (part.split == split) & (part["size"] == size)].value.to_numpy()
            if not len(values):
                texts.append("")
                continue
            low, high = interval(values)
            spread = f"{low:.2f} to {high:.2f}; " if len(values) > 2 else ""
            texts.append(f"{values.mean():.2f} ({spread}{len(values)})" if high < 1e3 else "")
        lines.append(f"| {source} | {method} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def ranks(table: pd.DataFrame) -> str:
    """Mean rank over the cells with 50 to 200 training rows that every method has, and the median seconds.

    "auto" takes up the programs that "reprogrammed" has trained in the same cell: alone it costs both their seconds.
    """
    part = table[table["size"].isin(["50", "100", "200"])]
    lines = ["| source | method | mean rank | cells | median seconds |", "| --- | --- | --- | --- | --- |"]
    for source, some in part.groupby("source"):
        wide = some.pivot_table(index=CELL, columns="method", values="loss").dropna()
        rank = wide.rank(axis=1).mean().sort_values()
        spent = some.groupby("method").seconds.median()
        lines += [f"| {source} | {m} | {r:.2f} | {len(wide)} | {spent[m]:.1f} |" for m, r in rank.items()]
    return "\n".join(lines)


def summarise(rows: list[dict]) -> str:
    """All tables as Markdown."""
    table = frame(rows)
    parts = (("Mean rank at 50 to 200 labels", ranks(table)), ("Paired over cells", wins(table)))
    parts += (("RMSE (regression) or ROC-AUC (b3db): mean, 95 % interval over seeds; number of seeds", means(table)),)
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts) + "\n"


def ordering(rows: list[dict], groups: tuple[str, ...], metric: str, ladders: list[list[str]]) -> str:
    """Mean of a metric per method and group, 95 % interval over seeds, and each step of the published orders, paired."""
    data = pd.DataFrame(
        [{k: r[k] for k in (*groups, "seed", "method")} | {"value": r[metric][0]} for r in rows if metric in r]
    )
    if data.empty:
        return "nothing measured yet\n"
    columns = sorted(data[list(groups)].drop_duplicates().itertuples(index=False, name=None))
    lines = [
        "| method | " + " | ".join(" ".join(map(str, c)) for c in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for method, part in data.groupby("method", sort=False):
        texts = []
        for column in columns:
            values = part[(part[list(groups)] == list(column)).all(axis=1)].value.to_numpy()
            texts.append(
                "{:.3f} ({:.3f} to {:.3f}; {})".format(values.mean(), *interval(values), len(values))
                if len(values)
                else ""
            )
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    wide = data.pivot_table(index=[*groups, "seed"], columns="method", values="value")
    lines += [
        "",
        f"| step | cells | share in which the second is better | gain in {metric} (95 % interval over cells) |",
        "| --- | --- | --- | --- |",
    ]
    for a, b in [pair for ladder in ladders for pair in pairwise(ladder)]:
        if a in wide and b in wide and len(gain := (wide[b] - wide[a]).dropna().to_numpy()):
            low, high = interval(gain)
            share = f"{(gain > 0).mean():.0%}" + (f" ({(gain == 0).mean():.0%} ties)" if (gain == 0).any() else "")
            lines.append(f"| {a} → {b} | {len(gain)} | {share} | {gain.mean():+.3f} ({low:+.3f} to {high:+.3f}) |")
    return "\n".join(lines) + "\n"
