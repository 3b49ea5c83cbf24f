"""A model as one list of operations: what `torch.export` sees, constants folded away, the batch left open."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from certify.engine.composites import TABLE
from certify.errors import CertifyError

BATCH = 29  # of the example: what a shape begins with is the batch's if it equals this, so no usual size, nor one that sources split
SIZED = frozenset(("view", "reshape", "_unsafe_view", "expand"))
SHAPED = frozenset(("view", "reshape", "_unsafe_view", "flatten", "unsqueeze", "squeeze", "transpose", "permute"))
BIASED = frozenset(("linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d"))
JOINED = frozenset(("cat", "stack"))
SAME = frozenset(("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "dropout", "_to_copy", "to"))
UNSAID = frozenset(
    ("_assert_tensor_metadata", "_assert_scalar", "_assert_async")
)  # they hold for the example, and give nothing


ADDED = {
    "add": (0, 2),
    "sub": (0, 2),
    "rsub": (0, 2),
    "where": (1, 3),
    "cat": (0, 1),
    "stack": (0, 1),
}  # arguments that are added


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
        if self.op == "addmm":
            args[0] = torch.zeros_like(args[0])
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
        if self.op == "index" and torch.is_tensor(args[1][0]):  # numbers of the samples, see `made`
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


def check_still(model: nn.Module) -> None:
    """Raise CertifyError for a model whose answers change from call to call."""
    if model.training:
        raise CertifyError("expected a model in evaluation mode, got one in training; call model.eval() first")
    lively = next((name for name, module in model.named_modules() if module.training), None)
    if lively is not None:
        raise CertifyError(
            f"expected every module in evaluation mode, got {lively} in training; call model.eval() first"
        )


def trace(model: nn.Module | Graph, x: Tensor) -> Graph:
    """The operations of a model at inputs like x (B, …).

    Certifiers trace by themselves; the result can stand in the model's place for all of them, so that many threats
    cost one trace. Weights are folded into it: trace again after training.

    Raises: CertifyError for a model in training, for one that `torch.export` cannot follow, and for one that mixes
    the samples of a batch.
    """
    if isinstance(model, Graph):
        return model
    check_still(model)
    if not x.is_floating_point():
        raise CertifyError(
            f"expected inputs of floating point, got {x.dtype}; a token model is certified on its embeddings"
        )
    example = x[:1].detach().expand(BATCH, *x.shape[1:]).clone()
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), strict=False).run_decompositions(TABLE)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CertifyError(
            f"expected a model that torch.export can follow, got one that it cannot ({reason}); data-dependent control flow "
            "and sizes have no bound: certify the part that has none, or use smoothing"
        ) from error
    graph = flattened(program)
    with torch.no_grad():
        probe = torch.cat([x[:1], x[:1] / 2]).detach()
        own = torch.cat([model(row[None]) for row in probe])
        same = torch.allclose(graph(probe), own, rtol=1e-3, atol=1e-4, equal_nan=True)
    if not same:
        raise CertifyError(
            "expected a model whose operations give its own answers sample by sample, got others; does it draw random numbers, "
            "or mix the samples of a batch?"
        )
    return graph


def flattened(program: Any) -> Graph:
    """The nodes of an exported program that depend on its input; all others are computed now."""
    signature, state = program.graph_signature, {**program.state_dict, **program.constants}
    target = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target is not None}
    constants: dict[str, Any] = {}
    several: dict[str, Any] = {}  # nodes with more than one output
    nodes: dict[str, Node] = {}
    first = last = ""
    unstacked(program.graph)
    for node in program.graph.nodes:
        if node.op == "call_function" and operation(node) in UNSAID:
            continue
        if node.op == "placeholder" and node.name in target:
            constants[node.name] = state[target[node.name]].detach()
        elif node.op == "placeholder":
            first = node.name
            nodes[first] = Node(first, "input", torch.Tensor.clone, (), {}, (), node.meta["val"].shape[1:], "")
        elif node.op == "output":
            last = node.args[0][0].name
        elif not any(other.name in nodes or other.name in several for other in node.all_input_nodes):
            with torch.no_grad():
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda other: constants[other.name])
                constants[node.name] = batchless(node.target(*args, **kwargs))
        elif isinstance(node.meta["val"], (tuple, list)):
            several[node.name] = node
        else:
            nodes[node.name] = made(node, several, constants)
    if last not in nodes:
        raise CertifyError("expected logits that depend on the input, got a constant")
    return Graph(nodes, first, last)


def unstacked(graph: Any) -> None:
    """One value out of a stack is that value: recurrent networks stack last states in front of the batch."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.select.int and node.args[1] == 0:
            stack = node.args[0]
            if stack.target is torch.ops.aten.stack.default and not any(stack.args[1:]):
                node.replace_all_uses_with(stack.args[0][node.args[2]])
                graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target is torch.ops.aten.stack.default and not node.users:
            graph.erase_node(node)


def batchless(value: Any) -> Any:
    """A constant that was expanded along the batch, for one sample."""
    if torch.is_tensor(value) and value.ndim > 1 and len(value) == BATCH and bool((value == value[:1]).all()):
        return value[:1]
    return value


def operation(node: Any) -> str:
    return node.target.__name__.split(".")[0]


def made(node: Any, several: dict[str, Any], constants: dict[str, Any]) -> Node:
    """A node of ours from one of torch's."""
    pick, origin = None, node
    if node.target is operator.getitem:
        origin, pick = several[node.args[0].name], node.args[1]
    shape, name = node.meta["val"].shape, operation(origin)
    stack = list((origin.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    if not len(shape) or shape[0] != BATCH:
        raise CertifyError(
            f"expected values with one row per sample, got {name} of shape {tuple(shape)} in {path or 'the model'}"
        )
    inputs: list[str] = []

    def argument(other: Any) -> Any:
        if other.name in constants:
            return constants[other.name]
        inputs.append(other.name)
        return Ref(other.name)

    args, kwargs = torch.fx.node.map_arg((tuple(origin.args), dict(origin.kwargs)), argument)
    if name == "index" and torch.is_tensor(args[1][0]):
        own = torch.arange(BATCH, device=args[1][0].device)
        if args[1][0].shape[:1] != own.shape or not bool(
            (args[1][0] == own.view(-1, *(1,) * (args[1][0].ndim - 1))).all()
        ):
            raise CertifyError(
                f"expected a model that keeps samples apart, got rows picked by number in {path or 'the model'}"
            )
    call = origin.target if pick is None else (lambda *a, **k: origin.target(*a, **k)[pick])
    if name in ("view", "_unsafe_view"):  # of values that lie otherwise in memory than the exporter's
        call = torch.Tensor.reshape
    kinds = {each.meta["val"].dtype for each in (*origin.all_input_nodes, node) if torch.is_tensor(each.meta["val"])}
    if name in SAME and not all(kind.is_floating_point for kind in kinds):
        name, args, kwargs, call = "cast", (*args[:1], node.meta["val"].dtype), {}, torch.Tensor.to
    elif name in SAME:
        args, kwargs, call = args[:1], {}, torch.Tensor.clone
    if name == "mul" and len(inputs) == 2 and inputs[0] == inputs[1]:
        name, args, call, inputs = "square", args[:1], torch.square, inputs[:1]
    return Node(node.name, name, call, args, dict(kwargs), tuple(inputs), shape[1:], path)
