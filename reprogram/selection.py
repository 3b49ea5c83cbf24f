"""Which source, program and map? A budgeted search over all of them that looks at training and validation rows alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from reprogram.errors import DataError
from reprogram.features import features_of, target_tensor
from reprogram.label_map import METHODS
from reprogram.loop import add_bytes
from reprogram.model import Reprogrammed
from reprogram.objectives import adam
from reprogram.parts import AUTO, BRIDGES, PROGRAMS, build_mapping, build_program, native
from reprogram.search import Candidate, Told, Trial, search
from reprogram.sources import Source
from reprogram.train import History, Hook, Training, fit, refresh

Data = Mapping[str, tuple[Sequence[Any], Any]]
FITTING = {
    "graph": ("none", "delta"),
    "tokens": ("none", "free", "dense", "sparse"),
    "image": ("none", "pad", "full", "resize", "mask", "affine"),
    "series": ("none", "series"),
}
BY_NAME = frozenset(PROGRAMS).difference(*FITTING.values())  # tried only when asked for
LABELLED = ("iterative", "bayesian+", "linear")  # maps of a source that answers with classes
HEADS = ("rank", "program", "source", "map", "rate", "validation loss", "passes")
RATES = (3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Selection:
    """The answer of `select`: trials, best first, and how to train the best one."""

    trials: tuple[Trial, ...]
    seed: int
    sources: Mapping[str, Source] = field(repr=False)
    epochs: int = 30

    @property
    def best(self) -> Candidate:
        """The candidate with the smallest validation loss."""
        return self.trials[0].candidate

    def train(self, data: Data, outputs: int, kind: str, **options: Any) -> tuple[Reprogrammed, History]:
        """The best candidate, trained; `fit` takes the options.

        With validation rows they choose the epoch; without, training goes on for as many passes as were best in the search.
        """
        source, curve = self.sources[self.best.source], self.trials[0].curve
        epochs = self.epochs if "validation" in data else 1 + int(np.argmin(curve))
        return trained(self.best, source, data, kind, outputs, epochs=epochs, seed=self.seed, **options)

    def why(self) -> str:
        """One sentence: what won, by how much, against the best of each other source."""
        first = self.trials[0]
        others = {t.candidate.source: t for t in reversed(self.trials) if t.candidate.source != first.candidate.source}
        text = f"{first.candidate} has the smallest validation loss, {first.loss:.3g}, of {len(self.trials)} tried"
        beaten = ", ".join(f"{name} at best {trial.outcome}" for name, trial in others.items())
        return f"{text}; {beaten}." if beaten else f"{text}."

    def table(self) -> list[list[str]]:
        """The trials as rows of text under `HEADS`, best first."""
        rows = enumerate(((t.candidate, t) for t in self.trials), start=1)
        return [
            [str(rank), c.program, c.source, c.mapping, f"{c.rate:g}", t.outcome, str(t.epochs)]
            for rank, (c, t) in rows
        ]

    def to_markdown(self) -> str:
        """The ranked table and the reason."""
        rows = [list(HEADS), ["---"] * len(HEADS), *self.table()]
        return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", self.why()]) + "\n"


def fitting_programs(source: Source, modality: str | None, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """Programs that bring inputs of that modality to the source; None is whatever it was made for.

    Those `asked` for may also be of the ones that no source has by default.
    """
    usual, more = ("none",), frozenset()
    if source.differentiable and source.takes in AUTO:
        bridge = BRIDGES.get((modality or "", source.takes))
        usual, more = FITTING[source.takes], BY_NAME
        if bridge is not None:
            usual = ("none", bridge) if native(source, modality) else (bridge,)
    return usual if asked is None else tuple(program for program in asked if program in {*usual, *more})


def candidates(
    source: Source, kind: str, programs: Sequence[str] | None = None, modality: str | None = None
) -> list[tuple[str, str]]:
    """Programs and maps that can stand around a source: (program, map) pairs."""
    maps = LABELLED if source.returns == "logits" and kind == "classification" else ("linear",)
    return [(program, mapping) for program in fitting_programs(source, modality, programs) for mapping in maps]


def pool(
    sources: Sequence[Source], kind: str, programs: Sequence[str] | None = None, rates: Sequence[float] = RATES,
    modality: str | None = None,
) -> list[Candidate]:  # fmt: skip
    """Every candidate once; where nothing is trained, no program and a label map, one rate stands for all."""
    return [
        Candidate(source.name, program, mapping, rate)
        for source in sources
        for program, mapping in candidates(source, kind, programs, modality)
        for rate in (rates[:1] if program == "none" and mapping in METHODS else rates)
    ]


def openers(choices: Sequence[Candidate], seed: int) -> list[Candidate]:
    """One candidate of each source in an order drawn by `seed`: its first program, last map and middle rate."""
    own: dict[str, list[Candidate]] = {}
    for choice in choices:
        own.setdefault(choice.source, []).append(choice)
    found = []
    for place in np.random.default_rng(seed).permutation(len(own)):
        some = list(own.values())[place]
        alike = [c for c in some if c.program == some[0].program]
        rates = [c for c in alike if c.mapping == alike[-1].mapping]
        found.append(rates[len(rates) // 2])
    return found


def select(
    data: Data, sources: Sequence[Source], *, kind: str, outputs: int, budget: int = 20, epochs: int = 30,
    programs: Sequence[str] | None = None, rates: Sequence[float] = RATES, modality: str | None = None,
    batch_size: int = 32, seed: int = 0, storage: str | Path | None = None,
    progress: bool = True,
) -> Selection:  # fmt: skip
    """Try `budget` candidates and rank them by validation loss (`judged`); weak ones are stopped early.

    Each source comes once, as a probe where it can, before `search` goes where the best of them points.

    Args:
        data: `{"train": (inputs, targets), "validation": (inputs, targets)}`; nothing else is looked at.
        sources: frozen sources to choose from, of different names; each with the programs and maps that fit it, or with
            those of `programs` that do.
        budget: candidates tried, also those that are stopped early. `epochs` is the longest training of one.
        modality: what the inputs are, where a source was made for something else ("series" in front of a language model).
        storage: a file for the trials; a search that was stopped goes on from it.

    Raises: DataError for missing validation rows, no source, two of one name, or when every candidate fails.
    """
    if missing := [part for part in ("train", "validation") if part not in data]:
        raise DataError(f"expected training and validation rows to select on, got no {missing[0]} part")
    if not sources or budget < 1:
        raise DataError(f"expected at least one source and a budget of at least 1, got {len(sources)} and {budget}")
    known = {source.name: source for source in sources}
    if len(known) < len(sources):
        raise DataError(f"expected sources of different names, got {', '.join(s.name for s in sources)}; rename one")
    if not (choices := pool(sources, kind, programs, rates, modality)):
        raise DataError(f"expected a program that fits one of the sources, got {', '.join(programs or ())}")

    def attempt(candidate: Candidate, told: Told) -> float:
        def tell(state: Training) -> None:
            state.stop = told(state.history.epochs[-1]["validation_loss"]) or state.stop

        model, _ = trained(
            candidate, known[candidate.source], data, kind, outputs, epochs=epochs, batch_size=batch_size, seed=seed,
            hooks=[tell],
        )  # fmt: skip
        return judged(model, *data["validation"])

    trials = search(
        choices, attempt, budget=budget, epochs=epochs, seed=seed, first=openers(choices, seed), journal=storage,
        identity=same_search(data, known, [kind, outputs, epochs, batch_size, seed, modality]), progress=progress,
    )  # fmt: skip
    ranked = sorted(trials, key=lambda t: t.rank)
    if not np.isfinite(ranked[0].loss):
        raise DataError(f"expected a candidate that can be trained, got none: {ranked[0].error}")
    return Selection(tuple(ranked), seed, known, epochs)


def same_search(data: Data, sources: Mapping[str, Source], plan: Sequence[Any]) -> str:
    """What makes two searches one: rows and targets, the sources' weights, and the plan."""
    total = hashlib.sha256()
    for part in ("train", "validation"):
        inputs, targets = data[part]
        arrays = [value if isinstance(value, str) else np.asarray(value) for value in inputs]
        plain = [v if isinstance(v, str) or v.dtype == object else torch.from_numpy(np.array(v)) for v in arrays]
        add_bytes(total, [plain, torch.as_tensor(np.asarray(targets, dtype=float))])
    add_bytes(total, [[name, source.digest] for name, source in sorted(sources.items())] + [plan])
    return total.hexdigest()


def assembled(
    candidate: Candidate, source: Source, inputs: Sequence[Any], outputs: int, kind: str, seed: int
) -> Reprogrammed:
    """A fresh model of a candidate."""
    program = build_program(candidate.program, source, inputs, seed)
    return Reprogrammed(program, source, build_mapping(candidate.mapping, source.width, outputs, kind, seed))


def trained(
    candidate: Candidate, source: Source, data: Data, kind: str, outputs: int, *, epochs: int, batch_size: int = 32,
    seed: int = 0, hooks: Sequence[Hook] = (), progress: bool = False, **options: Any,
) -> tuple[Reprogrammed, History]:  # fmt: skip
    """A candidate trained on the training rows, at its best epoch on the validation rows; `fit` takes the options."""
    model = assembled(candidate, source, data["train"][0], outputs, kind, seed)
    learns = any(True for _ in model.trainable())
    history = fit(
        model, data, optimizer=adam(program=candidate.rate, mapping=candidate.rate), epochs=epochs if learns else 1,
        batch_size=batch_size, patience=max(5, epochs // 3), hooks=[refresh, *hooks], seed=seed,
        progress=progress, **options,
    )  # fmt: skip
    return model, history


@torch.no_grad()
def judged(model: Reprogrammed, inputs: Sequence[Any], targets: Any) -> float:
    r"""Validation loss that compares maps: cross-entropy at the best temperature, $\min_\tau L(z / \tau)$, where there are classes.

    Label maps answer with logits on scales of their own, so their plain losses say more about confidence than about classes.
    """
    from scipy.optimize import minimize_scalar

    output = model.mapping(features_of(model, model.encode(list(inputs))))
    y = target_tensor(targets, model.mapping.kind).to(output.device)
    if model.mapping.kind != "classification":
        return float(model.row_losses(output, y).mean())
    logits = output.double().log_softmax(1)
    losses = minimize_scalar(
        lambda log: float(F.cross_entropy(logits * math.exp(log), y)), bounds=(-4, 4), method="bounded"
    )
    return float(losses.fun)
