"""What an optimisation found: the best molecule of every search, every call behind it, as tables, files and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprogram.errors import DataError
from reprogram.files import atomic_file, atomic_folder
from reprogram.model import versions
from tasks.molecules.molecule import Molecule, parsed
from tasks.molecules.search import Call, Search

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from tasks.molecules.draw import Drawing


@dataclass(frozen=True)
class Run:
    """One search: its starts, the feasible molecules it measured, best first with their fitness, and how it ended."""

    starts: tuple[str, ...]
    calls: tuple[Call, ...]
    ranked: tuple[tuple[float, str], ...]
    proposals: int
    method: str
    reason: str
    note: str = ""

    @classmethod
    def of(cls, search: Search, method: str, reason: str, note: str) -> Run:
        starts = tuple(molecule.smiles for molecule in search.starts)
        return cls(starts, tuple(search.calls), tuple(search.ranked()), search.proposals, method, reason, note)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Run:
        """What `dataclasses.asdict` made of a run, through JSON."""
        calls = tuple(Call(**call | {"values": tuple(call["values"])}) for call in facts["calls"])
        ranked = tuple((float(fitness), smiles) for fitness, smiles in facts["ranked"])
        return cls(**dict(facts) | {"starts": tuple(facts["starts"]), "calls": calls, "ranked": ranked})

    def values(self, smiles: str) -> tuple[float, ...]:
        """What the oracle said of a molecule; NaN for a start that the budget did not reach."""
        unknown = (float("nan"),) * len(self.calls[0].values)
        return next((call.values for call in self.calls if call.smiles == smiles), unknown)


@dataclass(frozen=True)
class OptimisationResult:
    """The searches of one optimisation. Property values are the oracle's own.

    `names` and `maximise` describe the objectives; `config` is the whole run as plain values; `ledger` counts the queries.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    maximise: tuple[bool, ...]
    config: dict[str, Any]
    ledger: dict[str, float]
    main: bool = True  # whether this process is the one that shows and writes results

    def frame(self, *, top: int = 1) -> pd.DataFrame:
        """The `top` molecules of every search, one row each, beside the start that each is most like.

        `row` numbers that start among those given, from 0; a molecule given twice has two numbers.
        """
        import pandas as pd

        return pd.DataFrame([row for i, run in enumerate(self.runs) for row in self.rows(i, run, top)])

    def rows(self, index: int, run: Run, top: int) -> list[dict[str, Any]]:
        starts = [molecule(smiles) for smiles in run.starts]
        found = []
        for rank, (fitness, smiles) in enumerate(run.ranked[:top], 1):
            like = [molecule(smiles).similarity(one) for one in starts]
            begin = starts[int(np.argmax(like))].smiles
            given = " ".join(str(i) for i, own in enumerate(self.config["starts"]) if own == begin)
            row: dict[str, Any] = {"search": index, "rank": rank, "row": given, "start": begin, "smiles": smiles}
            for name, before, after in zip(self.names, run.values(begin), run.values(smiles), strict=True):
                row |= {f"start_{name}": before, name: after, f"gain_{name}": after - before}
            row |= {"fitness": fitness, "similarity": max(like), "calls": len(run.calls), "proposals": run.proposals}
            found.append(row | {"method": run.method, "reason": run.reason, "note": run.note})
        return found

    def calls(self) -> pd.DataFrame:
        """Every molecule that was sent to the oracle, in order."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "search": i,
                    "call": call.call,
                    "proposals": call.proposals,
                    "smiles": call.smiles,
                    "origin": call.origin,
                }
                | dict(zip(self.names, call.values, strict=True))
                for i, run in enumerate(self.runs)
                for call in run.calls
            ]
        )

    def best_so_far(self) -> np.ndarray:
        """(searches, calls) best feasible value of the first objective after each call, NaN before there is one."""
        longest = max(len(run.calls) for run in self.runs)
        sign = 1.0 if self.maximise[0] else -1.0
        found = np.full((len(self.runs), longest), np.nan)
        for i, run in enumerate(self.runs):
            fine = {smiles for _, smiles in run.ranked}
            values = [sign * call.values[0] if call.smiles in fine else -np.inf for call in run.calls]
            best = np.maximum.accumulate(values)
            found[i, : len(best)] = np.where(np.isinf(best), np.nan, sign * best)
            if len(best):
                found[i, len(best) :] = found[i, len(best) - 1]
        return found

    def front(self) -> pd.DataFrame:
        """The molecules that no other of their search dominates: as good in every objective and better in one."""
        import pandas as pd
        from moocore import is_nondominated

        kept = []
        for i, run in enumerate(self.runs):
            fine = {smiles for _, smiles in run.ranked}
            rows = [call for call in run.calls if call.smiles in fine]
            if rows:
                values = np.array([call.values for call in rows]) * np.where(self.maximise, -1.0, 1.0)
                chosen = np.flatnonzero(is_nondominated(values, keep_weakly=True))
                kept += [
                    {"search": i, "smiles": rows[j].smiles} | dict(zip(self.names, rows[j].values, strict=True))
                    for j in chosen
                ]
        return pd.DataFrame(kept)

    def save(self, folder: str | Path, *, top: int = 10) -> Path:
        """`results.csv`, `calls.csv`, `best.sdf`, `provenance.json`, and the pictures, whole or not at all."""
        from reprogram.plot import save

        folder = Path(folder)
        frame = self.frame(top=top)
        with atomic_folder(folder) as work:
            frame.to_csv(work / "results.csv", index=False)
            self.calls().to_csv(work / "calls.csv", index=False)
            write_sdf(frame, work / "best.sdf")
            facts = {"config": self.config, "ledger": self.ledger, "versions": versions()}
            (work / "provenance.json").write_text(json.dumps(facts, indent=1))
            if len(frame):
                self.draw(format="png").save(work / "start_to_best.png")
                save(self.plot(), work / "trajectory.png")
                if len(self.names) > 1:
                    save(self.plot_front(), work / "front.png")
        return folder

    def draw(self, *, limit: int = 8, format: str = "svg") -> Drawing:
        """Start and best molecule of the searches that gained most, side by side, what changed in colour."""
        from tasks.molecules.draw import draw_changes

        frame = self.frame()
        if not len(frame):
            raise DataError("expected a feasible molecule to draw, got none; relax the constraints")
        name = self.names[0]
        order = frame[f"gain_{name}"].to_numpy() * (1 if self.maximise[0] else -1)
        rows = frame.iloc[np.argsort(-order, kind="stable")[:limit]]
        return draw_changes(
            list(zip(rows["start"], rows["smiles"], strict=True)),
            [
                (f"{name} {before:.3g}", f"{name} {after:.3g}, similarity {like:.2f}")
                for before, after, like in zip(rows[f"start_{name}"], rows[name], rows["similarity"], strict=True)
            ],
            format=format,
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Best value so far against calls: every search in grey, their median in colour."""
        from reprogram.plot import COLOURS, GREY, new_axes

        ax = ax or new_axes()
        lines = self.best_so_far()
        calls = np.arange(1, lines.shape[1] + 1)
        for line in lines:
            ax.plot(calls, line, color=GREY, linewidth=0.7, alpha=0.6)
        if len(lines) > 1:
            some = ~np.isnan(lines).all(axis=0)
            ax.plot(calls[some], np.nanmedian(lines[:, some], axis=0), color=COLOURS[0], linewidth=2, label="median")
            ax.legend(frameon=False)
        ax.set_xlabel("oracle calls")
        ax.set_ylabel(f"best {self.names[0]} so far")
        return ax

    def plot_front(self, ax: Axes | None = None) -> Axes:
        """The first two objectives of every molecule asked for, those that none beats in colour."""
        from reprogram.plot import COLOURS, GREY, new_axes

        if len(self.names) < 2:
            raise DataError(f"expected two objectives for a front, got {self.names}")
        ax = ax or new_axes()
        calls, front = self.calls(), self.front()
        ax.scatter(calls[self.names[0]], calls[self.names[1]], s=8, color=GREY, alpha=0.5, label="measured")
        ax.scatter(front[self.names[0]], front[self.names[1]], s=20, color=COLOURS[1], label="not dominated")
        ax.set_xlabel(self.names[0])
        ax.set_ylabel(self.names[1])
        ax.legend(frameon=False)
        return ax


def molecule(smiles: str) -> Molecule:
    """A molecule that a search has read before."""
    found = parsed(smiles)
    assert found is not None, smiles
    return found


def write_sdf(frame: pd.DataFrame, path: Path) -> None:
    """Molecules with flat coordinates and every column as a property."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    with atomic_file(path) as work, Chem.SDWriter(str(work)) as writer:
        for row in frame.to_dict("records"):
            mol = Chem.Mol(molecule(row["smiles"]).mol)
            AllChem.Compute2DCoords(mol)
            for key, value in row.items():
                mol.SetProp(str(key), str(value))
            writer.write(mol)
