"""What a training leaves behind, and what hooks see of it while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from reprogram.model import Reprogrammed


@dataclass
class History:
    """What happened: one row per epoch, the epoch kept, why training ended."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    stopped: str = ""

    def column(self, name: str) -> list[float]:
        """The values of one column over epochs, e.g. `column("validation_loss")`."""
        return [row[name] for row in self.epochs if name in row]


@dataclass
class Training:
    """State handed to hooks after each epoch; a hook may change the model or set `stop`."""

    model: Reprogrammed
    epoch: int
    history: History
    features: Callable[[], tuple[Tensor, Tensor]]  # (features, targets) of the training rows under the present program
    refit: Callable[[], None]  # solve the map for them
    stop: bool = False


Hook = Callable[[Training], None]


def refresh(training: Training) -> None:
    """Hook: fill a label map, or solve a closed-form one, again after every epoch."""
    training.refit()
