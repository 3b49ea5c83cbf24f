"""Randomised smoothing: inputs per CPU second beside the reference procedure (locuslab/smoothing), at the same n and alpha.

    python -m benchmarks.smoothing --quick                                       a few inputs, ours alone
    python -m benchmarks.smoothing --reference ../smoothing
    python -m benchmarks.smoothing --table

A convolutional network trained on Fashion-MNIST with noise of 0.25, sigma 0.25, n0 100. Ours runs in its two modes: "radius",
where every input gets the radius that n draws show, and "threat", where only whether it reaches l2 0.25 is asked. "bfloat16" is
the same network under autocast, another classifier. The peers' sources are read from checkouts of their repositories;
without them only ours is measured.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from adversarial import Ball
from benchmarks.attacks import data
from benchmarks.harness import RESULTS, load_rows, parser, save_rows
from certify import FirstOrderSmoothing, Smoothing

SIGMA, N0, ALPHA, EPS, AT = 0.25, 100, 0.001, 0.25, (0.0, 0.1, 0.25, 0.5, 0.75)
Found = tuple[Tensor, Tensor]  # predictions and radii (B,)


def network(x: Tensor, y: Tensor, epochs: int, weights: Path | None) -> nn.Module:
    """Two convolutions and two linear layers, trained on noisy inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 100),
        nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval().requires_grad_(False)
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            noisy = x[rows] + SIGMA * torch.randn(x[rows].shape, generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(noisy), y[rows]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


@contextmanager
def searched(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def core_of(repository: Path) -> types.ModuleType:
    """A peer's core.py for a CPU and today's SciPy, which has no binom_test."""
    import scipy.stats

    if not hasattr(scipy.stats, "binom_test"):
        scipy.stats.binom_test = lambda k, n, p=0.5: scipy.stats.binomtest(int(k), int(n), p).pvalue
    text = (repository / "code" / "core.py").read_text().replace(", device='cuda'", "").replace(".to('cuda')", "")
    module = types.ModuleType(f"core_of_{repository.name}")
    with searched(repository / "code"):
        exec(compile(text, "core.py", "exec"), module.__dict__)
    return module


def of_reference(repository: Path, model: nn.Module, x: Tensor, n: int, seed: int) -> Found:
    smooth = core_of(repository).Smooth(model, 10, SIGMA)
    torch.manual_seed(seed)
    found = [smooth.certify(row, N0, n, ALPHA, 1000) for row in x]
    return torch.tensor([int(c) for c, _ in found]), torch.tensor([float(r) for _, r in found])


def of_us(model: nn.Module, x: Tensor, y: Tensor, n: int, seed: int, **options: Any) -> Found:
    smoothing = Smoothing(Ball("l2", EPS), sigma=SIGMA, n0=N0, n=n, alpha=ALPHA, seed=seed, **options)
    found = smoothing(model, x, y, batch_size=256, progress=False)
    return found.prediction, found.radius


def of_first_order(norm: str, model: nn.Module, x: Tensor, y: Tensor, n: int, seed: int) -> Found:
    smoothing = FirstOrderSmoothing(Ball(norm, EPS), sigma=SIGMA, n0=N0, n=n, alpha=ALPHA, seed=seed)  # type: ignore[arg-type]
    found = smoothing(model, x, y, batch_size=256, progress=False)
    return found.prediction, found.radius


def methods(options: Any, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[int, int], Found]]:
    """By name, what certifies all inputs with n draws and a seed."""
    found: dict[str, Callable[[int, int], Found]] = {}
    if options.reference is not None:
        found["locuslab"] = lambda n, seed: of_reference(options.reference, model, x, n, seed)
    found["radius"] = lambda n, seed: of_us(model, x, y, n, seed)
    found["threat"] = lambda n, seed: of_us(model, x, y, n, seed, until="threat")
    found["radius, bfloat16"] = lambda n, seed: of_us(model, x, y, n, seed, precision="bfloat16")
    found["first order, l1"] = lambda n, seed: of_first_order("l1", model, x, y, n, seed)
    return {name: found[name] for name in (options.methods or found) if name in found}


def measure(options: Any, path: Path, rows: list[dict]) -> list[dict]:
    """Run what is missing, methods in turn within a seed, and keep it after every run."""
    x, y, inputs, labels = data()
    torch.set_num_threads(1)
    model = network(x, y, 1 if options.quick else 6, options.weights)
    inputs, labels = inputs[: options.count], labels[: options.count]
    done = {(row["method"], row["n"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for n in options.draws:
            for name, certify in methods(options, model, inputs, labels).items():
                if (name, n, seed) in done:
                    continue
                started = time.process_time()
                prediction, radius = certify(n, seed)
                seconds = time.process_time() - started
                radius = torch.where(prediction == labels, radius, 0)
                shares = {str(at): float(((prediction == labels) & (radius >= at)).float().mean()) for at in AT}
                rows.append(
                    {"method": name, "n": n, "seed": seed, "inputs": len(inputs), "seconds": round(seconds, 3), "alpha": ALPHA,
                     "abstained": int((prediction < 0).sum()), "mean": float(radius.mean()), "certified": shares,
                     "radii": [round(float(r), 5) for r in radius]}
                )  # fmt: skip
                save_rows(path, rows)
    return rows


def table(rows: list[dict]) -> str:
    """Means over seeds; the ratio is of inputs per CPU second to the reference's of the same n and seed."""
    found = pd.DataFrame(rows)
    found["speed"] = found.inputs / found.seconds
    heads = (
        "method",
        "n",
        "seeds",
        "inputs",
        "inputs / CPU s",
        "× locuslab",
        "mean radius",
        "abstained",
        *(f"at {a}" for a in AT),
    )
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for (method, n), some in found.groupby(["method", "n"], sort=False):
        peer = found[(found.method == "locuslab") & (found.n == n)].set_index("seed").speed
        ratio = (some.set_index("seed").speed / peer).dropna()
        shown = f"{ratio.mean():.2f} ({ratio.min():.2f}–{ratio.max():.2f})" if len(ratio) else ""
        shares = [f"{pd.DataFrame(list(some.certified))[str(at)].mean():.3f}" for at in AT]
        cells = (method, n, len(some), some.inputs.iloc[0], f"{some.speed.mean():.2f}", shown)
        cells += (f"{some['mean'].mean():.4f}", f"{some.abstained.mean():.1f}", *shares)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    known = parser(__doc__, draws=(10_000,))
    known.add_argument("--count", type=int, default=20, help="inputs")
    known.add_argument("--reference", type=Path, default=None, help="a checkout of locuslab/smoothing")
    known.add_argument("--weights", type=Path, default=None, help="a state_dict of the network, instead of training it")
    known.set_defaults(seeds=3)
    options = known.parse_args()
    if options.quick:
        options.count, options.draws, options.seeds = 4, [500], 1
    path = options.out or RESULTS / f"smoothing-{'quick' if options.quick else options.shard.replace('/', 'of')}.json"
    rows = load_rows(path)
    print(table(rows if options.table else measure(options, path, rows)))


if __name__ == "__main__":
    main()
