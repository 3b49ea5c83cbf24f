"""A model as one list of operations, which `tracing` makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

SIZED = frozenset(("view", "reshape", "_unsafe_view", "expand"))
SHAPED = frozenset(("view", "reshape", "_unsafe_view", "flatten", "unsqueeze", "squeeze", "transpose", "permute"))
BIASED = frozenset(("linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d"))
JOINED = frozenset(("cat", "stack", "gather"))  # whose constants have a row for each sample

# which arguments are added
ADDED = {"add": (0, 2), "sub": (0, 2), "rsub": (0, 2), "where": (1, 3), "cat": (0, 1), "stack": (0, 1)}


@dataclass(frozen=True)
class Ref:
    """The value of another node."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation on values that depend on the input.

    op: name of the aten operation; inputs: names of the values it takes, in the order of its arguments; shape: of a
    sample's value; path: the module it comes from.
    """

    name: str
    op: str
    call: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    inputs: tuple[str, ...]
    shape: torch.Size
    path: str

    @cached_property
    def absolute(self) -> Node:
        """A product with constants with their absolute values, and without what is added."""

        def bare(argument: Any) -> Any:
            if torch.is_tensor(argument) and argument.dtype != torch.bool:
                return argument.abs()
            return abs(argument) if isinstance(argument, (int, float)) else argument

        args = [bare(argument) for argument in self.args]
        if self.op in BIASED:
            args[2:3] = [None] * len(args[2:3])
        return replace(self, args=tuple(args), kwargs={name: bare(value) for name, value in self.kwargs.items()})

    @cached_property
    def linear(self) -> Node:
        """An operation that is linear in its inputs plus a constant, without the constant."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if self.op in BIASED:
            args[2:3] = [None] * len(args[2:3])
            kwargs.pop("bias", None)
        if self.op in ("pad", "constant_pad_nd"):
            value = 2 if self.op == "constant_pad_nd" else 3
            args[value : value + 1] = [0.0] * len(args[value : value + 1])
            kwargs.pop("value", None)
        if self.op == "addmm":
            args[0] = torch.zeros_like(args[0])
        if self.op in ADDED:
            first, end = ADDED[self.op]
            args[first:end] = map(nothing, args[first:end])
        return replace(self, args=tuple(args), kwargs=kwargs)

    def double(self) -> Node:
        """The same in double precision."""

        def wide(argument: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                return type(argument)(wide(each) for each in argument)
            if isinstance(argument, torch.dtype):
                return torch.float64 if argument.is_floating_point else argument
            return argument.double() if torch.is_tensor(argument) and argument.is_floating_point() else argument

        return replace(
            self, args=tuple(map(wide, self.args)), kwargs={key: wide(value) for key, value in self.kwargs.items()}
        )

    def run(self, *values: Tensor) -> Tensor:
        """The operation at these values (n, …) of `inputs`."""
        queue, rows = list(values), len(values[0])

        def filled(argument: Any) -> Any:
            if isinstance(argument, Ref):
                return queue.pop(0)
            if isinstance(argument, (list, tuple)):
                return type(argument)(filled(each) for each in argument)
            if torch.is_tensor(argument) and self.op in JOINED:
                return argument.expand(rows, *argument.shape[1:])
            return argument

        args = [filled(argument) for argument in self.args]
        if self.op in SIZED:
            args[1] = [rows, *args[1][1:]]
        if self.op == "index" and torch.is_tensor(args[1][0]):  # numbers of the samples, see `tracing.made`
            own = torch.arange(rows, device=args[1][0].device).view(rows, *args[1][0].shape[1:])
            args[1] = [own, *args[1][1:]]
        return self.call(*args, **{key: filled(value) for key, value in self.kwargs.items()})


def nothing(argument: Any) -> Any:
    """Zeros in the place of constants."""
    if isinstance(argument, (list, tuple)):
        return type(argument)(map(nothing, argument))
    if torch.is_tensor(argument):
        return torch.zeros_like(argument)
    return 0.0 if isinstance(argument, (int, float)) else argument


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they can be computed; the first one is the input, the last one the logits."""

    nodes: dict[str, Node]
    input: str
    output: str

    @cached_property
    def readers(self) -> dict[str, list[str]]:
        """Which nodes take each node's value."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, node in self.nodes.items():
            for other in dict.fromkeys(node.inputs):
                found[other].append(name)
        return found

    @cached_property
    def device(self) -> torch.device:
        """Where the first constant lies."""
        tensors = (each for node in self.nodes.values() for each in node.args if torch.is_tensor(each))
        return next((each.device for each in tensors), torch.device("cpu"))

    @cached_property
    def norms(self) -> dict[tuple[str, str, str], float]:
        """Norms of linear parts, found once."""
        return {}

    @cached_property
    def double(self) -> Graph:
        """The same in double precision."""
        return replace(self, nodes={name: node.double() for name, node in self.nodes.items()})

    @cached_property
    def widest(self) -> int:
        """Numbers of the largest value."""
        return max(node.shape.numel() for node in self.nodes.values())

    def anchors(self, name: str, known: frozenset[str], nonlinear: frozenset[str]) -> list[str] | None:
        """Nodes among `known` of which this one is a linear function; None where another nonlinear one comes first."""
        found: dict[str, None] = {}
        queue, seen = list(self.nodes[name].inputs), set()
        while queue:
            other = queue.pop()
            if other in known:
                found[other] = None
            elif other in nonlinear:
                return None
            elif other not in seen:
                seen.add(other)
                queue += self.nodes[other].inputs
        return list(found)

    def between(self, source: str, target: str, nonlinear: frozenset[str]) -> Callable[[Tensor], Tensor]:
        """The linear function of the source's value that the target's is, values behind other nonlinear nodes held at zero, in
        double precision."""
        inside: set[str] = set()
        for name, node in self.nodes.items():  # in order: what the source reaches
            if name != source and name not in nonlinear and (source in node.inputs or inside.intersection(node.inputs)):
                inside.add(name)
        queue, needed = [target], []
        while queue:
            name = queue.pop()
            if name in inside and name not in needed:
                needed.append(name)
                queue += self.nodes[name].inputs
        nodes = {name: node.double() for name, node in self.nodes.items() if name in needed}

        def function(x: Tensor) -> Tensor:
            found = {source: x}
            for name, node in nodes.items():
                zeros = (x.new_zeros(len(x), *self.nodes[other].shape) for other in node.inputs)
                found[name] = node.run(*(found.get(o, z) for o, z in zip(node.inputs, zeros, strict=True)))
            return found[target]

        return function

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.values(x)[self.output]

    def moved(self, name: str) -> bool:
        """Whether a node holds the input's own numbers in another shape."""
        while name != self.input:
            node = self.nodes[name]
            if node.op not in SHAPED:
                return False
            name = node.inputs[0]
        return True

    def values(self, x: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """What every node, up to the one named, holds at inputs x (B, …)."""
        found = {self.input: x}
        for name, node in self.nodes.items():
            if name != self.input:
                found[name] = node.run(*(found[other] for other in node.inputs))
            if name == until:
                break
        return found
