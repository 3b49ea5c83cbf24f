"""Gradient steps: how `p.grad` of the trainable parameters is filled. `fit` takes any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn


class GradientStep(Protocol):
    """`(model, closure, accelerator) -> loss`: run `closure()` as often as it needs and leave gradients in `p.grad`."""

    def __call__(self, model: nn.Module, closure: Callable[[], Tensor], accelerator) -> Tensor: ...


def backprop(model: nn.Module, closure: Callable[[], Tensor], accelerator) -> Tensor:
    """One forward and one backward pass through the frozen source to the program: the white-box step."""
    loss = closure()
    accelerator.backward(loss)
    return loss.detach()
