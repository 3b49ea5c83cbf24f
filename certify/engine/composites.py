"""Operations that are several simpler ones, written as these for the exporter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def far(dtype: torch.dtype) -> float:
    """Stands for what is outside the image of a max pooling; sums and differences of it do not overflow."""
    return torch.finfo(dtype).min / 4


def most(dtype: torch.dtype) -> float:
    """exp of more would soon overflow, as of a mask; 1 / exp of it is less than the type tells from nothing, or nearly so."""
    return 0.9 * math.log(torch.finfo(dtype).max)


def divide(x: Any, y: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        raise NotImplementedError("a division that rounds")
    return x * torch.reciprocal(y) if torch.is_tensor(y) else x * (1.0 / y)


def softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    """1 / Σ_j exp(x_j − x_i): sums of exponentials of differences lose less than a quotient of two bounds."""
    apart = differences(x.transpose(dim, -1)).clamp(max=most(x.dtype))
    return torch.exp(apart).sum(-1).reciprocal().transpose(dim, -1)


def log_softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    return -torch.log(torch.exp(differences(x.transpose(dim, -1))).sum(-1)).transpose(dim, -1)


def differences(x: Tensor) -> Tensor:
    """x_j − x_i at (…, i, j)."""
    others = 1 - torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)  # intervals forget that x_i − x_i is 0
    return (x.unsqueeze(-2) - x.unsqueeze(-1)) * others


def together(graph: torch.fx.Graph) -> None:
    """The logarithm of a softmax as one operation: by itself a softmax ends where its type does, its logarithm goes on."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.log.default and node.args[0].target is aten.softmax.int:
            with graph.inserting_before(node):
                found = graph.call_function(aten.log_softmax.int, node.args[0].args[:2])
            found.meta = node.meta
            node.replace_all_uses_with(found)
            graph.erase_node(node)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if dropout or enable_gqa:
        raise NotImplementedError("attention with dropout or grouped queries")
    scores = torch.matmul(q, k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores + (torch.where(mask, 0.0, -1e4) if mask.dtype == torch.bool else mask.clamp(min=-1e4))
    return torch.matmul(softmax(scores, -1), v)


def scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def normal(x: Tensor, dims: list[int], eps: float) -> Tensor:
    return per_root_mean_square(x - x.mean(dims, keepdim=True), dims, eps)


def per_root_mean_square(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """Over n numbers it is never above √n in size, which the product of two intervals does not know."""
    most = math.sqrt(math.prod(x.shape[dim] for dim in dims)) * (1 + 1e-6)
    return (x * torch.rsqrt(torch.square(x).mean(dims, keepdim=True) + eps)).clamp(-most, most)


def layer_norm(x: Tensor, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    return scaled(normal(x, [-i - 1 for i in range(len(shape))], eps), weight, bias)


def rms_norm(x: Tensor, shape: list[int], weight: Any = None, eps: float | None = None) -> Tensor:
    dims = [-i - 1 for i in range(len(shape))]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return scaled(per_root_mean_square(x, dims, eps), weight, None)


def group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    wide = [-1, *(1,) * (x.ndim - 2)]
    apart = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    found = normal(apart, list(range(2, apart.ndim)), eps).reshape(x.shape)
    return scaled(found, *(part if part is None else part.view(wide) for part in (weight, bias)))


def batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *rest: Any) -> Tensor:
    if training or mean is None:
        raise NotImplementedError("batch normalisation with the batch's own mean")
    return batch_norm_still(x, weight, bias, mean, variance, 0.0, rest[1])[0]


def batch_norm_still(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = [-1, *(1,) * (x.ndim - 2)]
    factor = torch.rsqrt(variance + eps) * (1.0 if weight is None else weight)
    shift = -mean * factor + (0.0 if bias is None else bias)
    return x * factor.view(wide) + shift.view(wide), x.new_empty(0), x.new_empty(0)


def larger(x: Tensor, y: Tensor) -> Tensor:
    return y + torch.relu(x - y)


def smaller(x: Tensor, y: Tensor) -> Tensor:
    return y - torch.relu(y - x)


def between(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else larger(x, low)
    return x if high is None else smaller(x, high)


def added_product(x: Tensor, y: Tensor, z: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return x * beta + torch.matmul(y, z) * alpha


def raised(base: float, exponent: Tensor) -> Tensor:
    if base <= 0:
        raise NotImplementedError(f"powers of {base:g}")
    return torch.exp(exponent * math.log(base))


def max_pool(axes: int) -> Callable[..., Tensor]:
    """Max pooling over the last `axes` axes: the largest of shifted copies."""

    def pool(
        x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> Tensor:
        if ceil:
            raise NotImplementedError("max pooling with ceil_mode")
        k, s, p, d = (
            list(v) if not isinstance(v, int) else [v] * axes for v in (kernel, stride or kernel, padding, dilation)
        )
        k, s, p, d = (v * axes if len(v) == 1 else v for v in (k, s, p, d))
        if any(p):
            x = torch.constant_pad_nd(x, [each for size in reversed(p) for each in (size, size)], far(x.dtype))
        copies = [x]
        for axis in range(axes):
            dim = x.ndim - axes + axis
            count = (x.shape[dim] - d[axis] * (k[axis] - 1) - 1) // s[axis] + 1
            copies = [
                torch.ops.aten.slice(copy, dim, i * d[axis], i * d[axis] + s[axis] * (count - 1) + 1, s[axis])
                for copy in copies
                for i in range(k[axis])
            ]
        return torch.stack(copies, -1).amax(-1)

    return pool


def lstm(
    x: Tensor, hidden: list[Tensor], weights: list[Tensor], biased: bool, layers: int, dropout: float, training: bool,
    both: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Cells one after the other; hidden states that begin as constants are one row for all samples."""
    per = 4 if biased else 2
    if len(weights) != per * layers * (2 if both else 1):
        raise NotImplementedError("an LSTM with projections")
    x = x if batch_first else x.transpose(0, 1)
    last_h, last_c = [], []
    for layer in range(layers):
        ways = []
        for way in range(2 if both else 1):
            place = layer * (2 if both else 1) + way
            own = weights[place * per : place * per + per]
            h, c, steps = hidden[0][place], hidden[1][place], []
            turns = range(x.shape[1]) if way == 0 else reversed(range(x.shape[1]))
            for t in turns:
                gates = torch.nn.functional.linear(x[:, t], own[0], own[2] if biased else None)
                gates = gates + torch.nn.functional.linear(h, own[1], own[3] if biased else None)
                i, f, g, o = gates.chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                steps.append(h)
            ways.append(torch.stack(steps if way == 0 else steps[::-1], 1))
            last_h.append(h)
            last_c.append(c)
        x = torch.cat(ways, -1)
    return (x if batch_first else x.transpose(0, 1)), torch.stack(last_h), torch.stack(last_c)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.div.Tensor: divide, aten.div.Scalar: divide,
    aten.softmax.int: softmax, aten._softmax.default: softmax,
    aten.log_softmax.int: log_softmax, aten._log_softmax.default: log_softmax,
    aten.scaled_dot_product_attention.default: attention,
    aten.layer_norm.default: layer_norm, aten.rms_norm.default: rms_norm, aten.group_norm.default: group_norm,
    aten.batch_norm.default: batch_norm, aten._native_batch_norm_legit_no_training.default: batch_norm_still,
    aten.maximum.default: larger, aten.minimum.default: smaller, aten.max.other: larger, aten.min.other: smaller,
    aten.clamp.Tensor: between, aten.clamp_min.Tensor: larger, aten.clamp_max.Tensor: smaller,
    aten.addmm.default: added_product, aten.baddbmm.default: added_product, aten.bmm.default: torch.matmul,
    aten.true_divide.Tensor: divide, aten.true_divide.Scalar: divide, aten.pow.Scalar: raised,
    aten.max_pool1d.default: max_pool(1), aten.max_pool2d.default: max_pool(2), aten.max_pool3d.default: max_pool(3),
    aten.lstm.input: lstm,
}  # fmt: skip
