"""Do the transfer scores rank sources as training does? Their rank correlation with the best test metric of each source.

    python -m benchmarks.transfer --quick                                one task, for a look
    python -m benchmarks.transfer                                        every task that `benchmarks.selection` has measured
    python -m benchmarks.transfer --table                                the Markdown table of what has been measured

Scores read the 48 training and 48 validation rows of a cell, never a test row. LogME is taken on frozen features as they
are, as published, and standardised; alignment is minus the sliced Wasserstein distance, in the source's own standard
deviations, between what it returns for its own kind of input and for the task's. No ImageNet picture is at hand: crops of
scikit-learn's two photographs stand for its own images, and pure tones for CREPE's. The prompting ratio compares, on
validation rows, features behind two passes of a program with plain ones, and is judged by what programs gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.harness import RESULTS, Cell, load_rows, parser, save_rows
from benchmarks.selection import TABLE, TASKS, known, outputs_of, task_of
from benchmarks.summary import interval
from reprogram.features import features_of
from reprogram.parts import AUTO
from reprogram.selection import Candidate, trained
from reprogram.sources import Source
from reprogram.transfer import logme, prompting_ratio, sliced_wasserstein
from tasks.metrics import METRICS
from tasks.task import Task

SCORES = ("logme", "logme_standardised", "alignment")


def own_inputs(source: Source, count: int = 96) -> list[np.ndarray] | None:
    """Inputs of the kind that a source was trained on, None where none are at hand."""
    drawn = np.random.default_rng(0)
    if source.name.startswith(("features ", "logits ")):
        from sklearn.datasets import load_sample_images

        photographs, crops = load_sample_images().images, []
        for i in range(count):
            side = int(drawn.integers(100, 420))
            top, left = (int(drawn.integers(0, n - side)) for n in photographs[i % 2].shape[:2])
            crops.append(photographs[i % 2][top : top + side, left : left + side])
        return crops
    if source.takes == "series":
        hertz = 10 * 2 ** ((1997.379 + 20 * drawn.integers(0, 360, count)) / 1200)  # CREPE's 360 pitches
        time = np.arange(1024) / 16_000
        return [np.sin(2 * np.pi * f * time + p)[None].astype(np.float32) for f, p in zip(hertz, 7 * drawn.random(count), strict=True)]  # fmt: skip
    return None


def alignment(source: Source, inputs: Sequence[Any]) -> float | None:
    """Minus the distance between the source's own inputs and these, after it."""
    own = own_inputs(source)
    if own is None:
        return None
    a, b = TABLE.features(source, own), TABLE.features(source, inputs)
    spread = a.std(0) + 1e-3 * np.abs(a).max() + 1e-12
    return -sliced_wasserstein((a - a.mean(0)) / spread, (b - a.mean(0)) / spread, projections=200)


def prompting(source: Source, task: Task, seed: int) -> float | None:
    """Evidence of validation rows behind a little trained program over that of plain features."""
    if not source.differentiable or source.takes not in AUTO:
        return None
    data = {part: task.part(part) for part in ("train", "validation")}
    candidate = Candidate(source.name, AUTO[source.takes], "linear", 1e-2)
    model, _ = trained(candidate, source, {"train": data["train"]}, task.kind, outputs_of(task), epochs=2, seed=seed)
    x, y = data["validation"]
    with torch.no_grad():
        prompted = features_of(model, model.encode(x)).cpu().numpy()
    return prompting_ratio(prompted, TABLE.features(source, x), y, kind=task.kind)


def scored(cell: Cell) -> list[dict]:
    """One row per source."""
    task = task_of(cell)
    x = [value for part in ("train", "validation") for value in task.part(part)[0]]
    y = np.concatenate([task.part(part)[1] for part in ("train", "validation")])
    rows = []
    for source in known(cell)[0]:
        features = TABLE.features(source, x)
        spread = features.std(0) + 1e-3 * np.abs(features).max(0) + 1e-12
        found = {
            "logme": logme(features, y, kind=task.kind),
            "logme_standardised": logme((features - features.mean(0)) / spread, y, kind=task.kind),
            "alignment": alignment(source, x),
            "prompting": prompting(source, task, cell["seed"]),
        }
        rows.append(cell | {"source": source.name} | {k: None if v is None else round(v, 5) for k, v in found.items()})
    return rows


def reached(rows: Sequence[dict]) -> dict[tuple[str, int, str], tuple[float, float | None]]:
    """Best test metric of each source, larger being better, and what programs gained over none."""
    groups: dict[tuple[str, int, str], dict[bool, float]] = {}
    for row in rows:
        if row["metric"] in row:
            value = row[row["metric"]][0] * (1 if METRICS[row["metric"]].larger_is_better else -1)
            own = groups.setdefault((row["task"], row["seed"], row["source"]), {})
            plain = row["program"] == "none"
            own[plain] = max(value, own.get(plain, -np.inf))
    return {key: (max(own.values()), own[False] - own[True] if len(own) == 2 else None) for key, own in groups.items()}


def correlations(rows: Sequence[dict], grid: Sequence[dict]) -> str:
    """Rank correlations over the sources of one cell, their mean over cells, and over all sources ranked in their cell."""
    from scipy.stats import kendalltau, rankdata, spearmanr

    best = reached(grid)
    lines = ["| score | judged by | cells | sources | mean Spearman (95 % interval over cells) | mean Kendall | pooled Spearman of ranks (p) | best source found |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for score, judge in [*((s, 0) for s in SCORES), ("prompting", 1)]:
        pairs = []
        for cell in sorted({(r["task"], r["seed"]) for r in rows}):
            own = [(r[score], best[*cell, r["source"]][judge]) for r in rows if (r["task"], r["seed"]) == cell and (*cell, r["source"]) in best]  # fmt: skip
            own = [pair for pair in own if None not in pair]
            if len(own) > 1 and all(len(set(column)) > 1 for column in zip(*own, strict=True)):
                pairs.append(np.array(own, dtype=float))
        if not pairs:
            continue
        rho, tau = (np.array([float(f(*p.T).statistic) for p in pairs]) for f in (spearmanr, kendalltau))
        ranks = np.concatenate([np.stack([rankdata(c) / (len(c) + 1) for c in p.T], 1) for p in pairs])
        pooled, (low, high) = spearmanr(*ranks.T), interval(rho)
        hits = np.mean([p[:, 0].argmax() == p[:, 1].argmax() for p in pairs])
        lines.append(
            f"| {score} | {('best test metric', 'gain of programs')[judge]} | {len(pairs)} | {len(ranks)} | {rho.mean():+.2f} "
            f"({low:+.2f} to {high:+.2f}) | {tau.mean():+.2f} | {pooled.statistic:+.2f} ({pooled.pvalue:.1g}) | {hits:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parser(__doc__, tasks=tuple(TASKS)).parse_args()
    torch.set_num_threads(1)
    grid = [row for file in sorted(RESULTS.glob("selection-*of*.json")) for row in load_rows(file)]
    path = options.out or RESULTS / ("transfer-quick.json" if options.quick else "transfer.json")
    rows = load_rows(path)
    measured = sorted({(r["task"], r["seed"]) for r in grid if r["task"] in options.tasks})
    for task, seed in [] if options.table else measured[: 1 if options.quick else None]:
        if not any((r["task"], r["seed"]) == (task, seed) for r in rows):
            rows += scored({"task": task, "seed": seed})
            save_rows(path, rows)
    print(correlations(rows, grid))


if __name__ == "__main__":
    main()
