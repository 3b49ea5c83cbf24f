"""A frozen model behind one interface, and its random twin."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from reprogram.sources.codecs import Batch, Codec
from reprogram.sources.layers import DEEP, UPDATES, refuse_compiled, updated

TAKES = ("tokens", "graph", "features", "image", "series")
TOKENS = {"input_ids", "inputs_embeds", "attention_mask"}
PARTS, PART = 4, 16  # parts of a batch of tokens at most, and rows of one at least


class Features(nn.Module):
    """The network of a source that is all codec: returns its input. `columns` names the features, for the digest."""

    def __init__(self, columns: Sequence[str]):
        super().__init__()
        # A buffer, so that a library that renames or adds a feature changes the digest of the source.
        self.register_buffer("columns", torch.tensor(list("\n".join(columns).encode()), dtype=torch.uint8))

    def forward(self, features: Tensor) -> Tensor:
        return features


def through(network: nn.Module, batch: Batch) -> Tensor:
    """`network(**batch)`; a large batch of tokens of very different lengths in parts of like length, because padding
    costs as much as tokens. Each row passes once and a row's values do not depend on its mates."""
    mask = batch.get("attention_mask")
    if mask is None or not set(batch) <= TOKENS or len(mask) < 2 * PART or mask.count_nonzero() > 0.7 * mask.numel():
        return network(**batch)
    lengths = (mask != 0).cumsum(1).argmax(1) + 1  # up to the last token that counts
    order = lengths.argsort(stable=True)
    values = [
        network(**{key: value[rows, : int(lengths[rows].max())] for key, value in batch.items() if value is not None})
        for rows in order.tensor_split(min(PARTS, len(mask) // PART))
    ]
    return torch.cat(values)[order.argsort()]


class Source(nn.Module):
    r"""A frozen pretrained model: `source(batch) = network(**batch)`, shape (B, width).

    The network's weights never require a gradient and the network stays in eval mode whatever the caller does;
    gradients still flow through it to its inputs. `takes` says what it is fed ("tokens", "graph", "features", "image"
    or "series") and `returns` what comes out ("features" or "logits", the latter with `labels`). `embedding` is the
    (V, D) table of word embeddings where the network has one: token programs write mixtures of its rows.

    A program's low-rank updates of linear layers, `batch["updates"]`, act during that pass and leave no trace.

    Raises: ValueError for an unknown `takes` or `returns`, and for a network with peft adapters that are to be trained.
    """

    def __init__(
        self, network: nn.Module, codec: Codec, *, name: str, takes: str, width: int, returns: str = "features",
        embedding: Tensor | None = None, labels: Sequence[str] | None = None, revision: str = "", license: str = "",
        differentiable: bool = True,
    ):  # fmt: skip
        super().__init__()
        if takes not in TAKES:
            raise ValueError(
                f"expected takes to be one of {', '.join(TAKES)}, got {takes!r}; name what the network is fed"
            )
        if returns not in ("features", "logits"):
            raise ValueError(f"expected returns to be 'features' or 'logits', got {returns!r}; name what comes out")
        self.network, self.codec = network, codec
        self.name, self.takes, self.width, self.returns = name, takes, width, returns
        self.labels = tuple(labels) if labels is not None else None
        self.revision, self.license, self.differentiable = revision, license, differentiable
        # A table that is a weight of the network is found again by name, so that it follows it to another device.
        self._table = next((key for key, weight in network.named_parameters() if weight is embedding), None)
        self.register_buffer("_embedding", None if self._table else embedding, persistent=False)
        self._digest: str | None = None
        self.spec: dict[str, Any] | None = None  # how `build` brings this source back; None for a user's own module
        self._freeze()

    def _freeze(self) -> None:
        adapters = {type(module).__module__.split(".")[0] for module in self.network.modules()} & {"peft"}
        if adapters and any(weight.requires_grad for weight in self.network.parameters()):
            raise ValueError(
                f"expected a network to freeze as source '{self.name}', got one with peft adapters that are to be trained; "
                "take programs.from_peft, which makes them a part of the program, or merge_and_unload them"
            )
        self.network.requires_grad_(False)
        self.network.eval()

    def train(self, mode: bool = True) -> Source:
        """Nothing to switch: a source is always in eval mode."""
        return super().train(False)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the network in place by `torch.compile` with these options; weights, digest and artefacts stay the same.

        Never done unasked, because it does not always pay: EfficientNet-Lite0 forward and backward over 32 images of 64×64
        took 426 ms compiled by inductor and 269 ms as it is, on 2 CPU cores. `load(torch.compile(network), …)` does as
        well. Programs that reach into the layers (`Prefix`, `LowRank`) raise ValueError in front of compiled code.
        """
        self.network.compile(*args, **options)

    def forward(self, batch: Batch) -> Tensor:
        # A caller may have called requires_grad_ or train on a module above or below this one.
        if self.network.training or any(weight.requires_grad for weight in self.network.parameters()):
            self._freeze()
        if DEEP in batch or UPDATES in batch:
            refuse_compiled(self.network)
        updates = updated(self.network, batch[UPDATES]) if UPDATES in batch else nullcontext()
        with updates:
            values = through(self.network, {key: value for key, value in batch.items() if key != UPDATES})
        if values.ndim != 2 or values.shape[1] != self.width:
            raise ValueError(
                f"expected {self.width} values per input from source '{self.name}', got an output of shape "
                f"{tuple(values.shape)}; correct its width"
            )
        return values

    @property
    def embedding(self) -> Tensor | None:
        """The (V, D) table of word embeddings, or None."""
        return self.network.get_parameter(self._table) if self._table else self._embedding

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any weight: SHA-256 over names, dtypes, shapes and bytes."""
        if self._digest is None:
            total = hashlib.sha256()
            plain = {key.replace("_orig_mod.", ""): value for key, value in self.network.state_dict().items()}
            for key, value in sorted(plain.items()):  # torch.compile prefixes names, and changes no weight
                total.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
                total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._digest = total.hexdigest()[:16]
        return self._digest

    def randomised(self, seed: int) -> Source:
        """The same architecture with freshly initialised weights: the control for what pretraining brings.

        Raises: ValueError for a source without weights, which has no such control.
        """
        if next(self.network.parameters(), None) is None:
            raise ValueError(
                f"expected a source with weights in torch, got {self.name}; it has no random-weight control"
            )
        device = next(self.network.parameters()).device
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU, so that every device gets the same weights
            torch.random.default_generator.manual_seed(seed)
            network = calibrated(reinitialised(copy.deepcopy(self.network).cpu()), self.codec).to(device)
        table = network.get_parameter(self._table) if self._table else self._embedding
        return Source(
            network, self.codec, name=f"{self.name}:random{seed}", takes=self.takes, width=self.width,
            returns=self.returns, embedding=table, labels=self.labels, revision=self.revision, license=self.license,
            differentiable=self.differentiable,
        )  # fmt: skip


def calibrated(network: nn.Module, codec: Codec) -> nn.Module:
    """`network` after its batch normalisations, where it has any, took their statistics from a batch of noise, in place.

    Fresh ones pass everything on unscaled, and a deep network then gives the same answer to every input: no fair control.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms or not hasattr(codec, "noise"):
        return network
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches seen
        norm.train()
    with torch.no_grad():
        network(**codec.noise(32))
    return network.eval()


def reinitialised(network: nn.Module) -> nn.Module:
    """`network` after its weights were drawn anew, in place, from torch's global generator."""
    done: set[int] = set()
    for module in network.modules():
        # transformers initialises by configuration, not by reset_parameters: build again and take the weights.
        if hasattr(module, "post_init") and hasattr(module, "config") and not set(map(id, module.parameters())) <= done:
            module.load_state_dict(type(module)(module.config).state_dict(), strict=False)
            done |= set(map(id, module.parameters()))
    for module in reversed(list(network.modules())):  # children first: a parent knows better how its parts start
        own = [weight for weight in module.parameters(recurse=False) if id(weight) not in done]
        everything = [weight for weight in module.parameters() if id(weight) not in done]
        if everything and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif own and not hasattr(module, "reset_parameters"):
            for weight in own:
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
                else:
                    nn.init.normal_(weight, std=0.02)
    return network
