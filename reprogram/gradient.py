r"""Gradient steps: how `p.grad` of the trainable parameters is filled. `fit` takes any of them.

Legend: F the loss of a batch as a function of the program's d numbers w; a query is one evaluation of F on one row. Only
the program sits in front of the source, so only its gradient is estimated; a trained map behind the source gets its
exact one from the first evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Closure = Callable[[], Tensor]


class GradientStep(Protocol):
    """`(model, closure, accelerator) -> loss`: run `closure()` as often as it needs and leave gradients in `p.grad`.

    Randomness comes from torch's generator, which `fit` seeds and checkpoints. A step with a memory has `begin(model)`,
    called before the first step, `state_dict()` and `load_state_dict()`.
    """

    def __call__(self, model: nn.Module, closure: Closure, accelerator: Any) -> Tensor: ...


def backprop(model: nn.Module, closure: Closure, accelerator: Any) -> Tensor:
    """One forward and one backward pass through the frozen source to the program: the white-box step."""
    loss = closure()
    accelerator.backward(loss)
    return loss.detach()


def without_gradient(model: nn.Module, closure: Closure, accelerator: Any) -> Tensor:
    """The loss alone."""
    return closure().detach()


@dataclass(frozen=True)
class RandomGradientFree:
    r"""One-sided random directions: $\hat g = \frac{d}{q} \sum_j \frac{F(w + \beta u_j) - F(w)}{\beta} u_j$, u on the unit
    sphere. q + 1 evaluations a step.

    Reference: Tsai, Chen & Ho, "Transfer Learning without Knowing: Reprogramming Black-box Machine Learning Models with
    Scarce Data and Limited Resources" (BAR), ICML 2020, arXiv:2007.08714.
    """

    directions: int = 5
    radius: float = 0.01

    def __call__(self, model: nn.Module, closure: Closure, accelerator: Any) -> Tensor:
        loss, w = at_centre(model, closure, accelerator)
        start = flat(w)

        def losses(points: Tensor) -> Tensor:
            return torch.stack([evaluated(w, point, closure) for point in points])

        return filled(w, start, sphere_estimate(losses, start, loss, self.directions, self.radius), loss)


def sphere_estimate(
    losses: Callable[[Tensor], Tensor], start: Tensor, loss: Tensor, directions: int, radius: float,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    r"""The gradient at `start` (d,) from the losses (q,) of q points on a sphere around it, and the loss in its centre:
    $\frac{d}{q} \sum_j \frac{F(w + \beta u_j) - F(w)}{\beta} u_j$."""
    u = nn.functional.normalize(torch.randn(directions, len(start), generator=generator), dim=1).to(start)
    return (losses(start + radius * u) - loss) / radius @ u * (len(start) / directions)


class SPSA:
    r"""Simultaneous perturbation: $\hat g_i = \frac{F(w + c_k \Delta) - F(w - c_k \Delta)}{2 c_k \Delta_i}$, a mean over
    `repeats` draws; $c_k = c / k^\gamma$. Each $\Delta_i$ is uniform on $[-1, -0.5] \cup [0.5, 1]$.

    2 `repeats` evaluations a step, one more where a map is trained too. With Nesterov momentum as the optimizer
    (`spsa_rates`) this is SPSA-GC: its correction, $\hat g + b\,m$ with $m \leftarrow b\,m + \hat g$, is that momentum.

    Reference: Spall, IEEE Transactions on Automatic Control 1992; Oh et al., "BlackVIP", CVPR 2023, arXiv:2303.14773.
    """

    def __init__(self, *, repeats: int = 5, radius: float = 0.01, decay: float = 0.1):
        self.repeats, self.radius, self.decay, self.step = repeats, radius, decay, 0

    def begin(self, model: nn.Module) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def __call__(self, model: nn.Module, closure: Closure, accelerator: Any) -> Tensor:
        self.step += 1
        radius = self.radius / self.step**self.decay
        mapped = any(True for _ in mapping_parameters(model))
        loss, w = at_centre(model, closure, accelerator) if mapped else (None, program_parameters(model))
        start, estimate, seen = flat(w), 0.0, []
        for _ in range(self.repeats):
            sign = torch.randint(0, 2, (len(start),)) * 2 - 1
            delta = (sign * (0.5 + 0.5 * torch.rand(len(start)))).to(start)
            above, below = (evaluated(w, start + side * radius * delta, closure) for side in (1, -1))
            estimate = estimate + (above - below) / (2 * radius * delta)
            seen += [above, below]
        return filled(w, start, estimate / self.repeats, torch.stack(seen).mean() if loss is None else loss)


@dataclass(frozen=True)
class CoordinateWise:
    r"""Central differences along random coordinates: $\hat g_i = \frac{F(w + h e_i) - F(w - h e_i)}{2h}$ for `coordinates`
    of them, 0 elsewhere. 2 `coordinates` evaluations a step, one more where a map is trained too.

    Reference: Chen et al., "ZOO: Zeroth Order Optimization Based Black-box Attacks", AISec 2017, arXiv:1708.03999.
    """

    coordinates: int = 5
    radius: float = 0.01

    def __call__(self, model: nn.Module, closure: Closure, accelerator: Any) -> Tensor:
        mapped = any(True for _ in mapping_parameters(model))
        loss, w = at_centre(model, closure, accelerator) if mapped else (None, program_parameters(model))
        start, seen = flat(w), []
        estimate = torch.zeros_like(start)
        for i in torch.randperm(len(start))[: self.coordinates].tolist():
            unit = torch.zeros_like(start)
            unit[i] = self.radius
            above, below = evaluated(w, start + unit, closure), evaluated(w, start - unit, closure)
            estimate[i] = (above - below) / (2 * self.radius)
            seen += [above, below]
        return filled(w, start, estimate, torch.stack(seen).mean() if loss is None else loss)


class CMAES:
    """One generation of the covariance matrix adaptation evolution strategy a step, by the library `cma`.

    The gradient is the way from the program to the new mean, so plain descent with rate 1 and no clipping (`cma_rates`)
    goes there. `popsize` evaluations a step (by default cma's 4 + 3 ln d); above `full` numbers the covariance is
    diagonal, because a full one costs d². A trained map moves by its own exact gradient in the same step.

    Reference: Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, arXiv:1604.00772.
    """

    def __init__(self, *, sigma: float = 0.1, popsize: int | None = None, full: int = 200, seed: int = 0):
        self.sigma, self.popsize, self.full, self.seed = sigma, popsize, full, seed
        self.search: Any = None
        self.told: list[list[float]] = []

    def begin(self, model: nn.Module) -> None:
        import cma

        start = flat(program_parameters(model)).double().cpu().numpy()
        options = {
            "verbose": -9,
            "seed": self.seed + 1,
            "CMA_diagonal": len(start) > self.full,
        }  # cma takes 0 for the clock
        options |= {} if self.popsize is None else {"popsize": self.popsize}
        self.search, self.told = cma.CMAEvolutionStrategy(start, self.sigma, options), []

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What was told once is told again: the search is a function of its seed and these losses."""
        for losses in state["told"]:
            self.search.tell(self.search.ask(), losses)
        self.told = [list(losses) for losses in state["told"]]

    def __call__(self, model: nn.Module, closure: Closure, accelerator: Any) -> Tensor:
        mapped = any(True for _ in mapping_parameters(model))
        loss, w = at_centre(model, closure, accelerator) if mapped else (None, program_parameters(model))
        start, asked = flat(w), self.search.ask()
        losses = [float(evaluated(w, torch.from_numpy(x).to(start), closure)) for x in asked]
        if accelerator.num_processes > 1:  # each process saw its own rows
            losses = accelerator.reduce(torch.tensor(losses, device=start.device), "sum").tolist()
        self.search.tell(asked, losses)
        self.told.append(losses)
        share = 1 / accelerator.num_processes
        way = (start - torch.from_numpy(self.search.mean).to(start)) * share
        value = start.new_tensor(sum(losses) / len(losses) * share)
        return filled(w, start, way, value if loss is None else loss)


def program_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What stands in front of the source."""
    return [p for name, p in model.trainable() if name.startswith("program.")]


def mapping_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What stands behind it."""
    return [p for name, p in model.trainable() if name.startswith("mapping.")]


def at_centre(model: nn.Module, closure: Closure, accelerator: Any) -> tuple[Tensor, list[nn.Parameter]]:
    """The loss where the program is now, with the exact gradient of the map, and the program's parameters."""
    w = program_parameters(model)
    for p in w:
        p.requires_grad_(False)
    loss = closure()
    if loss.requires_grad:
        accelerator.backward(loss)
    for p in w:
        p.requires_grad_(True)
    return loss.detach(), w


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """All numbers in one vector (d,), a copy."""
    return torch.cat([p.detach().reshape(-1) for p in parameters]).clone()


@torch.no_grad()
def write(parameters: Sequence[Tensor], values: Tensor) -> None:
    """Set the parameters from one vector (d,)."""
    for p, part in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        p.copy_(part.view_as(p))


@torch.no_grad()
def evaluated(parameters: Sequence[Tensor], values: Tensor, closure: Closure) -> Tensor:
    """The loss with the program at `values`."""
    write(parameters, values)
    return closure().detach()


def filled(parameters: Sequence[nn.Parameter], start: Tensor, estimate: Tensor, loss: Tensor) -> Tensor:
    """Put the program back to `start` and the estimate (d,) into its gradients; returns the loss."""
    write(parameters, start)
    for p, part in zip(parameters, estimate.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p).to(p.dtype).clone()
    return loss
