"""Controls for what a frozen pretrained model brings: no source at all, and the same source with its weights set free."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reprogram.errors import DataError
from reprogram.features import target_tensor
from reprogram.mapping import Kind, LinearMap
from reprogram.model import Reprogrammed
from reprogram.objectives import adam, supervised
from reprogram.sources.base import Features, Source
from reprogram.sources.codecs import Batch, Codec, Record
from reprogram.train import fit


class MeanGraph(nn.Module):
    """A graph without a network: mean atom features, mean bond features and log of the atom count, (B, 85 + 13 + 1)."""

    def forward(
        self, *, atoms: Tensor, bonds: Tensor, bond: Tensor, edges: Tensor, molecule: Tensor, count: Tensor, **_: Tensor
    ) -> Tensor:
        size = count.to(atoms.dtype)[:, None]
        owner, bonds = molecule[edges[0]], bonds[bond]
        number = size.new_zeros(len(count), 1).index_add(0, owner, bonds.new_ones(len(bonds), 1))
        atom = atoms.new_zeros(len(count), atoms.shape[1]).index_add(0, molecule, atoms) / size
        bond = bonds.new_zeros(len(count), bonds.shape[1]).index_add(0, owner, bonds) / number.clamp_min(1)
        return torch.cat([atom, bond, size.log()], dim=1)


class MeanTokens(nn.Module):
    """A text without a network: the mean of its token rows and the log of their number, (B, D + 1)."""

    table: Tensor

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table)

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        rows = self.table[input_ids] if inputs_embeds is None else inputs_embeds
        mask = rows.new_ones(rows.shape[:2]) if attention_mask is None else attention_mask.to(rows.dtype)
        number = mask.sum(1, keepdim=True).clamp_min(1)
        return torch.cat([(rows * mask[..., None]).sum(1) / number, number.log()], dim=1)


class MeanPixels(nn.Module):
    """A picture without a network: its pixels averaged over an 8×8 grid, (B, 64 C)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1)


class MeanSamples(nn.Module):
    """A series without a network: its samples averaged over 64 pieces, (B, 64)."""

    def forward(self, series: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool1d(series[:, None], 64)[:, 0]


def without_network(source: Source, *, seed: int = 0) -> Source:
    """`source` with its network taken out: what a program and a map reach alone.

    The same inputs pass the same program and are only averaged before the same map: for graphs the atom and bond
    features, for tokens the embeddings, for images and series pieces of them. Token tables are drawn anew with the scale of the source's own, because a
    pretrained table would be a part of the source.

    Raises: DataError for a source without a network: nothing would be left.
    """
    options: dict[str, Any] = {"name": f"{source.name}:none", "takes": source.takes, "license": source.license}
    if source.takes == "graph":
        return Source(MeanGraph(), source.codec, width=sum(source.codec.widths.values()) + 1, **options)
    if source.takes == "image":
        return Source(MeanPixels(), source.codec, width=64 * source.codec.channels, **options)
    if source.takes == "series":
        return Source(MeanSamples(), source.codec, width=64, **options)
    if source.takes != "tokens" or source.embedding is None:
        raise DataError(
            f"expected a source with a network for the control without one, got '{source.name}' ({source.takes})"
        )
    old = source.embedding.detach()
    drawn = torch.randn(old.shape, generator=torch.Generator().manual_seed(seed)) * old.float().std().cpu()
    network = MeanTokens(drawn.to(old.device))
    return Source(network, source.codec, width=old.shape[1] + 1, embedding=network.table, **options)


class Tuned(nn.Module):
    r"""A source's network with trainable weights, in the place of a program: $f(x) = \text{mapping}(\text{network}_\theta(x))$.

    The network is a copy; the source itself stays frozen. `rank=None` trains every weight; a number trains low-rank
    updates $W + \tfrac{\alpha}{r}BA$ of all linear and one-dimensional convolution layers, with $\alpha = 2r$. In front
    of a source that passes features through it is a program like any other, so `fit` trains it. Like everything here it
    runs in eval mode: no dropout.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
    Raises: DataError for a black box, for a network without a layer to adapt, or when peft is absent.
    """

    codec: Codec

    def __init__(self, source: Source, *, rank: int | None = None, seed: int = 0):
        super().__init__()
        if not source.differentiable or next(source.network.parameters(), None) is None:
            raise DataError(f"expected a source with weights that can be trained, got '{source.name}'; choose another")
        object.__setattr__(self, "codec", source.codec)
        network = copy.deepcopy(source.network).requires_grad_(True)
        self.network = network if rank is None else with_lora(network, rank, seed)

    def train(self, mode: bool = True) -> Tuned:
        """In eval mode always, like a frozen source: no dropout."""
        return super().train(False)

    def bind(self, source: Source) -> None:
        """Nothing to read from a source that only passes features through."""

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        return self.codec.encode(inputs)

    def collate(self, records: Sequence[Record]) -> Batch:
        return self.codec.collate(records)

    def length(self, record: Record) -> int:
        return self.codec.length(record)

    def forward(self, batch: Batch) -> Batch:
        return {"features": self.network(**batch)}


def with_lora(network: nn.Module, rank: int, seed: int) -> nn.Module:
    """`network` after peft put adapters on its layers, in place; only they require a gradient."""
    layers = [name for name, m in network.named_modules() if name and isinstance(m, nn.Linear | nn.Conv1d)]
    if not layers:
        raise DataError(f"expected linear or convolution layers to adapt, got none in {type(network).__name__}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise DataError("expected peft to be installed for LoRA, got none; run `pip install peft`") from error
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.random.default_generator.manual_seed(seed)
        return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), network)


def fine_tune(
    source: Source, inputs: Sequence[Any], y: Any, *, kind: Kind, outputs: int, features: np.ndarray, rank: int | None = None,
    epochs: int = 20, learning_rate: float = 3e-5, seed: int = 0,
) -> Reprogrammed:  # fmt: skip
    """Full fine-tuning, or LoRA where a `rank` is given, by the one training loop.

    The map starts from the linear probe on `features`, the source's own for the training rows (n, S), so that a fresh
    head does not spoil the pretrained weights in the first steps. All epochs are run: no labels are left to stop by.

    Reference: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
    ICLR 2022, arXiv:2202.10054 (linear probing, then fine-tuning).
    """
    program = Tuned(source, rank=rank, seed=seed)
    start = LinearMap(source.width, outputs, kind=kind, ridge=True)
    start.refit(torch.from_numpy(features), target_tensor(y, kind))
    mapping = LinearMap(source.width, outputs, kind=kind)
    mapping.linear.load_state_dict(start.linear.state_dict())
    name = f"{source.name}:tuned"
    through = Source(Features([source.name]), source.codec, name=name, takes="features", width=source.width)
    model = Reprogrammed(program, through, mapping)
    rates = adam(program=learning_rate, mapping=learning_rate)
    fit(model, {"train": (inputs, y)}, loss=supervised, optimizer=rates, epochs=epochs, seed=seed, progress=False)
    return model


def learned(model: Reprogrammed) -> int:
    """Numbers in program and map. A program may be frozen again after its training, but weights under LoRA never learn."""
    weights = [p for name, p in model.named_parameters() if not name.startswith("source.")]
    tuned = isinstance(model.program, Tuned)
    return sum(p.numel() for p in weights if p.requires_grad or not tuned)
