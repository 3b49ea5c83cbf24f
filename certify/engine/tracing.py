"""A model's operations: what `torch.export` sees, constants folded away, the batch left open."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from certify.engine.answers import check_answers, check_one_precision, check_precise
from certify.engine.composites import TABLE, together
from certify.engine.graph import Graph, Node, Ref
from certify.errors import CertifyError

BATCH = 29  # of the example: what a shape begins with is the batch's if it equals this, so no usual size, nor one that sources split
SAME = frozenset(("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "dropout", "_to_copy", "to"))
# they hold for the example, and give nothing
LIKE = frozenset(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"))  # of a shape alone
UNSAID = frozenset(("_assert_tensor_metadata", "_assert_scalar", "_assert_async"))


def check_still(model: nn.Module) -> None:
    """Raise CertifyError for a model whose answers change from call to call, and for what is no module."""
    if not isinstance(model, nn.Module):
        raise CertifyError(f"expected a torch.nn.Module, got a {type(model).__name__}; call it in a module's forward")
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

    Raises: CertifyError for a model in training, for inputs of half precision, for a model that `torch.export` cannot
    follow, and for one that mixes the samples of a batch.
    """
    if isinstance(model, Graph):
        return model
    check_still(model)
    check_precise(x)
    example = x[:1].detach().expand(BATCH, *x.shape[1:]).clone()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance.treespec", FutureWarning)  # torch's own, at every trace
            program = torch.export.export(model, (example,), strict=False)
            together(program.graph)
            program = program.run_decompositions(TABLE)
    except NotImplementedError as error:  # of `composites`
        raise CertifyError(
            f"expected operations with a rule, got {error}; rewrite that module, or use smoothing, which needs no rules"
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CertifyError(
            f"expected a model that torch.export can follow, got one that it cannot ({reason}); data-dependent control flow "
            "and sizes have no bound: certify the part that has none, or use smoothing"
        ) from error
    graph = flattened(program)
    check_answers(graph, model, x)
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
            held = state[target[node.name]]
            constants[node.name] = held.detach() if torch.is_tensor(held) else held
        elif node.op == "placeholder":
            first = node.name
            nodes[first] = Node(first, "input", torch.Tensor.clone, (), {}, (), node.meta["val"].shape[1:], "")
        elif node.op == "output":
            last = signature.user_outputs[0]  # in front of it are buffers that change
        elif not any(other.name in nodes or other.name in several for other in node.all_input_nodes):
            with torch.no_grad():
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda other: constants[other.name])
                constants[node.name] = batchless(node.target(*args, **kwargs))
        elif operation(node) in LIKE:
            like = node.args[0].meta["val"]
            like = torch.empty(like.shape, dtype=like.dtype, device=like.device)
            constants[node.name] = batchless(node.target(like, *node.args[1:], **node.kwargs))
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
    shape, name = getattr(node.meta["val"], "shape", ()), operation(origin)
    stack = list((origin.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    if not all(isinstance(size, int) for size in shape):
        raise CertifyError(
            f"expected sizes that no value decides, got {name} of shape {tuple(shape)} in {path or 'the model'}; pick by number"
        )
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
    moving = (each for each in (*origin.all_input_nodes, node) if each.name not in constants)
    check_one_precision({each.meta["val"].dtype for each in moving if torch.is_tensor(each.meta["val"])}, name, path)
    if name in SAME and not all(kind.is_floating_point for kind in kinds):
        name, args, kwargs, call = "cast", (*args[:1], node.meta["val"].dtype), {}, torch.Tensor.to
    elif name in SAME:
        args, kwargs, call = args[:1], {}, torch.Tensor.clone
    if name == "mul" and len(inputs) == 2 and inputs[0] == inputs[1]:
        name, args, call, inputs = "square", args[:1], torch.square, inputs[:1]
    return Node(node.name, name, call, args, dict(kwargs), tuple(inputs), shape[1:], path)
