"""Bounds beside auto_LiRPA: same weights, inputs, threats and iterations, one thread, one process.

    python -m benchmarks.certify --quick                                 a minute, for a look
    python -m benchmarks.certify --lirpa PATH                            the whole grid beside a checkout of auto_LiRPA
    python -m benchmarks.certify --table                                 the Markdown tables of what has been measured

Four networks on Fashion-MNIST, an MLP and a CNN, each trained plainly and on interval bounds, are trained once and kept
(`--models` names a folder of others with the same layers). Certified is the share of the first `--count` test pictures that are
right and certified; L∞ is cut to [0, 1] on both sides, auto_LiRPA cuts no L2 and L1 ball, so ours is measured with the cut and
without it. The upper bound is what PGD and APGD leave. A time is CPU seconds of the process for all pictures, the median of
several turns of which the libraries take one after the other; tracing here and wrapping there happen once for each method,
outside of it. Slopes are trained for 20 iterations on both sides, at the rate of 0.1 of the published measurements there.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adversarial
import certify
from benchmarks.attacks import MODELS, data
from benchmarks.certify_networks import network
from benchmarks.certify_peers import OURS, PEER, THEIRS, libraries, measured
from benchmarks.harness import RESULTS, load_rows, parser, save_rows

EPS = {
    ("std", "linf"): (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03), ("ibp", "linf"): (0.01, 0.02, 0.05, 0.1),
    ("std", "l2"): (0.05, 0.1, 0.2, 0.3), ("std", "l1"): (0.2, 0.5, 1.0, 2.0),
}  # fmt: skip
FULL = 0.02  # at which slopes inside a CNN are trained, minutes for each eps there


def upper_bound(model: nn.Module, x: Tensor, y: Tensor, ball: adversarial.Ball) -> float:
    """What PGD of 50 steps with two starts and APGD leave."""
    attack = adversarial.Worst((adversarial.Restarts(adversarial.PGD(ball, steps=50), 2), adversarial.APGD(ball)))
    return attack.run(model, x, y).robust_accuracy


def grid(options: Any, path: Path) -> None:
    """Run what is missing and keep it after every cell."""
    rows = load_rows(path)
    _, _, x, y = data()
    x, y = x[: options.count], y[: options.count]
    for name in options.networks:
        model = network(name, options.models)
        graph = certify.trace(model, x)
        for (way, norm), sizes in EPS.items():
            for eps in sizes if way == name.split("_")[1] else ():
                known = {
                    row["method"] for row in rows if (row["network"], row["norm"], row["eps"]) == (name, norm, eps)
                }
                if "attacks" not in known and not known.intersection(options.methods or []):
                    bound = upper_bound(model, x, y, adversarial.Ball(norm, eps))
                    rows.append(
                        {"network": name, "norm": norm, "eps": eps, "method": "attacks", "robust": bound, "n": len(x)}
                    )
                for method in dict.fromkeys([*OURS, *THEIRS]):
                    if method in known or method not in (options.methods or [method]):
                        continue
                    if method == "alpha-CROWN full" and (name.startswith("cnn") or norm != "linf") and eps != FULL:
                        continue
                    makers = libraries(model, graph, x, y, norm, eps, method, bool(options.lirpa))
                    for library, facts in measured(makers, options.turns).items():
                        rows.append(
                            {"network": name, "norm": norm, "eps": eps, "method": method, "library": library} | facts
                        )
                    save_rows(path, rows)
                if options.quick:
                    break


def cost(options: Any, path: Path) -> list[dict]:
    """CPU seconds of CROWN and interval bounds of eight inputs against width and depth of random ReLU networks."""
    rows = load_rows(path)
    sides = {"width": [(w, 3) for w in (32, 64, 128, 256, 512, 1024)], "depth": [(128, d) for d in (2, 4, 8, 16, 32)]}
    for side, shapes in sides.items():
        for width, depth in shapes[:2] if options.quick else shapes:
            torch.manual_seed(0)
            sizes = [64, *[width] * (depth - 1), 10]
            layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())][:-1]
            model, x = nn.Sequential(*layers).eval().requires_grad_(False), torch.rand(8, 64)
            y, graph = model(x).argmax(1), certify.trace(model, x)
            for method in ("IBP", "CROWN"):
                if any((r["side"], r["width"], r["depth"], r["method"]) == (side, width, depth, method) for r in rows):
                    continue
                makers = libraries(model, graph, x, y, "linf", 0.01, method, bool(options.lirpa))
                for library, facts in measured(makers, options.turns).items():
                    about = {"side": side, "width": width, "depth": depth, "method": method, "library": library}
                    rows.append(about | facts)
                save_rows(path, rows)
    return rows


def figure(rows: list[dict], path: Path) -> None:
    """Seconds against width and against depth on log axes."""
    from reprogram.plot import COLOURS, new_axes, save

    for side in ("width", "depth"):
        ax = new_axes()
        kinds = dict.fromkeys((row["method"], row["library"]) for row in rows)
        for i, (method, library) in enumerate(kinds):
            some = [r for r in rows if (r["side"], r["method"], r["library"]) == (side, method, library)]
            ax.loglog(
                [r[side] for r in some], [max(r["seconds"], 1e-4) for r in some], marker="o", markersize=3,
                color=COLOURS[i % 6], label=f"{method}, {library}", linestyle="--" if library == PEER else "-",
            )  # fmt: skip
        ax.set(xlabel=f"{side} of a ReLU network", ylabel="CPU seconds for 8 inputs")
        ax.legend(frameon=False, fontsize="small")
        save(ax, path.with_name(f"{path.stem}-{side}.png"))


def peak(options: Any, library: str, method: str) -> float:
    """Peak memory in MiB of a process of its own that bounds the first 64 pictures of the plain CNN at L∞ 0.01."""
    command = [sys.executable, "-m", "benchmarks.certify", "--peak", library, method, "--models", str(options.models)]
    more = ["--lirpa", str(options.lirpa)] if options.lirpa else []
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(options: Any) -> None:
    library, method = options.peak
    _, _, x, y = data()
    x, y = x[:64].clone(), y[:64].clone()
    model = network("cnn_std", options.models)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    libraries(model, certify.trace(model, x), x, y, "linf", 0.01, method, library == PEER)[library]()()
    print(round(before), round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def memory(options: Any, path: Path) -> None:
    rows = load_rows(path)
    for method in ("CROWN",) if options.quick else ("IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"):
        for library in ("ours", *((PEER,) if options.lirpa else ())):
            if not any((row["method"], row["library"]) == (method, library) for row in rows):
                rows.append({"method": method, "library": library, "peak_mib": peak(options, library, method)})
                save_rows(path, rows)


def table(rows: list[dict]) -> str:
    """A line for each network, norm, eps and method: certified and CPU seconds of each library, and their ratio."""
    lines = [
        "| network | threat | n | attacks leave | method | certified: ours | no cut | auto_LiRPA | CPU s: ours | auto_LiRPA | ratio |"
    ]
    lines.append("| --- " * 11 + "|")
    bounds = {(r["network"], r["norm"], r["eps"]): r["robust"] for r in rows if r["method"] == "attacks"}
    cells = dict.fromkeys((r["network"], r["norm"], r["eps"], r["method"]) for r in rows if r["method"] != "attacks")
    for cell in cells:
        some = {r["library"]: r for r in rows if tuple(r.get(k) for k in ("network", "norm", "eps", "method")) == cell}
        shares = [
            f"{some[k]['certified'] / some[k]['n']:.3f}" if k in some else "" for k in ("ours", "ours, no cut", PEER)
        ]
        times = [f"{some[k]['seconds']:.3g}" if k in some else "" for k in ("ours", PEER)]
        both = "ours" in some and PEER in some
        ratio = f"{some['ours']['seconds'] / max(some[PEER]['seconds'], 1e-9):.2f}" if both else ""
        n, bound = next(iter(some.values()))["n"], bounds.get(cell[:3])
        front = [cell[0], f"{cell[1]} {cell[2]:g}", str(n), "" if bound is None else f"{bound:.3f}", cell[3]]
        lines.append(f"| {' | '.join([*front, *shares, *times, ratio])} |")
    return "\n".join(lines)


def main() -> None:
    known = parser(__doc__, networks=("mlp_std", "cnn_std", "mlp_ibp", "cnn_ibp"), parts=("grid", "cost", "memory"))
    known.add_argument("--count", type=int, default=64, help="pictures")
    known.add_argument("--turns", type=int, default=5)
    known.add_argument("--lirpa", type=Path, help="a checkout of auto_LiRPA; its own needs must be importable")
    known.add_argument("--models", type=Path, default=MODELS / "certify", help="where trained networks are kept")
    known.add_argument("--peak", nargs=2, metavar=("LIBRARY", "METHOD"), help="used by the memory part")
    options = known.parse_args()
    torch.set_num_threads(1)
    if options.lirpa:
        sys.path.insert(0, str(options.lirpa))
    if options.peak:
        return alone(options)
    if options.quick:
        options.count, options.turns, options.networks = 8, 1, ["mlp_std"]
    path = options.out or RESULTS / ("certify-quick.json" if options.quick else "certify.json")
    places = {part: path.with_name(f"{path.stem}-{part}.json") for part in ("cost", "memory")}
    if not options.table:
        if "grid" in options.parts:
            grid(options, path)
        if "cost" in options.parts:
            figure(cost(options, places["cost"]), places["cost"])
        if "memory" in options.parts:
            memory(options, places["memory"])
    print(table(load_rows(path)))
    for row in load_rows(places["memory"]):
        print(f"peak memory, {row['method']}, {row['library']}: {row['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
