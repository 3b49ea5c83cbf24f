"""Low-rank updates of a frozen source (LoRA), learned together with the program in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.programs.base import first_binding
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record
from reprogram.sources.layers import UPDATES

Factors = dict[str, tuple[Tensor, Tensor]]


@configurable
class LowRank(nn.Module):
    r"""A program, and beside it updates of the source's linear layers: $W x + \tfrac{\alpha}{r} B A x$ in place of $W x$.

    The updates belong to the program: they travel with its batch and act during that one pass, so the source keeps every
    weight and other models may share it. `LowRank(Identity())` is plain LoRA. `layers` are names or dotted parts of names
    ("query", "encoder.layer.11") of linear layers; None takes all of them. `adam(adapter=…)` sets their learning rate.

    Shapes: per layer A (rank, inputs), drawn with variance 1 / inputs by `seed`, and B (outputs, rank), 0 at the start.
    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
    Differs from the paper: all linear layers by default, $\alpha = 2r$; no dropout.
    Raises: ValueError for a source without a gradient or without such layers; DataError for a rank below 1.
    """

    def __init__(
        self, program: nn.Module, *, rank: int = 8, alpha: float | None = None, layers: Sequence[str] | None = None,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if not isinstance(rank, int) or rank < 1:
            raise DataError(f"expected a whole rank of at least 1, got {rank}")
        layers = [layers] if isinstance(layers, str) else layers
        self.program, self.rank, self.layers, self.seed = program, rank, layers, seed
        self.scale = 2.0 if alpha is None else alpha / rank
        self.given: Factors = {}

    def bind(self, source: Source) -> None:
        self.program.bind(source)
        names = adaptable(source, self.layers)
        self.names = tuple(names)
        if first_binding(self, source):
            generator = torch.Generator().manual_seed(self.seed)
            drawn = [self.start(name, names[name], generator) for name in self.names]
            down, up = zip(*drawn, strict=True)
            self.adapter = nn.ModuleDict({"down": nn.ParameterList(down), "up": nn.ParameterList(up)})
            self.adapter.to(next(source.parameters()).device)
            self.given = {}

    def start(self, name: str, sizes: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A and B of a layer: what a peft model had learned, or else an update of nothing."""
        inputs, outputs = sizes
        drawn = torch.randn(self.rank, inputs, generator=generator) / inputs**0.5, torch.zeros(outputs, self.rank)
        return next((pair for key, pair in self.given.items() if f".{name}".endswith(f".{key}")), drawn)

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        return self.program.encode(inputs)

    def collate(self, records: Sequence[Record]) -> Batch:
        return self.program.collate(records)

    def length(self, record: Record) -> int:
        return self.program.length(record)

    def forward(self, batch: Batch) -> Batch:
        factors = zip(self.names, self.adapter["down"], self.adapter["up"], strict=True)
        return self.program(batch) | {UPDATES: {name: (a, self.scale * b) for name, a, b in factors}}

    def project(self) -> None:
        getattr(self.program, "project", lambda: None)()


def named(name: str, part: str) -> bool:
    """Whether the dotted `part` occurs in `name`."""
    return f".{part}." in f".{name}."


def adaptable(source: Source, layers: Sequence[str] | None) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers of a source by name; transformers' Conv1D is one that lies transposed.

    Raises: ValueError where a gradient does not pass or no layer bears a wanted name.
    """
    network = source.network if getattr(source, "differentiable", False) else nn.Identity()
    found = {}
    for name, module in network.named_modules():
        if type(module) is nn.Linear:  # not what attention of torch derives from it and never calls
            found[name] = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D" and module.weight.ndim == 2:
            found[name] = module.weight.shape[0], module.weight.shape[1]
    chosen = {n: s for n, s in found.items() if layers is None or any(named(n, part) for part in layers)}
    absent = [part for part in layers or () if not any(named(name, part) for name in found)]
    if absent or not chosen:
        raise ValueError(
            f"expected linear layers {'' if layers is None else f'named {absent[0]!r} '}to adapt in '{source.name}', got "
            f"{', '.join(list(found)[:4]) or 'none that a gradient reaches'}; name others or another source"
        )
    return chosen


def from_peft(model: Any, program: nn.Module) -> tuple[LowRank, nn.Module]:
    """A `peft` model as (its LoRA as a program in front of the frozen source, the network without it).

    Wrap the network as a source and compose both: `fit` then trains `program` and LoRA together. What LoRA had learned
    is kept; its dropout is not used.

    Raises: DataError for another adapter than plain LoRA of one rank on linear layers.
    """
    config = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", None))
    if str(getattr(getattr(config, "peft_type", ""), "value", "")) != "LORA":
        raise DataError(f"expected a peft model with LoRA, got {type(model).__name__}; see peft.get_peft_model")
    changed = [key for key in ("use_dora", "modules_to_save", "lora_bias") if getattr(config, key, None)]
    if changed or config.bias != "none":
        raise DataError(f"expected plain LoRA, got {changed[0] if changed else 'bias'} in its config; switch that off")
    key, found, scales = model.active_adapter, {}, set()
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A") and key in module.lora_A:
            a, b = (part[key].weight.detach().clone() for part in (module.lora_A, module.lora_B))
            found[name] = a, b
            scales.add((float(module.scaling[key]), *a.shape[:1], a.ndim))
    if len(scales) != 1 or {ndim for *_, ndim in scales} != {2}:
        raise DataError(f"expected LoRA of one rank and scale on linear layers, got {sorted(scales)}; unify them")
    scale, rank, _ = scales.pop()
    adapted = LowRank(program, rank=rank, alpha=scale * rank, layers=list(found))
    adapted.given = found
    return adapted, model.unload()
