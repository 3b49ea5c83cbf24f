"""Attacks beside the libraries that offer them: same weights, inputs, steps and seeds, one thread, one process.

    python -m benchmarks.attacks --quick                                 a minute, for a look
    python -m benchmarks.attacks --shard 0/2 & python -m benchmarks.attacks --shard 1/2
    python -m benchmarks.attacks --table                                 the Markdown tables of what has been measured

Two small networks on Fashion-MNIST are trained once and kept: "std" plainly, "at" on examples of PGD-5 at linf 0.1. Passes
are counted where they enter the network; robust accuracy and norms are recomputed from what an attack returned, after a check
that it stays in [0, 1] and, for budget attacks, in the ball. Peers take part when they can be imported: torchattacks, foolbox,
adv-lib, pyautoattack; torchattacks not with DeepFool (a Python loop over samples) and C&W (one weight, no search). A row's
time is CPU seconds; a run of less than five is repeated and counts the second time, as the first prepares the convolutions.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adversarial as ours
from adversarial.contract import Counted
from benchmarks.harness import RESULTS, load_rows, parser, save_rows
from benchmarks.summary import spread
from reprogram.files import atomic_file
from tasks.images import fashion_mnist

EPS, SHORT = 0.1, 5.0
MODELS = Path("runs/benchmark-models")
BUDGET = ("pgd-40", "apgd-ce-100", "square-1000", "autoattack")
NEAREST = ("deepfool-50", "ddn-200", "fmn-200", "carlini-5x200")
Call = Callable[[nn.Module, Tensor, Tensor, int], Tensor]  # model, x, y, seed -> examples


class Network(nn.Module):
    """Two strided convolutions and two linear layers: 170,000 weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
        self.hidden, self.last = nn.Linear(32 * 49, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.last(self.hidden(x.flatten(1)).relu())


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test pictures (n, 1, 28, 28) in [0, 1] with their classes."""
    task = fashion_mnist()
    pictures = torch.from_numpy(np.stack([np.asarray(one) for one in task.inputs])).float()[:, None] / 255
    labels = torch.as_tensor(np.asarray(task.targets)).long().flatten()
    train, test = torch.as_tensor(task.split["train"]), torch.as_tensor(task.split["test"])
    return pictures[train], labels[train], pictures[test], labels[test]


def network(kind: str, x: Tensor, y: Tensor) -> Network:
    """The trained network, from its file when there is one."""
    file = MODELS / f"fashion-{kind}.pt"
    torch.manual_seed(0)
    model = Network()
    if not file.is_file():
        trained(model, x, y, adversarially=kind == "at")
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as path:
            torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval().requires_grad_(False)


def trained(model: Network, x: Tensor, y: Tensor, *, adversarially: bool) -> None:
    """Adam, two epochs, or four on examples. A benchmark's network, not the product's training loop."""
    from tqdm.auto import tqdm

    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), torch.Generator().manual_seed(0)
    attack = ours.PGD(ours.Ball("linf", EPS), steps=5, step=1 / 3, early=False)
    for _ in range(4 if adversarially else 2):
        for rows in tqdm(torch.randperm(len(x), generator=generator).split(128), desc="train", mininterval=10):
            inputs = attack.run(model, x[rows], y[rows], generator=generator).worst if adversarially else x[rows]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), y[rows]).backward()
            optimizer.step()


def of_us(name: str) -> Call:
    """Our attack of this name."""
    ball, free = ours.Ball("linf", EPS), ours.Ball("l2", math.inf)
    attack: Any = {
        "pgd-40": lambda: ours.PGD(ball), "apgd-ce-100": lambda: ours.APGD(ball), "square-1000": lambda: ours.Square(ball, queries=1001),
        "autoattack": lambda: ours.AutoAttack(ball), "deepfool-50": lambda: ours.DeepFool(free), "ddn-200": lambda: ours.DDN(steps=200),
        "fmn-200": lambda: ours.FMN(steps=200), "carlini-5x200": lambda: ours.CarliniWagner(searches=5, steps=200, first=0.01),
    }[name]()  # fmt: skip
    return lambda model, x, y, seed: attack(model, x, y, generator=torch.Generator().manual_seed(seed))


def of_torchattacks(name: str) -> Call | None:
    import torchattacks as ta

    def call(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        made = {
            "pgd-40": lambda: ta.PGD(model, eps=EPS, alpha=EPS / 4, steps=40),
            "apgd-ce-100": lambda: ta.APGD(model, eps=EPS, steps=100, seed=seed),
            "square-1000": lambda: ta.Square(model, eps=EPS, n_queries=1000, seed=seed),
        }  # fmt: skip
        return made[name]()(x, y)

    return call if name in ("pgd-40", "apgd-ce-100", "square-1000") else None


def of_foolbox(name: str) -> Call | None:
    with stood_in("git", Repo=object):  # only its model zoo needs it
        import foolbox as fb
    known: dict[str, Any] = {
        "pgd-40": lambda: fb.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=40), "deepfool-50": fb.attacks.L2DeepFoolAttack,
        "ddn-200": lambda: fb.attacks.DDNAttack(steps=200), "fmn-200": lambda: fb.attacks.L2FMNAttack(steps=200),
        "carlini-5x200": lambda: fb.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=200, initial_const=0.01),
    }  # fmt: skip
    if name not in known:
        return None

    def call(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        wrapped = fb.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
        eps = EPS if name in BUDGET else None
        return known[name]()(wrapped, x, fb.criteria.Misclassification(y), epsilons=eps)[1]

    return call


def of_advlib(name: str) -> Call | None:
    with stood_in("torchvision"), stood_in("torchvision.models"), stood_in("visdom", Visdom=object):
        from adv_lib import attacks as al
    known: dict[str, Any] = {
        "pgd-40": lambda m, x, y: al.pgd_linf(m, x, y, EPS, steps=40, absolute_step_size=EPS / 4, random_init=True),
        "apgd-ce-100": lambda m, x, y: al.apgd(m, x, y, EPS, norm=math.inf, n_iter=100, loss_function="ce"),
        "deepfool-50": lambda m, x, y: al.df(m, x, y, steps=50, norm=2), "ddn-200": lambda m, x, y: al.ddn(m, x, y, steps=200),
        "fmn-200": lambda m, x, y: al.fmn(m, x, y, norm=2, steps=200),
        "carlini-5x200": lambda m, x, y: al.carlini_wagner_l2(
            m, x, y, initial_const=0.01, binary_search_steps=5, max_iterations=200),
    }  # fmt: skip
    return (lambda m, x, y, seed: known[name](m, x, y)) if name in known else None


def of_pyautoattack(name: str) -> Call | None:
    """The published form of the authors' code, which itself is in no package index."""
    import pyautoattack as pa
    from pyautoattack.autopgd_base import APGDAttack
    from pyautoattack.square import SquareAttack

    def call(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        common: dict[str, Any] = {"norm": "Linf", "eps": EPS, "seed": seed, "device": torch.device("cpu")}
        with contextlib.redirect_stdout(io.StringIO()):
            if name == "apgd-ce-100":
                return APGDAttack(model, n_iter=100, loss="ce", **common).perturb(x, y)
            if name == "square-1000":
                return SquareAttack(model, n_queries=1000, resc_schedule=True, **common).perturb(x, y)
            whole = pa.AutoAttack(model, version="standard", **common)
            return whole.run_standard_evaluation(x, y, batch_size=len(x))[0]

    return call if name in ("apgd-ce-100", "square-1000", "autoattack") else None


LIBRARIES: dict[str, Callable[[str], Call | None]] = {
    "ours": of_us, "torchattacks": of_torchattacks, "foolbox": of_foolbox, "adv-lib": of_advlib, "pyautoattack": of_pyautoattack,
}  # fmt: skip


@contextlib.contextmanager
def stood_in(name: str, **content: Any) -> Iterator[None]:
    """An empty module in the place of one that is absent: some peers import what they hardly use."""
    try:
        __import__(name)
    except Exception:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    yield


@dataclass
class Measured:
    """What one run of one attack came to."""

    examples: Tensor
    seconds: float
    forwards: float
    backwards: float


def run(call: Call, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Measured:
    """One run with its passes per picture, a short one after another that prepares."""
    for _ in range(2):
        counted = Counted(model).eval()
        torch.manual_seed(seed)
        started = time.process_time()
        examples = call(counted, x.clone(), y.clone(), seed).detach().float()
        seconds = time.process_time() - started
        if seconds > SHORT:
            break
    return Measured(examples, seconds, counted.forwards / len(x), counted.backwards / len(x))


def facts(found: Measured, model: nn.Module, x: Tensor, y: Tensor, attack: str) -> dict[str, Any]:
    """Robust accuracy or success and median norm, recomputed."""
    with torch.no_grad():
        clean, wrong = model(x).argmax(1) == y, model(found.examples.clamp(0, 1)).argmax(1) != y
    steps = (found.examples - x).flatten(1)
    inside = ((found.examples >= -1e-6) & (found.examples <= 1 + 1e-6)).flatten(1).all(1)
    row = {
        "seconds": round(found.seconds, 3),
        "forwards": round(found.forwards, 2),
        "backwards": round(found.backwards, 2),
    }
    if attack in BUDGET:
        hit = wrong & inside & (steps.abs().amax(1) <= EPS + 1e-5)
        return row | {"robust": round(float((clean & ~hit).float().mean()), 4)}
    hit = wrong & inside & clean
    norms = steps.norm(dim=1)[hit]
    median = round(float(norms.median()), 4) if len(norms) else None
    return row | {"success": round(float(hit.sum() / clean.sum()), 4), "median": median}


def table(rows: list[dict]) -> str:
    """Means over seeds with their range, and the ratio of our time to each."""
    data = pd.DataFrame(rows)
    lines = [
        "| network | attack | library | CPU s | ours / it | forwards | backwards | robust accuracy | success | median l2 |"
    ]
    lines += ["| --- " * 10 + "|"]
    for (kind, attack), some in data.groupby(["network", "attack"], sort=False):
        mine = some[some.library == "ours"].set_index("seed").seconds
        for library, part in some.groupby("library", sort=False):
            times = part.set_index("seed").seconds
            ratio = (mine / times).dropna().to_numpy()
            cells = [f"{times.mean():.2f}", spread(ratio, 2) if library != "ours" else "1"]
            cells += [f"{part[key].mean():.1f}" for key in ("forwards", "backwards")]
            cells += [shown(part, key) for key in ("robust", "success", "median")]
            lines.append(f"| {kind} | {attack} | {library} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(part: pd.DataFrame, key: str) -> str:
    values = part[key].dropna() if key in part else pd.Series(dtype=float)
    return "" if values.empty else f"{values.mean():.4f} ({values.min():.4f}–{values.max():.4f})"


def main() -> None:
    known = parser(__doc__, networks=("std", "at"), attacks=(*BUDGET, *NEAREST), libraries=tuple(LIBRARIES))
    known.add_argument("--count", type=int, default=512, help="pictures")
    known.set_defaults(seeds=3)
    options = known.parse_args()
    if options.quick:
        options.count, options.seeds, options.networks, options.attacks = 32, 1, ["std"], ["pgd-40", "deepfool-50"]
    torch.set_num_threads(1)
    path = options.out or RESULTS / f"attacks-{'quick' if options.quick else options.shard.replace('/', 'of')}.json"
    if not options.table:
        measure(options, path)
    files = [path] if options.quick or options.out else sorted(RESULTS.glob("attacks-*of*.json"))
    print(table([row for file in files for row in load_rows(file)]))


def measure(options: Any, path: Path) -> None:
    """Run what is missing of this shard and keep it after every run."""
    rows, began = load_rows(path), time.monotonic()
    x, y, inputs, labels = data()
    inputs, labels = inputs[: options.count], labels[: options.count]
    done = {tuple(row[key] for key in ("network", "attack", "seed", "library")) for row in rows}
    index, count = map(int, options.shard.split("/"))
    cells = [(k, a, s) for s in range(options.seeds) for k in options.networks for a in options.attacks]
    for kind, attack, seed in cells[index::count]:
        for library in options.libraries:
            if (time.monotonic() - began) / 60 > options.minutes:
                return
            if (kind, attack, seed, library) in done:
                continue
            try:
                call = LIBRARIES[library](attack)
            except ImportError:
                continue
            if call is None:
                continue
            model = network(kind, x, y)
            found = facts(run(call, model, inputs, labels, seed), model, inputs, labels, attack)
            rows.append({"network": kind, "attack": attack, "seed": seed, "library": library, "n": len(inputs)} | found)
            save_rows(path, rows)


if __name__ == "__main__":
    main()
