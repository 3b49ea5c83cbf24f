"""The layers inside a frozen transformer: what each of them reads, seen or replaced during one forward pass."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# keys under which a program hands the source hidden states of a prompt, and low-rank updates {layer: (A, B)}
DEEP, UPDATES = "deep", "updates"
Change = Callable[[int, Tensor], Tensor]  # (number of the layer, hidden states (B, L, D)) -> what the layer reads


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a Hugging Face encoder in the order they run; ALBERT's few groups run several times. [] if unknown."""
    config = getattr(model, "config", None)
    counts = {getattr(config, key, None) for key in ("num_hidden_layers", "num_hidden_groups")} - {None}
    lists = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((found for found in lists if len(found) in counts), [])


def own_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook` for calls of this thread alone: others may run the same network at the same time."""
    owner = threading.get_ident()
    return lambda *given: hook(*given) if threading.get_ident() == owner else None


@contextmanager
def reading(layers: Sequence[nn.Module], change: Change) -> Iterator[None]:
    """Within this context the k-th call of a layer by this thread reads `change(k, states)`; afterwards nothing is left."""
    number = itertools.count()

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        states = change(next(number), args[0] if args else kwargs["hidden_states"])
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_pre_hook(own_thread(hook), with_kwargs=True))
        yield


@contextmanager
def updated(network: nn.Module, updates: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within this context the named linear layers give $Wx + BAx$ to this thread; afterwards nothing is left.

    Shapes: x (..., inputs), A (rank, inputs), B (outputs, rank).
    """

    def hook(a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        return own_thread(lambda layer, args, y: y + F.linear(F.linear(args[0], a.to(y.dtype)), b.to(y.dtype)))

    with ExitStack() as stack:
        for name, (a, b) in updates.items():
            stack.enter_context(network.get_submodule(name).register_forward_hook(hook(a, b)))
        yield


@contextmanager
def prompted(layers: Sequence[nn.Module], deep: Tensor) -> Iterator[None]:
    """Layer k, counted from 0, reads `deep[k - 1]` at its first P positions; the first layer reads what it is given.

    Shapes: deep (layers - 1 or fewer, P, D).
    """

    def replaced(number: int, states: Tensor) -> Tensor:
        if not 1 <= number <= len(deep):
            return states
        rows = deep[number - 1].to(states.dtype).expand(len(states), -1, -1)
        return torch.cat([rows, states[:, rows.shape[1] :]], dim=1)

    with reading(layers, replaced):
        yield


def states_read(network: nn.Module, layers: Sequence[nn.Module], embeds: Tensor) -> list[Tensor]:
    """What each layer reads when `network` is fed `embeds` (1, L, D), one (1, L, D) per layer, without gradient."""
    found: list[Tensor] = []

    def noted(number: int, states: Tensor) -> Tensor:
        found.append(states)
        return states

    with torch.no_grad(), reading(layers, noted):
        network(
            inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        )
    return found


def refuse_compiled(network: nn.Module) -> None:
    """Raise ValueError for a compiled network: compiled code does not look for hooks again."""
    if any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in network.modules()):
        raise ValueError(
            "expected a source that is not compiled for deep prompts or low-rank updates, got a compiled one; load it again"
        )
