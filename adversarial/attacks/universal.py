"""One change for all inputs: a universal perturbation within a ball, and a universal patch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adversarial.goals import Goal, GoalError, Untargeted, goal_of
from adversarial.lifting import image
from adversarial.probe import inspected, logits_of
from adversarial.streams import Streams, seed_of
from adversarial.threat import Ball, ThreatError


@dataclass(frozen=True)
class Universal:
    """One change and what it does to the inputs it was made on.

    change: the perturbation, like one input, or the pixels of the patch. apply(x): inputs with it; a patch lies in a place
    that each input draws by itself. success: whether the goal is reached with it (n,); natural: whether it is without.
    forwards, backwards: passes per input on the whole.
    """

    change: Tensor
    apply: Callable[[Tensor], Tensor]
    success: Tensor
    natural: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def fooling_rate(self) -> float:
        """Share of the inputs that do not reach the goal by themselves and do with the change; NaN where all do."""
        return float(self.success[~self.natural].double().mean())


Apply = Callable[[Tensor, Tensor, int], Tensor]  # inputs, the change, the number of the step (0 where it is judged)


def ascended(
    attack: UniversalPerturbation | UniversalPatch, model: nn.Module, x: Tensor, y: Tensor | Goal, change: Tensor,
    apply: Apply, ahead: Callable[[Tensor, Tensor], Tensor], seed: int,
) -> Universal:  # fmt: skip
    """Follow the mean gradient of batches; the best change at the end of an epoch is kept."""
    if not len(x):
        raise GoalError("expected at least one input, got none")
    if min(attack.epochs, attack.batch_size) < 1 or attack.step <= 0:
        raise ValueError(f"expected at least one epoch and input of a step, and a step above 0, got {attack}")
    goal, draws, step, passes = goal_of(y, x), torch.Generator().manual_seed(seed), 0, 1
    best, success, share = change, torch.zeros(0), -1.0
    with inspected(model, x):
        natural, cap = judged(model, x, goal, attack, lambda piece: piece)
        for _ in range(attack.epochs):
            for rows in torch.randperm(len(x), generator=draws).to(x.device).split(attack.batch_size):
                step += 1
                change = ahead(change, gradient_of(model, x[rows], goal[rows], change, apply, step, cap))
            reached, _ = judged(model, x, goal, attack, lambda piece, now=change: apply(piece, now, 0))
            passes += 2
            found = float(reached.double().mean())
            if found > share:
                share, best, success = found, change, reached
            if share == 1:
                break
    count = torch.ones_like(natural, dtype=torch.long)
    return Universal(
        best[0], lambda x: apply(x, best, 0), success, natural,
        count * passes, count * (passes // 2),
    )  # fmt: skip


def gradient_of(
    model: nn.Module, x: Tensor, goal: Goal, change: Tensor, apply: Apply, step: int, cap: float
) -> Tensor:  # fmt: skip
    """Gradient of the batch's mean clipped loss with respect to the change."""
    change = change.detach().requires_grad_()
    with torch.enable_grad():
        values = goal.loss(logits_of(model(apply(x, change, step)), len(x)), "ce")
        (gradient,) = torch.autograd.grad(values.clamp(max=cap).mean(), change)
    return gradient.nan_to_num(0.0, 0.0, 0.0)


@torch.no_grad()
def judged(
    model: nn.Module, x: Tensor, goal: Goal, attack: UniversalPerturbation | UniversalPatch,
    apply: Callable[[Tensor], Tensor],
) -> tuple[Tensor, float]:  # fmt: skip
    """Whether each input reaches the goal (n,), and the largest loss that counts."""
    parts, cap = [], attack.clip
    for rows in torch.arange(len(x), device=x.device).split(attack.batch_size):
        outputs = logits_of(model(apply(x[rows])), len(rows))
        goal[rows].check(outputs)
        parts.append(goal[rows].reached(outputs))
        if cap is None:
            cap = 2 * math.log(outputs.shape[1]) if isinstance(goal, Untargeted) else math.inf
    return torch.cat(parts), float("inf") if cap is None else cap


@dataclass(frozen=True)
class UniversalPerturbation:
    r"""A perturbation that raises the mean of the clipped loss $\min(\ell(f(x + \delta), y), \beta)$ over all inputs.

    Projected gradient ascent on batches: $\delta \leftarrow P(\delta + \alpha\epsilon\,d(\nabla))$, with the norm's own
    steepest step d. The clip keeps a few inputs from taking all of the gradient.

    Args:
        threat: the ball around every input; its bounds cut x + delta, its mask the perturbation. One eps for all.
        epochs: passes over the inputs.
        step: length of a step, in units of eps.
        clip: largest loss of an input, in nats; infinity for none. The paper has 9 for a thousand classes; by default twice the loss of
            a uniform guess.
        batch_size: inputs of a step.

    `generator` draws the order of the batches. The result belongs to the whole set: leave one out and it changes.

    Reference: Shafahi et al., "Universal adversarial training", AAAI 2020, arXiv:1811.11304; the first of its kind is `UAP`.
    Differs from the paper: the best of the epochs is kept, by the share of inputs that reach the goal.
    """

    threat: Ball
    epochs: int = 10
    step: float = 0.1
    clip: float | None = None
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.threat.norm == "l0":
            raise ThreatError("expected a ball of norm linf, l2 or l1 for a universal perturbation, got l0")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor | Goal, *, generator: torch.Generator | None = None
    ) -> Universal:
        self.threat.around(x if x.dtype == torch.float64 else x.float())  # refuses inputs outside the bounds
        if torch.as_tensor(self.threat.eps).numel() != 1:
            raise ThreatError("expected one eps for all inputs of a universal perturbation")
        free = replace(self.threat, low=None, high=None)
        origin = torch.zeros(
            (1, *x.shape[1:]), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device
        )
        region = free.around(origin)

        def apply(x: Tensor, delta: Tensor, turn: int) -> Tensor:
            low, high = (self.threat.bound(bound, x, end) for bound, end in (
                (self.threat.low, -torch.inf), (self.threat.high, torch.inf),
            ))  # fmt: skip
            return torch.clamp(x + delta.to(x.dtype), low, high)

        def ahead(delta: Tensor, gradient: Tensor) -> Tensor:
            size = self.step * region.eps.view(-1, *(1,) * (delta.ndim - 1))
            return region.project(delta + size * region.direction(gradient))

        seed = seed_of(generator)
        # a regression's error is flat at 0, so the first step is not taken from there
        start = 1e-3 * region.sample(Streams(origin, seed), torch.zeros(1, dtype=torch.long, device=x.device))
        return ascended(self, model, x, y, start, apply, ahead, seed)


@dataclass(frozen=True)
class UniversalPatch:
    r"""A rectangle of pixels that makes inputs reach the goal wherever it lies: $\max_p E_{x, place}\,\ell(f(\text{paste}(x, p)))$.

    Steps along the gradient's sign, with places drawn anew for every input and batch; the place in which an input is judged
    in the end is its own too.

    Args:
        height, width: of the patch, in pixels.
        place: (top, left) of a fixed corner, or None for anywhere.
        epochs, batch_size, clip: as `UniversalPerturbation`.
        step: in units of the bounds, which are 0 and 1.

    Reference: Brown et al., "Adversarial patch", 2017, arXiv:1712.09665.
    Differs from the paper: places vary, angles and sizes do not; signs of gradients instead of Adam.
    """

    height: int
    width: int
    place: tuple[int, int] | None = None
    epochs: int = 20
    step: float = 0.05
    clip: float | None = None
    batch_size: int = 128

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor | Goal, *, generator: torch.Generator | None = None
    ) -> Universal:
        Ball("linf", 1.0).around(image(x if x.dtype == torch.float64 else x.float()))
        top, left = self.place or (0, 0)
        room = (x.shape[2] - self.height - top, x.shape[3] - self.width - left)
        if min(*room, top, left) < 0 or min(self.height, self.width) < 1:
            raise ThreatError(f"expected a patch within {tuple(x.shape[2:])} pixels, got {self}")
        seed = seed_of(generator)
        start = torch.full((1, x.shape[1], self.height, self.width), 0.5, device=x.device)
        start = start.to(torch.float64 if x.dtype == torch.float64 else torch.float32)

        def apply(x: Tensor, patch: Tensor, turn: int) -> Tensor:
            return self.pasted(x, patch, seed + turn)

        def ahead(patch: Tensor, gradient: Tensor) -> Tensor:
            return (patch + self.step * gradient.sign()).clamp(0, 1)

        return ascended(self, model, x, y, start, apply, ahead, seed)

    def pasted(self, x: Tensor, patch: Tensor, seed: int) -> Tensor:
        """Inputs with the patch in place."""
        height, width = x.shape[2:]
        if self.place is None:
            rows, streams = torch.arange(len(x), device=x.device), Streams(x, seed)
            top = streams.integers(rows, height - self.height + 1)
            left = streams.integers(rows, width - self.width + 1)
        else:
            top, left = (torch.full((len(x),), corner, device=x.device) for corner in self.place)
        down = torch.arange(height, device=x.device) - top[:, None]
        right = torch.arange(width, device=x.device) - left[:, None]
        inside = ((down >= 0) & (down < self.height))[:, :, None] & ((right >= 0) & (right < self.width))[:, None, :]
        pixels = patch[0].to(x.dtype)[
            :, down.clamp(0, self.height - 1)[:, :, None], right.clamp(0, self.width - 1)[:, None, :]
        ]
        return torch.where(inside[:, None], pixels.transpose(0, 1), x)
