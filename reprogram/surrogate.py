"""Prime, then reprogram: one pass over a black box, a local stand-in for it, and white-box training from there on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.features import source_features
from reprogram.mapping import LinearMap
from reprogram.model import Reprogrammed
from reprogram.objectives import Optimizer, adam
from reprogram.programs import Identity
from reprogram.sources.base import Features, Source
from reprogram.sources.codecs import FeatureCodec
from reprogram.train import fit, refresh


@configurable
class Through(nn.Module):
    """A map behind a frozen one: features -> the black box's classes, as `prime` learned them -> the target's.

    Shapes: features (B, S) -> (B, T).
    """

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first.requires_grad_(False), second
        self.kind, self.outputs = second.kind, second.outputs

    @property
    def solved(self) -> bool:
        return getattr(self.second, "solved", True)

    def prepare(self, features: Tensor, y: Tensor) -> None:
        self.second.prepare(self.first(features), y)

    def refit(self, features: Tensor, y: Tensor) -> Through:
        self.second.refit(self.first(features), y)
        return self

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features))


def imitate(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    """Loss: Kullback–Leibler divergence from the black box's probabilities, given as their logarithms y (B, K)."""
    return F.kl_div(model(x).log_softmax(1), y.log_softmax(1), reduction="batchmean", log_target=True)


def prime(
    box: Source, local: Source, inputs: Sequence[Any], *, epochs: int = 100, rate: float = 1e-3, batch_size: int = 32,
    seed: int = 0, progress: bool = True,
) -> LinearMap:  # fmt: skip
    """A linear map from a local encoder's features to what the black box says of `inputs`, each asked once.

    Put it in front of the target's map, `Reprogrammed(program, local, Through(prime(...), LabelMap(...)))`, and train that
    with gradients: no further query is spent, and none in prediction.

    Reference: the authors of "AReS", code 2026; probabilities are imitated by their divergence with Adam 1e-3 for 100
    passes, as there. Differs: the map starts at the mean answer and reads standardised features.
    Raises: DataError for a box that gives no class scores, a local source of another kind, or fewer than two inputs.
    """
    features, said = ask(box, local, inputs)
    return learn(features, said, epochs=epochs, rate=rate, batch_size=batch_size, seed=seed, progress=progress)


def reprime(
    box: Source, model: Reprogrammed, data: Mapping[str, tuple[Sequence[Any], Any]], *, rounds: int = 4,
    optimizer: Optimizer | None = None, epochs: int = 15, primed: Mapping[str, Any] | None = None, seed: int = 0,
    progress: bool = True,
) -> Reprogrammed:  # fmt: skip
    """Prime and reprogram in turn: each round asks the box about the inputs behind the present program, once each.

    The stand-in of `model`, a `Through` on a local source, is learned anew from all answers so far, then program and
    target's map are trained for `epochs` passes. A stand-in that saw plain inputs alone may be wrong where the program
    leads; one that saw the way there is not. `rounds` queries per training input; `primed` are options of `learn`.

    Differs from the paper: not in it; `rounds=1` is `prime` and `fit`, with a fresh program's outputs asked about.
    Raises: DataError as `prime`, or for a model without a `Through`.
    """
    if not isinstance(model.mapping, Through):
        raise DataError(f"expected a model whose map is a Through, got {type(model.mapping).__name__}; see prime")
    inputs, answers = data["train"][0], []
    for number in range(rounds):
        answers.append(ask(box, model.source, inputs, model.program))
        features, said = (torch.cat(parts) for parts in zip(*answers, strict=True))
        stand_in = learn(features, said, seed=seed + number, progress=progress, **(primed or {}))
        model.mapping.first.load_state_dict(stand_in.state_dict())
        fit(model, data, optimizer=optimizer, epochs=epochs, hooks=[refresh], seed=seed + number, progress=progress)
    return model


@torch.no_grad()
def ask(
    box: Source, local: Source, inputs: Sequence[Any], program: nn.Module | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Local features (n, S) and the box's log probabilities (n, K) of inputs, or of what a program of `local` makes of them."""
    if box.returns != "logits":
        raise DataError(f"expected a black box that answers with classes, got '{box.name}', which gives features")
    if local.takes != box.takes or not local.differentiable:
        raise DataError(
            f"expected a local source of {box.takes} that gradients pass, got '{local.name}' ({local.takes}); choose another"
        )
    if len(inputs) < 2:
        raise DataError(f"expected at least two inputs to ask about, got {len(inputs)}")
    if program is not None and box.codec != local.codec:
        raise DataError(
            f"expected '{box.name}' and '{local.name}' to read inputs alike, got {box.codec} and {local.codec}"
        )
    said, features = (passed(program, source, inputs).cpu() for source in (box, local))
    return features, said.log_softmax(1)


def passed(program: nn.Module | None, source: Source, inputs: Sequence[Any]) -> Tensor:
    """What `source` gives for the inputs, behind a program or plain."""
    if program is None:
        program = Identity()
        program.bind(source)
    return source_features(program, source, program.encode(inputs))


def learn(
    features: Tensor, said: Tensor, *, epochs: int = 100, rate: float = 1e-3, batch_size: int = 32, seed: int = 0,
    progress: bool = True,
) -> LinearMap:  # fmt: skip
    """The linear map from features (n, S) to answers (n, K)."""
    stand_in = LinearMap(features.shape[1], said.shape[1], kind="regression")
    seen = Source(Features(["seen"]), FeatureCodec(torch.stack), name="seen", takes="features", width=features.shape[1])
    fit(
        Reprogrammed(Identity(), seen, stand_in), {"train": (list(features), said.numpy())}, loss=imitate,
        optimizer=adam(mapping=rate), epochs=epochs, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    return stand_in
