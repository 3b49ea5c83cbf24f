"""What a certifier says of each input, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Guarantee = Literal["deterministic", "probabilistic", "estimate"]


@dataclass(frozen=True)
class Certificate:
    """One row per input.

    prediction: class of the clean input (B,); -1 where a randomised certifier abstains.
    certified: whether the prediction equals the label and no point of the threat changes it (B,).
    radius: size of the threat, in units of its eps, within which that is shown (B,); 0 where nothing is.
    margin: lower bound of the label's logit minus the largest other one over the threat (B,); NaN where a method has none.
    threat: for which it was asked.
    guarantee: "deterministic" is a proof, up to the rounding of floating point, "probabilistic" holds with probability `confidence`, "estimate" is neither.
    """

    prediction: Tensor
    certified: Tensor
    radius: Tensor
    margin: Tensor
    threat: Any
    method: str
    guarantee: Guarantee
    confidence: float | None = None

    def __len__(self) -> int:
        return len(self.certified)

    @property
    def certified_accuracy(self) -> float:
        """Share of inputs that are predicted rightly and certified."""
        return float(self.certified.float().mean())

    @classmethod
    def joined(cls, parts: list[Certificate]) -> Certificate:
        """Certificates of several batches as one."""
        whole = {f.name: getattr(parts[0], f.name) for f in fields(cls)}
        rows = {
            name: torch.cat([getattr(part, name) for part in parts]) for name, v in whole.items() if torch.is_tensor(v)
        }
        return cls(**whole | rows)


def proof(certifier: Any, logits: Tensor, y: Tensor, margins: Tensor, radius: Tensor, eps: Tensor) -> Certificate:
    """A deterministic certificate of margins (B, classes) over the threat and of the radii (B,) that were shown.

    What is predicted wrongly, and what is not finite, has no radius.
    """
    prediction, least = logits.argmax(1), margins.scatter(1, y[:, None], torch.inf).amin(1)
    right = (prediction == y) & margins.isfinite().all(1) & radius.isfinite()
    radius = torch.where(right, radius, 0).clamp(min=0)
    certified = right & (radius >= eps) & (least > 0)
    return Certificate(
        prediction, certified, radius, least, certifier.threat, type(certifier).__name__, "deterministic"
    )


class Certifier(Protocol):
    """What every certifier is: a threat and options, called with a model of logits, inputs and their labels."""

    threat: Any

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for inputs x (B, …) with labels y (B,).

        Raises: CertifyError for a model or a threat that has no bound, and for labels that are none.
        """
        ...
