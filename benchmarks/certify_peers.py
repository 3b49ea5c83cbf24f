"""The same bounds by this library and by auto_LiRPA, timed in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adversarial
import certify

OURS: dict[str, Callable[[adversarial.Ball], Any]] = {  # a new method is one line
    "IBP": certify.IBP, "CROWN-IBP": partial(certify.CROWN, intermediate="ibp"), "CROWN": certify.CROWN,
    "SDP-CROWN": certify.SDPCROWN, "alpha-CROWN": partial(certify.AlphaCROWN, iterations=20),
    "alpha-CROWN full": partial(certify.AlphaCROWN, slopes="full", iterations=20),
    "cascade, 1 s": partial(certify.Cascade, seconds=1.0),
}  # fmt: skip
THEIRS = ("IBP", "CROWN-IBP", "CROWN", "alpha-CROWN", "alpha-CROWN full")
LONG = 20.0  # seconds after which a method gets one turn
PEER = "auto_LiRPA"


def cpu(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    found = call()
    return found, time.process_time() - started


def of_us(graph: Any, x: Tensor, y: Tensor, ball: adversarial.Ball, method: str) -> Callable[[], tuple[Tensor, Tensor]]:
    """A call that gives margins (B,) and what is certified."""

    def call() -> tuple[Tensor, Tensor]:
        found = OURS[method](ball)(graph, x, y)
        return found.margin, found.certified

    return call


def of_lirpa(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, method: str) -> Callable[[], tuple[Tensor, Tensor]]:  # fmt: skip
    """The same of auto_LiRPA; the module is wrapped here, so outside of what is timed."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    options = {"optimize_bound_args": {"iteration": 20, "lr_alpha": 0.1}}
    wrapped = BoundedModule(model, torch.empty_like(x), bound_opts=options, device="cpu", verbose=False)
    kind = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[norm]
    cut = {"x_L": (x - eps).clamp(0, 1), "x_U": (x + eps).clamp(0, 1)} if norm == "linf" else {"eps": eps}
    point = BoundedTensor(x, PerturbationLpNorm(norm=kind, **cut))
    classes = int(model(x[:1]).shape[1])
    own, every = F.one_hot(y, classes).float(), torch.eye(classes)
    others = torch.stack([torch.tensor([k for k in range(classes) if k != label]) for label in y.tolist()])
    rows = own[:, None] - every[others]

    def call() -> tuple[Tensor, Tensor]:
        more: dict[str, Any] = {}
        if method == "alpha-CROWN":  # the boxes inside stay those of CROWN
            with torch.no_grad():
                wrapped.compute_bounds(x=(point,), C=rows, method="CROWN", bound_upper=False)
            more["interm_bounds"] = {
                name: (node.lower.detach(), node.upper.detach()) for name, node in wrapped._modules.items()
                if getattr(node, "lower", None) is not None and name != wrapped.final_name
                and type(node).__name__ not in ("BoundInput", "BoundParams", "BoundConstant")
            }  # fmt: skip
        with torch.set_grad_enabled(method.startswith("alpha")):
            low, _ = wrapped.compute_bounds(
                x=(point,), C=rows, method=method.replace(" full", ""), bound_upper=False, **more
            )
        margins = low.detach().amin(1)
        return margins, margins > 0

    return call


def measured(makers: dict[str, Callable[[], Callable]], turns: int) -> dict[str, dict[str, Any]]:
    """Certified shares, margins and median CPU seconds of several libraries, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for turn in range(turns):
        for name, make in makers.items():
            if turn and seconds[name][0] > LONG:
                continue
            found[name], took = cpu(make())
            seconds[name].append(took)
    return {
        name: {
            "margin": round(float(margins.double().mean()), 5), "certified": int(held.sum()), "n": len(held),
            "seconds": round(statistics.median(seconds[name]), 4), "turns": len(seconds[name]),
        }
        for name, (margins, held) in found.items()
    }  # fmt: skip


def libraries(
    model: nn.Module, graph: Any, x: Tensor, y: Tensor, norm: str, eps: float, method: str, peer: bool
) -> dict:
    """What makes the call of each library that has the method."""
    makers: dict[str, Callable[[], Callable]] = {}
    if method in OURS:
        makers["ours"] = partial(of_us, graph, x, y, adversarial.Ball(norm, eps), method)
        if norm != "linf":
            makers["ours, no cut"] = partial(of_us, graph, x, y, adversarial.Ball(norm, eps, None, None), method)
    if peer and method in THEIRS:
        makers[PEER] = partial(of_lirpa, model, x, y, norm, eps, method)
    return makers
