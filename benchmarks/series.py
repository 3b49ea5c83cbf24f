"""Series: a frozen sound network and a frozen language model beside time warping and ROCKET, on UCR's published parts.

    python -m benchmarks.series --quick                                  a minute, for a look
    python -m benchmarks.series --seeds 3                                eleven sets, an estimated 90 minutes of one core
    python -m benchmarks.series --table                                  the Markdown table of what has been measured

"pad" is Voice2Series: the series in a window of trained noise in front of CREPE, with its many-to-one label map or a
trained map; "patches" is the layer of Time-LLM in front of MiniLM, beside the same layer without the language model.
CREPE reads every series at one length, 7 ms a row and step; MiniLM reads a token for 8 samples of each channel, 320 ms
a row of PigCVP, so the two sets of more than a thousand samples go without patches. `--epochs` is for the methods named
here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from benchmarks.harness import measure, parser
from benchmarks.summary import ordering
from reprogram.label_map import LabelMap
from reprogram.model import Reprogrammed
from reprogram.objectives import adam
from reprogram.parts import build_mapping
from reprogram.programs import Patches, SeriesPad
from reprogram.sources import Source, load
from reprogram.train import fit, predict, refresh
from tasks.baselines import Method, Prediction, methods
from tasks.controls import without_network
from tasks.features import FeatureTable
from tasks.series import NAMES, ucr
from tasks.task import Task

SOUND, LANGUAGE, EPOCHS = "crepe-tiny", "minilm", 20
LONG = ("acsf1", "pigcvp")
LOADED: dict[str, Source] = {}


def source(name: str) -> Source:
    """A source by name, loaded once."""
    if name not in LOADED:
        LOADED[name] = load(name)
    return LOADED[name]


def trained(
    make: Callable[[int], Any], where: Callable[[int], Source], mapping: str, epochs: int
) -> Callable[[Task, int], Prediction]:
    """A program on a source with a map by name, "many" for ⌊S / C⌋ random source classes each, as Voice2Series does."""

    def run(task: Task, seed: int) -> Prediction:
        frozen, count = where(seed), len(task.classes)
        if mapping == "many":
            head: Any = LabelMap(
                frozen.width, count, method="random", many=frozen.width // count, average="probabilities", seed=seed
            )
        else:
            head = build_mapping(mapping, frozen.width, count, "classification", seed)
        model = Reprogrammed(make(seed), frozen, head)
        data = {part: task.part(part) for part in ("train", "validation")}
        fit(
            model, data, optimizer=adam(program=1e-2, mapping=1e-2), epochs=epochs, batch_size=32, hooks=[refresh],
            seed=seed, progress=False,
        )  # fmt: skip
        return Prediction(predict(model, task.part("test")[0]), sum(p.numel() for _, p in model.trainable()))

    return run


def chosen(epochs: int, task: str) -> list[Method]:
    """What is compared on a set; no patches of long series."""
    sound, words = (lambda seed: source(SOUND)), (lambda seed: source(LANGUAGE))
    pad, patches = (lambda seed: SeriesPad()), (lambda seed: Patches(seed=seed))
    found = [
        Method("pad+many", "reprogrammed", trained(pad, sound, "many", epochs)),
        Method("pad+linear", "reprogrammed", trained(pad, sound, "linear", epochs)),
        Method("pad+linear random weights", "control", trained(pad, lambda seed: source(SOUND).randomised(seed), "linear", epochs)),
        Method("patches+linear", "reprogrammed", trained(patches, words, "linear", epochs)),
        Method("patches+linear no language model", "control", trained(patches, lambda seed: without_network(source(LANGUAGE), seed=seed), "linear", epochs)),
    ]  # fmt: skip
    known = methods(SOUND, modality="series", table=FeatureTable())
    if task in LONG:
        found = [method for method in found if not method.name.startswith("patches")]
    return [*found, *(m for m in known.values() if m.cost == "fast" and m.name != "random-weights")]


def main() -> None:
    known = parser(__doc__, tasks=NAMES)
    known.add_argument("--epochs", type=int, default=EPOCHS)
    options = known.parse_args()
    if options.quick:
        options.tasks, options.seeds, options.epochs = ["italypowerdemand"], 1, 2
        options.methods = options.methods or ["pad+many", "linear-probe", "ridge-samples"]
    cells = [{"task": task, "seed": seed} for seed, task in product(range(options.seeds), options.tasks)]
    rows = measure(
        "series", options, cells, lambda cell: ucr(cell["task"], seed=cell["seed"]),
        lambda cell: chosen(options.epochs, cell["task"]), lambda cell, method: {"epochs": options.epochs},
    )  # fmt: skip
    steps = [["pad+many", "pad+linear"], ["pad+linear random weights", "pad+linear"], ["linear-probe", "reprogrammed"],
             ["no-source", "reprogrammed"], ["dtw", "reprogrammed"], ["rocket", "reprogrammed"],
             ["patches+linear no language model", "patches+linear"]]  # fmt: skip
    print(ordering(rows, ("task",), "accuracy", steps))


if __name__ == "__main__":
    main()
