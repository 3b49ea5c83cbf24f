"""What an attack wants: another class, a certain class, another label of several, a larger error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-12


class GoalError(ValueError):
    """Labels that do not fit the model's answer, or an answer that is no logits."""


class Goal(Protocol):
    """`reached` says for which outputs (B, T) the goal is met, `loss` (B,) grows towards it, `check` refuses outputs that
    do not fit."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor) -> Goal: ...
    def reached(self, outputs: Tensor) -> Tensor: ...
    def loss(self, outputs: Tensor, name: str) -> Tensor: ...
    def check(self, outputs: Tensor) -> None: ...


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    r"""$\max_{i\ne y} z_i - z_y$ (B,): above zero when another class wins."""
    own = outputs.gather(1, labels[:, None])
    others = outputs.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own[:, 0]


def dlr(outputs: Tensor, labels: Tensor) -> Tensor:
    r"""Difference of logits ratio $(\max_{i\ne y} z_i - z_y) / (z_{(1)} - z_{(3)})$; with two classes the plain margin,
    which has no scale to divide by.

    Reference: Croce & Hein, "Reliable evaluation of adversarial robustness", ICML 2020, arXiv:2003.01690.
    """
    if outputs.shape[1] < 3:
        return margin(outputs, labels)
    top = outputs.topk(3, dim=1).values
    return margin(outputs, labels) / (top[:, 0] - top[:, 2] + TINY)


def dlr_targeted(outputs: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    r"""$-(z_y - z_t) / (z_{(1)} - (z_{(3)} + z_{(4)})/2)$; with three classes $z_{(3)}$ stands for both, with two the plain
    difference. Reference: as `dlr`, which leaves fewer than four classes open.
    """
    difference = (outputs.gather(1, targets[:, None]) - outputs.gather(1, labels[:, None]))[:, 0]
    if outputs.shape[1] < 3:
        return difference
    top = outputs.topk(min(4, outputs.shape[1]), dim=1).values
    return difference / (top[:, 0] - (top[:, 2] + top[:, -1]) / 2 + TINY)


UNTARGETED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": lambda z, y: F.cross_entropy(z, y, reduction="none"), "margin": margin, "dlr": dlr,
}  # fmt: skip
TARGETED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": lambda z, y, t: -F.cross_entropy(z, t, reduction="none"), "margin": lambda z, y, t: -margin(z, t),
    "dlr": dlr_targeted,
}  # fmt: skip


def named(losses: dict, name: str) -> Callable[..., Tensor]:
    if name not in losses:
        raise GoalError(f"expected a loss among {', '.join(losses)}, got {name!r}")
    return losses[name]


@dataclass(frozen=True)
class Untargeted:
    """Any class but `labels` (B,)."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Untargeted:
        return Untargeted(self.labels[rows])

    def reached(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1) != self.labels

    def loss(self, outputs: Tensor, name: str) -> Tensor:
        return named(UNTARGETED, name)(outputs, self.labels)

    def check(self, outputs: Tensor) -> None:
        check_classes(outputs, self.labels, "labels")


@dataclass(frozen=True)
class Targeted:
    """The classes `targets` (B,); `labels` are the true ones, by default what the goal leaves out of account."""

    targets: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Tensor) -> Targeted:
        return Targeted(self.targets[rows], None if self.labels is None else self.labels[rows])

    def reached(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1) == self.targets

    def loss(self, outputs: Tensor, name: str) -> Tensor:
        labels = self.labels
        if labels is None:  # the strongest class that is not the target stands for the true one
            labels = outputs.scatter(1, self.targets[:, None], -torch.inf).argmax(1)
        return named(TARGETED, name)(outputs, labels, self.targets)

    def check(self, outputs: Tensor) -> None:
        check_classes(outputs, self.targets, "targets")
        if self.labels is not None:
            check_classes(outputs, self.labels, "labels")


@dataclass(frozen=True)
class MultiLabel:
    """At least one of the labels (B, T), 0 or 1, decided otherwise; a logit above zero says 1."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> MultiLabel:
        return MultiLabel(self.labels[rows])

    def reached(self, outputs: Tensor) -> Tensor:
        return ((outputs > 0) != self.labels.bool()).any(1)

    def loss(self, outputs: Tensor, name: str) -> Tensor:
        signed = outputs * (1 - 2 * self.labels.to(outputs.dtype))
        return signed.amax(1) if named(UNTARGETED, name) is not UNTARGETED["ce"] else F.softplus(signed).sum(1)

    def check(self, outputs: Tensor) -> None:
        if outputs.shape != self.labels.shape or not bool(((self.labels == 0) | (self.labels == 1)).all()):
            raise GoalError(
                f"expected labels 0 or 1 of shape {tuple(outputs.shape)}, got {tuple(self.labels.shape)} from "
                f"{self.labels.min()} to {self.labels.max()}"
            )


@dataclass(frozen=True)
class LargerError:
    """A regression whose largest absolute error over its outputs exceeds `tolerance`; `values` (B,) or (B, T).

    Without a tolerance an attack uses its whole budget, and its worst point counts as a success where the error grew.
    """

    values: Tensor
    tolerance: float = float("inf")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor) -> LargerError:
        return LargerError(self.values[rows], self.tolerance)

    def reached(self, outputs: Tensor) -> Tensor:
        return self.loss(outputs, "") > self.tolerance

    def loss(self, outputs: Tensor, name: str) -> Tensor:
        return (outputs - self.values.view_as(outputs)).abs().amax(1)

    def check(self, outputs: Tensor) -> None:
        if outputs.numel() != self.values.numel():
            raise GoalError(f"expected values of shape {tuple(outputs.shape)}, got {tuple(self.values.shape)}")
        if not bool(self.values.isfinite().all()):
            raise GoalError("expected finite values, got NaN or infinity; leave these rows out")


def check_classes(outputs: Tensor, labels: Tensor, what: str) -> None:
    """Refuse labels outside the classes, and probabilities."""
    if outputs.shape[1] < 2:
        raise GoalError(
            f"expected logits of at least two classes, got shape {tuple(outputs.shape)}; for one output pass "
            "MultiLabel or LargerError"
        )
    bad = (labels < 0) | (labels >= outputs.shape[1])
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise GoalError(f"expected {what} from 0 to {outputs.shape[1] - 1}, got {int(labels[row])} in row {row}")
    if bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-4).all()):
        raise GoalError(
            "expected logits, got rows that are not negative and sum to 1; return the logits before the softmax, or "
            "the logarithm of the probabilities"
        )


def goal_of(y: Tensor | Goal, x: Tensor) -> Goal:
    """The goal that `y` stands for: class labels (B,) mean any other class.

    Raises: GoalError for labels that are no class indices, of another number than the inputs or on another device.
    """
    for name, value in (("inputs", x), ("labels", y)):
        if type(value).__module__ == "numpy":
            raise GoalError(f"expected {name} as a tensor, got a NumPy array; pass torch.as_tensor({name})")
    if not isinstance(y, Tensor):
        found = y
    elif y.ndim == 1 and not y.is_floating_point() and y.dtype is not torch.bool:
        found = Untargeted(y.long())
    else:
        raise GoalError(
            f"expected class indices (B,) of whole numbers, got {y.dtype} of shape {tuple(y.shape)}; pass y.argmax(1) for "
            "one-hot rows, MultiLabel(y) for several labels, LargerError(y) for values"
        )
    if len(found) != len(x):
        raise GoalError(f"expected a label for each of {len(x)} inputs, got {len(found)}")
    for value in getattr(found, "__dict__", {}).values():
        if isinstance(value, Tensor) and value.device != x.device:
            raise GoalError(f"expected labels on the inputs' device {x.device}, got {value.device}; move one of them")
    return found
