"""A set of changed parameters: chosen tensors of a model move, for every sample by itself, and the inputs stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from operator import attrgetter

import torch
from torch import Tensor, nn

from adversarial.lifting import ParametrisedSet
from adversarial.probe import logits_of
from adversarial.threat import ThreatError


@dataclass(frozen=True)
class Weights(ParametrisedSet):
    r"""Changes of a model's weights, one of its own for every sample: $w + s \odot z$ with s = 1, or |w| when `relative`.

        weights = Weights(model, ["head.*"], x.shape[1:])
        attack = PGD(lift(weights, Ball("linf", 0.01, None, None)))
        result = attack.run(weights.module, weights.beside(x), y)
        weights.values(result.x_adv)["head.weight"]          # (B, …), the weights that change the answer

    The model that is attacked is `module`, which reads inputs with the changes z beside them and runs each row with weights
    of its own; the model itself keeps its weights. The ball's norm and eps are those of z, over all chosen tensors together:
    linf 0.05 lets each weight move by 0.05, with `relative` by 5 % of itself. A batch of b rows holds b copies of the chosen
    tensors, so give large ones a small `batch_size`.

    Args:
        model: a module that returns logits; of a reprogrammed model the `module` of its `continuous` view.
        names: parameters and buffers by name, or patterns such as "*.weight"; by default all parameters.
        shape: that of one input.
        relative: changes in units of each weight's own size, so that a weight of 0 stays.
        vectorised: all rows of a batch at once, by `torch.vmap`, which refuses code that branches on a tensor's values or
            asks for its memory format; False runs one row after the other.

    Reference: Tsai, Hsu, Yu & Chen, "Formalizing generalization and adversarial robustness of neural networks to weight
    perturbations", NeurIPS 2021, arXiv:2103.02200; relative: Kwon et al., "ASAM", ICML 2021, arXiv:2102.11600.
    Differs from the papers: every sample has a perturbation of its own instead of one for all.
    Raises: ThreatError for a name that no tensor has, for inputs that were not made by `beside`, and for a model that does
    not run under `torch.vmap`.
    """

    model: nn.Module
    names: Sequence[str] = ()
    shape: Sequence[int] = ()
    relative: bool = False
    vectorised: bool = True
    low = -math.inf
    high = math.inf
    within = (None, None)

    @cached_property
    def chosen(self) -> tuple[str, ...]:
        """The full names of the tensors that change."""
        own = [name for name, _ in self.model.named_parameters()]
        every = own + [name for name, buffer in self.model.named_buffers() if buffer.is_floating_point()]
        found = dict.fromkeys(() if self.names else own)
        for name in self.names:
            some = [one for one in every if fnmatchcase(one, name)]
            if not some:
                raise ThreatError(f"expected names among {', '.join(every)}, got {name!r}")
            found |= dict.fromkeys(some)
        if not found:
            raise ThreatError("expected a model with parameters, got one without")
        return tuple(found)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors as they are in the model now."""
        return {name: attrgetter(name)(self.model).detach() for name in self.chosen}

    @cached_property
    def module(self) -> nn.Module:
        """What is attacked: inputs with the changes beside them, (B, n + k), to the model's logits."""
        return Changed(self)

    def beside(self, x: Tensor) -> Tensor:
        """Inputs (B, *shape) with no change beside them, (B, n + k)."""
        if x.shape[1:] != tuple(self.shape):
            raise ThreatError(f"expected inputs of shape (B, *{tuple(self.shape)}), got {tuple(x.shape)}")
        return torch.cat([x.flatten(1), x.new_zeros(len(x), self.size)], 1)

    @property
    def size(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, n) and changes (B, k) of rows that `beside` made."""
        width = math.prod(self.shape)
        if x.ndim != 2 or x.shape[1] != width + self.size:
            raise ThreatError(
                f"expected inputs (B, {width + self.size}) with the changes beside them, got {tuple(x.shape)}; make them with "
                "beside()"
            )
        return x[:, :width], x[:, width:]

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """The changed tensors, (B, …) each, that rows of `module`'s inputs stand for."""
        sizes = [tensor.numel() for tensor in self.tensors.values()]
        changes = zip(self.tensors.items(), self.apart(x)[1].split(sizes, 1), strict=True)
        return {
            name: tensor + (tensor.abs() if self.relative else 1) * change.view(-1, *tensor.shape)
            for (name, tensor), change in changes
        }

    def neutral(self, x: Tensor) -> Tensor:
        return self.apart(x)[1]

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return torch.cat([self.apart(x)[0], parameters], 1)


class Changed(nn.Module):
    """A model of which every row of a batch has weights of its own."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.model, self.weights = weights.model, weights

    def forward(self, x: Tensor) -> Tensor:
        inputs, values = self.weights.apart(x)[0].reshape(-1, *self.weights.shape), self.weights.values(x)
        if not self.weights.vectorised:
            rows = ({name: tensor[row] for name, tensor in values.items()} for row in range(len(x)))
            return torch.stack([self.alone(own, one) for own, one in zip(rows, inputs, strict=True)])
        try:
            return torch.vmap(self.alone, randomness="different")(values, inputs)
        except RuntimeError as error:
            if not any(word in str(error).lower() for word in ("vmap", "batching rule")):
                raise
            reason = " ".join(str(error).split())[:120]
            raise ThreatError(
                f"expected a model that runs under torch.vmap, got one that does not ({reason}); pass vectorised=False"
            ) from error

    def alone(self, values: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits (T,) of one input."""
        return logits_of(torch.func.functional_call(self.model, values, (x[None],)), 1)[0]
