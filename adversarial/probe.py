"""A model under attack: asked for some rows at a time, every pass counted, the best point of each row remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adversarial.goals import Goal, GoalError
from adversarial.threat import Region

Keep = Literal["first", "nearest"]  # of several points that reach the goal


@dataclass(frozen=True)
class Result:
    """What an attack came to, one row per sample.

    x_adv: inputs that reach the goal; where none was found the clean input, never something in between.
    success: whether the goal is reached, clean inputs that reach it by themselves (`natural`) included.
    distance: norm of the threat's variables' change, 0 for clean inputs, infinity without success.
    worst: the point of largest `loss` that was seen, a success or not (for training, and for regression).
    loss: the goal's margin there; above zero another class wins.
    forwards, backwards: passes of the model for this sample; `forwards` are the queries of an attack that uses no gradient.
    blind: backward passes that brought no usable gradient (all zero, or not finite).
    """

    x_adv: Tensor
    success: Tensor
    natural: Tensor
    distance: Tensor
    worst: Tensor
    loss: Tensor
    forwards: Tensor
    backwards: Tensor
    blind: Tensor

    @classmethod
    def joined(cls, parts: list[Result]) -> Result:
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    @property
    def robust_accuracy(self) -> float:
        """Share of samples for which the attack failed."""
        return 1 - float(self.success.float().mean())


class Probe:
    """The model, the region and the goal of one batch, asked row by row.

    Every outputs that an attack sees pass through here, so a goal that is reached is never missed and never counted twice.
    `keep`: "first" keeps the first point that reaches the goal, which then leaves the batch; "nearest" the one of least
    distance. `dtype` is that of the model's inputs. For a model that draws random numbers, outputs and gradients are means over `samples` passes.
    """

    def __init__(
        self, model: nn.Module, region: Region, goal: Goal, keep: Keep = "first", *, dtype: torch.dtype = torch.float32,
        samples: int = 1,
    ):  # fmt: skip
        self.samples = samples
        # looking for the nearest example, and l1's schedule of radii, lead through points outside the region
        self.roaming = keep == "nearest" or region.norm == "l1"
        self.model, self.region, self.goal, self.keep, self.dtype = model, region, goal, keep, dtype
        zeros = torch.zeros(len(region), dtype=torch.long, device=region.anchor.device)
        self.forwards, self.backwards, self.blind = zeros.clone(), zeros.clone(), zeros.clone()
        self.reached, self.latest = zeros.bool(), zeros.bool()  # ever; by each row's latest point, wherever it lies
        self.confidence = 0.0  # of the margin that an example must have; attacks may ask for more
        self.copies = False  # whether an attack asks about a row at several points at once, each with an aim of its own
        self.cost: Callable[[Tensor], Tensor] | None = (
            None  # of steps (b, D): ranks examples in the place of the distance
        )
        self.nearest = torch.full_like(region.anchor.flatten(1)[:, 0], torch.inf)
        self.least = self.nearest.clone()
        self.found, self.worst = region.anchor.clone(), region.anchor.clone()
        self.loss = torch.full_like(self.nearest, -torch.inf)
        self.rows = torch.arange(len(region), device=region.anchor.device)
        with torch.no_grad():
            self.clean = self.answered(region.anchor, self.rows)
        goal.check(self.clean)
        self.natural = goal.reached(self.clean)
        self.record(region.anchor, self.rows, self.clean)

    @property
    def open(self) -> Tensor:
        """Rows whose goal is not reached."""
        return self.rows[~self.reached]

    @property
    def sound(self) -> Tensor:
        """Rows that did not reach the goal by themselves."""
        return self.rows[~self.natural]

    def passes(self, z: Tensor, rows: Tensor) -> list[Tensor]:
        """The model's outputs (b, T) in float32 or better, as often as it is sampled, counted."""
        inputs, found = self.region.apply(z, rows).to(self.dtype), []
        for _ in range(self.samples):
            self.forwards.index_add_(0, rows, torch.ones_like(rows))  # a row may come more than once
            outputs = logits_of(self.model(inputs), len(rows))
            if not bool(outputs.detach().isfinite().all()):
                row = int(rows[(~outputs.isfinite()).any(1).nonzero()[0, 0]])
                raise GoalError(f"expected finite logits from the model, got NaN or infinity for row {row}")
            found.append(outputs)
        return found

    def answered(self, z: Tensor, rows: Tensor) -> Tensor:
        """The mean of the model's outputs (b, T)."""
        return mean(self.passes(z, rows))

    @torch.no_grad()
    def outputs(self, z: Tensor, rows: Tensor) -> Tensor:
        """Outputs (b, T) at these points, remembered where they are good."""
        outputs = self.answered(z, rows)
        self.record(z, rows, outputs)
        return outputs

    @torch.no_grad()
    def losses(self, z: Tensor, rows: Tensor, loss: str = "margin", aim: Goal | None = None) -> Tensor:
        """The loss (b,) at these points, remembered where they are good; that of `aim`, a goal of these b points, by default
        that of the rows' goal."""
        outputs = self.answered(z, rows)
        margins = self.record(z, rows, outputs)
        return margins if aim is None and loss == "margin" else (aim or self.goal[rows]).loss(outputs, loss)

    def gradient(self, z: Tensor, rows: Tensor, loss: str, aim: Goal | None = None) -> tuple[Tensor, Tensor]:
        """Gradient of the loss at these points, like z, and the loss (b,): one forward and one backward pass. `aim`: as in
        `losses`."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            outputs, goal = self.passes(z, rows), aim or self.goal[rows]
            values = mean([goal.loss(one, loss) for one in outputs])
            (gradient,) = torch.autograd.grad(values.sum(), z)
        self.backwards.index_add_(0, rows, torch.full_like(rows, self.samples))
        self.blind.index_add_(0, rows, self.samples * (~usable(gradient)).long())
        self.record(z.detach(), rows, mean(outputs).detach())
        return gradient.nan_to_num(0.0, 0.0, 0.0), values.detach()

    def jacobian(
        self, z: Tensor, rows: Tensor, numbers: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients (b, K, …) of the K numbers that `numbers` makes of the outputs, the numbers (b, K) and the outputs: one
        forward and K backward passes."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.answered(z, rows)
            values = numbers(outputs)
            last = values.shape[1] - 1
            gradients = torch.stack(
                [torch.autograd.grad(v.sum(), z, retain_graph=k < last)[0] for k, v in enumerate(values.unbind(1))], 1
            )
        outputs = outputs.detach()
        self.backwards.index_add_(0, rows, torch.full_like(rows, self.samples * values.shape[1]))
        self.blind.index_add_(0, rows, self.samples * (~usable(gradients.flatten(0, 1))).view(values.shape).sum(1))
        self.record(z.detach(), rows, outputs)
        return gradients.nan_to_num(0.0, 0.0, 0.0), values.detach(), outputs

    @torch.no_grad()
    def many(self, z: Tensor, rows: Tensor) -> Tensor:
        """Outputs (b, k, T) at k points of each of these rows, z (b, k, …): k passes each. The nearest that reaches the goal
        and the one of largest margin are remembered."""
        some, flat, count = rows.repeat_interleave(z.shape[1]), z.flatten(0, 1), z.shape[1]
        outputs, goal, region = self.answered(flat, some), self.goal[some], self.region[some]
        inside = region.contains(flat)
        far = torch.where(inside & goal.reached(outputs), region.distance(flat), torch.inf).view(-1, count)
        high = torch.where(inside, goal.loss(outputs, "margin"), -torch.inf).view(-1, count)
        first = torch.arange(len(rows), device=rows.device) * count
        for place, fine in ((high.argmax(1), high.amax(1) > -torch.inf), (far.argmin(1), far.amin(1) < torch.inf)):
            if fine.any():
                chosen = (first + place)[fine]
                self.record(flat[chosen], rows[fine], outputs[chosen])
        return outputs.view(len(rows), count, -1)

    def several(self, z: Tensor, rows: Tensor, loss: str = "margin") -> Tensor:
        """The loss (b, k) at k points of each of these rows, z (b, k, …)."""
        outputs, some = self.many(z, rows), rows.repeat_interleave(z.shape[1])
        return self.goal[some].loss(outputs.flatten(0, 1), loss).view(len(rows), -1)

    def decides(self, z: Tensor, rows: Tensor) -> Tensor:
        """Whether the goal is reached at these points, all that an attack on decisions may know: (b,) for one point (b, …)
        of each row, (b, k) for k of them (b, k, …)."""
        if z.ndim == self.region.anchor.ndim:
            return self.goal[rows].reached(self.outputs(z, rows))
        outputs, some = self.many(z, rows), rows.repeat_interleave(z.shape[1])
        return self.goal[some].reached(outputs.flatten(0, 1)).view(len(rows), -1)

    @torch.no_grad()
    def record(self, z: Tensor, rows: Tensor, outputs: Tensor) -> Tensor:
        """Remember points that reach the goal, and those of largest margin; the margins (b,)."""
        goal = self.goal[rows]
        reached, margins = goal.reached(outputs), goal.loss(outputs, "margin")
        if self.confidence:
            reached = reached & (margins >= self.confidence)
        self.latest[rows] = reached
        news = reached | (margins > self.loss[rows])
        if not news.any():  # most proposals of a random search
            return margins
        rows, z, loss, reached = rows[news], z[news], margins[news], reached[news]
        inside = self.region[rows].contains(z) if self.roaming else torch.ones_like(reached)
        some = self.foremost(inside & (loss > self.loss[rows]), rows, loss)
        self.loss[rows[some]], self.worst[rows[some]] = loss[some].to(self.loss.dtype), z[some]
        reached = reached & inside
        if not reached.any():
            return margins
        rows, z = rows[reached], z[reached]
        region = self.region[rows]
        distance = region.distance(z)
        cost = self.cost(region.steps(z), rows) if self.cost else distance
        better = cost < self.least[rows] if self.keep == "nearest" else ~self.reached[rows]
        some = self.foremost(better, rows, -cost)
        self.found[rows[some]], self.nearest[rows[some]], self.least[rows[some]] = z[some], distance[some], cost[some]
        self.reached[rows[some]] = True
        return margins

    def foremost(self, chosen: Tensor, rows: Tensor, worth: Tensor) -> Tensor:
        """Places of those `chosen`, of several with the same row the one worth most, the first among equals."""
        places = chosen.nonzero()[:, 0]
        if not self.copies:
            return places
        order = places[worth[places].argsort(descending=True, stable=True)]
        order = order[rows[order].argsort(stable=True)]
        own = rows[order]
        return order[torch.cat([own.new_ones(1, dtype=torch.bool), own[1:] != own[:-1]])] if len(own) else order

    def result(self) -> Result:
        """Everything in the model's own input space."""
        found = self.region.apply(self.found, self.rows).to(self.dtype).detach()
        worst = self.region.apply(self.worst, self.rows).to(self.dtype).detach()
        return Result(
            found, self.reached, self.natural, self.nearest, worst, self.loss, self.forwards, self.backwards, self.blind
        )


def mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)


def usable(gradient: Tensor) -> Tensor:
    """Whether each row's gradient is finite and not all zero (b,)."""
    flat = gradient.flatten(1)
    return flat.isfinite().all(1) & (flat != 0).any(1)


def logits_of(answer: Any, rows: int) -> Tensor:
    """Logits (B, T) of what a model returned: a tensor, the first of a tuple, or the `logits` of a mapping.

    Raises: GoalError for anything else.
    """
    if hasattr(answer, "logits"):
        answer = answer.logits
    elif isinstance(answer, dict):
        answer = answer.get("logits")
    elif isinstance(answer, (tuple, list)) and answer:
        answer = answer[0]
    if not isinstance(answer, Tensor) or answer.ndim not in (1, 2) or len(answer) != rows:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise GoalError(f"expected logits ({rows}, classes) from the model, got {shape}; wrap it to return logits")
    answer = answer if answer.ndim == 2 else answer[:, None]
    return answer if answer.dtype == torch.float64 else answer.float()


@contextmanager
def inspected(model: nn.Module, x: Tensor) -> Iterator[None]:
    """The model in evaluation mode inside, every module as it was afterwards.

    Raises: GoalError when model and inputs lie on different devices or differ in precision.
    """
    if not x.is_floating_point():
        raise GoalError(f"expected inputs of floating point, got {x.dtype}; scale them to the bounds first")
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None and weight.device != x.device:
        raise GoalError(f"expected inputs on the model's device {weight.device}, got {x.device}; move one of them")
    if weight is not None and weight.dtype != x.dtype:
        raise GoalError(f"expected inputs of the model's {weight.dtype}, got {x.dtype}; convert one of them")
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
