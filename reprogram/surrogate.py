"""Prime, then reprogram: one pass over a black box, a local stand-in for it, and white-box training from there on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.features import source_features
from reprogram.mapping import LinearMap
from reprogram.model import Reprogrammed
from reprogram.objectives import adam
from reprogram.programs import Identity
from reprogram.sources.base import Source
from reprogram.train import fit


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
    if box.returns != "logits":
        raise DataError(f"expected a black box that answers with classes, got '{box.name}', which gives features")
    if local.takes != box.takes or not local.differentiable:
        raise DataError(
            f"expected a local source of {box.takes} that gradients pass, got '{local.name}' ({local.takes}); choose another"
        )
    if len(inputs) < 2:
        raise DataError(f"expected at least two inputs to ask about, got {len(inputs)}")
    asked = Identity()
    asked.bind(box)
    with torch.no_grad():
        said = source_features(asked, box, asked.encode(inputs)).log_softmax(1)
    stand_in = LinearMap(local.width, box.width, kind="regression")
    model = Reprogrammed(Identity(), local, stand_in)
    fit(
        model, {"train": (inputs, said.cpu().numpy())}, loss=imitate, optimizer=adam(mapping=rate), epochs=epochs,
        batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    return stand_in
