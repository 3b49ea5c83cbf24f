"""Which rule belongs to which operation."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Protocol

import torch
from torch import Tensor

from certify.engine.affine import Affine, Box, Convolution, Dense, Pointwise, added, weighted
from certify.engine.curves import CURVES
from certify.engine.front import Front
from certify.engine.graph import Node, Ref
from certify.engine.nonlinear import Chosen, Largest, OneNumber, Product, Slopes, Step
from certify.errors import CertifyError


class Rule(Protocol):
    """What an operation does to boxes and to linear bounds.

    nonlinear: whether its planes depend on the inputs' boxes; `undecided` says at which places of one of them (B, …).
    """

    nonlinear: bool

    def box(self, node: Node, boxes: list[Box]) -> Box:
        """The smallest and largest values, given those of the inputs."""
        ...

    def relax(self, node: Node, boxes: list[Box]) -> tuple[Tensor, ...]:
        """What `back` needs to know of the boxes, for all samples."""
        ...

    def back(
        self, node: Node, front: Front, relaxed: tuple[Tensor, ...], slopes: Slopes | None = None
    ) -> tuple[list[Front], Tensor]:
        """What is in front of each input, and a constant (G, R), that together lie below."""
        ...

    def local(self, node: Node, shapes: list[torch.Size]) -> bool:
        """Whether `back` takes windows of maps."""
        ...

    def undecided(self, node: Node, box: Box) -> Any: ...


POSITIVE = (
    "view", "reshape", "_unsafe_view", "transpose", "permute", "unsqueeze", "squeeze", "slice", "select", "split", "chunk", "unbind",
    "split_with_sizes", "expand", "cat", "stack", "flip", "roll", "mean", "sum", "cumsum",
    "avg_pool1d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d", "constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "index", "index_select", "gather", "narrow", "pixel_shuffle", "pixel_unshuffle", "t", "diagonal", "flatten", "im2col", "unfold",
)  # fmt: skip
ONE_EACH = (  # every number of the result is one of the input that no other one is, or a constant
    "view", "reshape", "_unsafe_view", "transpose", "permute", "unsqueeze", "squeeze", "slice", "select", "split", "chunk", "unbind",
    "split_with_sizes", "flip", "roll", "constant_pad_nd", "narrow", "t", "flatten",
)  # fmt: skip
UNCHANGED = ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "dropout", "_to_copy", "to", "where")
WEIGHTED = ("conv_transpose1d", "conv_transpose2d")
DIVIDED = ("avg_pool2d", "avg_pool3d")  # by a number that may be below zero
STEPS = (
    "cast", "round", "floor", "ceil", "trunc", "sign", "gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not",
    "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "__and__", "__or__", "any", "all", "argmax", "argmin",
)  # fmt: skip
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
PRODUCTS = ("mul", "matmul", "mm", "bmm")
RULES: dict[str, Rule] = (
    {name: Affine() for name in POSITIVE}
    | {name: Pointwise() for name in UNCHANGED}
    | {name: Affine(weighted) for name in (*WEIGHTED, *DIVIDED)}
    | {name: Convolution(weighted) for name in CONVOLUTIONS}
    | {"linear": Dense(weighted), "amax": Largest()}
    | {name: Pointwise(added) for name in ("sub", "rsub", "neg")}
    | {name: OneNumber() for name in CURVES}
    | {name: Step() for name in STEPS}
)
SCALED, FACTOR, BILINEAR, SUM, DIFFERENCE, CHOSEN = (
    Affine(weighted), Pointwise(weighted), Product(), Pointwise(), Pointwise(added), Chosen(),
)  # fmt: skip


def rule_of(node: Node) -> Rule:
    """The rule of an operation. Raises: CertifyError for one that has none."""
    if node.op in PRODUCTS and len(node.inputs) == 1:
        return FACTOR if node.op == "mul" else SCALED
    if node.op in PRODUCTS:
        return BILINEAR
    first = len(node.inputs) == 1 and bool(node.args) and isinstance(node.args[0], Ref)
    if node.op in (*WEIGHTED, *CONVOLUTIONS, "linear") and not first:
        raise CertifyError(
            f"expected constant weights, got {node.op} with weights that depend on the input in {node.path or 'the model'}; write "
            "the product with matmul"
        )
    if node.op in CURVES and not (
        first and all(not torch.is_tensor(each) or each.numel() == 1 for each in node.args[1:])
    ):
        raise CertifyError(
            f"expected single constant numbers beside the value, got others for {node.op} in {node.path or 'the model'}; write it "
            "with exp, log and products"
        )
    if node.op == "add":
        return SUM if node.kwargs.get("alpha", 1) >= 0 else DIFFERENCE
    if node.op == "where" and isinstance(node.args[0], Ref):
        return CHOSEN
    if node.op in RULES and (node.op != "index" or len(node.inputs) == 1):
        return RULES[node.op]
    known = ", ".join(get_close_matches(node.op, {*RULES, *PRODUCTS, "add"}, 3)) or "few of that kind"
    raise CertifyError(
        f"expected operations with a rule, got {node.op} in {node.path or 'the model'}; known are {known} and the others of "
        "certify.engine.rules. Rewrite the module with these, or use smoothing, which needs no rules"
    )
