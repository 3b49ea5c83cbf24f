"""What an epoch of `fit` costs beside the plain forward and backward through the same frozen source to its inputs.

    python -m benchmarks.epoch            about five minutes
    python -m benchmarks.epoch --quick    a few seconds, for a look

Plain means: the same molecules, already encoded and batched, no program, no map, no optimizer; one forward pass and the
gradient of a random projection of the features with respect to the source's inputs. Both are timed in turns in this
process, on one thread, and the ratio of their medians is printed with the range over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from reprogram import FreeEmbeddings, GraphDelta, LinearMap, Reprogrammed, fit, load, supervised, vocabulary
from reprogram.batching import bucketed_batches
from reprogram.files import atomic_file
from reprogram.model import versions
from tasks.molecules import load_task

SOURCES = ("minimol", "chemnet", "minilm")
RESULT = Path(__file__).parent / "results" / "epoch.json"
BATCH = 32


class Clock:
    """A hook that notes when each epoch of `fit` ended."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def __call__(self, state: Any) -> None:
        self.ticks.append(time.perf_counter())


def plain_epoch(source: Any, batches: list[dict], entry: str, direction: torch.Tensor) -> float:
    """Seconds of one pass: features of every batch and their gradient with respect to the input `entry`."""
    start = time.perf_counter()
    for batch in batches:
        leaf = batch[entry].detach().requires_grad_(True)
        torch.autograd.grad((source({**batch, entry: leaf}) @ direction).sum(), leaf)
    return time.perf_counter() - start


def measure(name: str, inputs: list[str], y: Any, turns: int) -> dict[str, Any]:
    source = load(name)
    program = GraphDelta() if source.takes == "graph" else FreeEmbeddings(vocabulary(inputs))
    model = Reprogrammed(program, source, LinearMap(source.width))
    records = model.encode(inputs)
    cuts = bucketed_batches([program.length(r) for r in records], BATCH, seed=0, epoch=0)
    with torch.no_grad():
        batches = [program(model.collate([records[i] for i in rows])) for rows in cuts]
    entry = "atoms" if source.takes == "graph" else "inputs_embeds"
    direction = torch.randn(source.width, generator=torch.Generator().manual_seed(0))
    plain, ours = [], []
    for turn in range(turns):
        plain.append(plain_epoch(source, batches, entry, direction))
        clock = Clock()
        fit(
            model, {"train": (inputs, y)}, loss=supervised, epochs=2, batch_size=BATCH, hooks=[clock], seed=turn,
            progress=False,
        )  # fmt: skip
        ours.append(
            clock.ticks[1] - clock.ticks[0]
        )  # from the end of one epoch to the end of the next: nothing left out
        plain.append(plain_epoch(source, batches, entry, direction))
    ratio = statistics.median(ours) / statistics.median(plain)
    each = [o / p for o, p in zip(ours, plain[::2], strict=True)]
    return {
        "source": name, "molecules": len(inputs), "batch": BATCH, "turns": turns, "plain_s": statistics.median(plain),
        "epoch_s": statistics.median(ours), "ratio": ratio, "ratio_low": min(each), "ratio_high": max(each),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("freesolv", split="random")
    inputs, y = task.part("train")
    rows, turns = (32, 1) if options.quick else (256, 5)
    found = [measure(name, inputs[:rows], y[:rows], turns) for name in SOURCES]
    if not options.quick:
        facts = {"versions": versions(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "rows": found}
        with atomic_file(RESULT) as writing:
            writing.write_text(json.dumps(facts, indent=1) + "\n")
    print("| source | molecules | plain forward + backward (s) | epoch of fit (s) | ratio (range over turns) |")
    print("| --- | --- | --- | --- | --- |")
    for r in found:
        print(
            f"| {r['source']} | {r['molecules']} | {r['plain_s']:.2f} | {r['epoch_s']:.2f} | "
            f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f}) |"
        )


if __name__ == "__main__":
    main()
