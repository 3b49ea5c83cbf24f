"""Reprogramming an image classifier with few shots: every label map, every program, beside probe and pixels.

    python -m benchmarks.images --quick                                  a minute, for a look
    python -m benchmarks.images --shard 0/2 & python -m benchmarks.images --shard 1/2
    python -m benchmarks.images --table                                  the Markdown table of what has been measured

Source: EfficientNet-Lite0 at 64×64 pixels, frozen. All members train for the same number of passes with Adam at 0.01 and
keep the last; no row but the shots is used. The published orders are: random < frequency ≤ iterative ≤ Bayesian < trained
map (all with the full additive program), and pad < full < sample-specific mask (all with the iterative map).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Cell, measure, parser
from benchmarks.summary import ordering
from reprogram.mapping import LinearMap
from reprogram.model import Reprogrammed
from reprogram.objectives import adam
from reprogram.parts import build_mapping, build_program
from reprogram.sources import Source, load
from reprogram.train import fit, predict, refresh
from tasks.baselines import Method, Prediction
from tasks.images import digits, fashion_mnist, flat_pixels, sized
from tasks.task import Task

TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "fashion-mnist": fashion_mnist}
SIDE, EPOCHS, TEST = 64, 60, 700
MAPS = ("random", "frequency", "iterative", "bayesian", "bayesian+", "linear")
PROGRAMS = ("pad", "full", "mask")
SOURCES: dict[str, Source] = {}


def source(weights: str = "pretrained", returns: str = "logits") -> Source:
    """The frozen classifier, loaded once."""
    key = f"{weights} {returns}"
    if key not in SOURCES:
        SOURCES[key] = load("efficientnet-lite0", size=SIDE, returns=returns, weights=weights)
    return SOURCES[key]


def reprogrammed(
    program: str, mapping: str, epochs: int, weights: str = "pretrained"
) -> Callable[[Task, int], Prediction]:
    """Program and map by name on the classifier, trained on the shots for `epochs` passes."""

    def run(task: Task, seed: int) -> Prediction:
        x, y = task.part("train")
        frozen = source(weights)
        parts = (
            build_program(program, frozen, x, seed),
            build_mapping(mapping, frozen.width, len(task.classes), "classification", seed),
        )
        model = Reprogrammed(parts[0], frozen, parts[1])
        rates = adam(program=1e-2, mapping=1e-2)
        passes = 0 if program == "none" and mapping != "linear" else epochs
        fit(
            model,
            {"train": (x, y)},
            optimizer=rates,
            epochs=passes,
            batch_size=32,
            hooks=[refresh],
            seed=seed,
            progress=False,
        )
        trainable = sum(p.numel() for _, p in model.trainable())
        return Prediction(predict(model, task.part("test")[0]), trainable, model)

    return run


def probe(weights: str, returns: str) -> Callable[[Task, int], Prediction]:
    """Logistic regression on frozen features or logits, penalty by cross-validation."""

    def run(task: Task, seed: int) -> Prediction:
        from reprogram.programs import Identity

        frozen = source(weights, returns)
        x, y = task.part("train")
        model = Reprogrammed(
            Identity(), frozen, LinearMap(frozen.width, len(task.classes), kind="classification", ridge=True)
        )
        fit(model, {"train": (x, y)}, epochs=0, seed=seed, progress=False)
        return Prediction(predict(model, task.part("test")[0]), None, model)

    return run


def on_pixels(task: Task, seed: int, fit_forest: bool) -> Prediction:
    """What needs no source: logistic regression or a forest on grey pixels."""
    (x, y), z = task.part("train"), task.part("test")[0]
    pixels = flat_pixels([*x, *z])
    train, test = pixels[: len(x)], pixels[len(x) :]
    if fit_forest:
        from sklearn.ensemble import RandomForestClassifier

        model = RandomForestClassifier(500, random_state=seed).fit(train, y)
        return Prediction(model.predict_proba(test))
    mapping = LinearMap(train.shape[1], len(task.classes), kind="classification", ridge=True)
    mapping.refit(torch.from_numpy(train), torch.from_numpy(np.asarray(y)).long())
    return Prediction(mapping(torch.from_numpy(test)).softmax(1).detach().numpy())


def methods(epochs: int) -> list[Method]:
    """The two ladders, what stands beside them, and what needs no source."""
    found = [Method(f"full+{m}", "reprogrammed", reprogrammed("full", m, epochs)) for m in MAPS]
    found += [
        Method(f"{p}+iterative", "reprogrammed", reprogrammed(p, "iterative", epochs)) for p in PROGRAMS if p != "full"
    ]
    found += [Method(f"none+{m}", "control", reprogrammed("none", m, epochs)) for m in ("iterative", "bayesian+")]
    found += [Method("full+linear random weights", "control", reprogrammed("full", "linear", epochs, "random"))]
    found += [
        Method("probe on logits", "probe", probe("pretrained", "logits")),
        Method("probe on features", "probe", probe("pretrained", "features")),
    ]
    found += [Method("logistic on pixels", "baseline", lambda task, seed: on_pixels(task, seed, False))]
    return [*found, Method("forest on pixels", "baseline", lambda task, seed: on_pixels(task, seed, True))]


def task_of(cell: Cell) -> Task:
    """A few shots of each class, drawn by the cell's seed; the test rows are the same for all."""
    return sized(TASKS[cell["task"]](), {"test": TEST}).shots(cell["shots"], seed=cell["seed"])


def main() -> None:
    options = parser(__doc__, tasks=tuple(TASKS), shots=(10, 5, 20)).parse_args()
    epochs = EPOCHS
    if options.quick:
        options.tasks, options.shots, options.seeds, epochs = ["digits"], [2], 1, 2
        options.methods = options.methods or ["full+iterative", "probe on features", "logistic on pixels"]
    keys = ("shots", "seed", "task")
    cells: list[Any] = [
        dict(zip(keys, c, strict=True)) for c in product(options.shots, range(options.seeds), options.tasks)
    ]
    rows = measure("images", options, cells, task_of, lambda cell: methods(epochs))
    steps = [[f"full+{m}" for m in MAPS], [f"{p}+iterative" for p in ("pad", "full", "mask")]]
    print(ordering(rows, ("task", "shots"), "accuracy", steps))


if __name__ == "__main__":
    main()
