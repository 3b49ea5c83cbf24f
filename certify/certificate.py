"""What a certifier says of each input, and how sure it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from adversarial.shares import Share, finished, line, wilson
from certify.errors import CertifyError
from certify.written import numbers, plain, restored, tensor
from reprogram.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Guarantee = Literal["deterministic", "probabilistic", "estimate"]
ROWS = ("prediction", "certified", "radius", "margin")


@dataclass(frozen=True)
class Certificate:
    """One row per input.

    prediction: class of the clean input (B,); -1 where a randomised certifier abstains.
    certified: whether the prediction equals the label and no point of the threat changes it (B,).
    radius: size of the threat, in units of its eps, within which that is shown (B,); 0 where nothing is.
    margin: lower bound of the label's logit minus the largest other one over the threat (B,); NaN where a method has none.
    threat: for which it was asked.
    guarantee: "deterministic" is a proof, up to the rounding of floating point, "probabilistic" holds with probability
        `confidence` for each input, "estimate" is neither.
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

    def accuracy_at(self, radius: float) -> Share:
        """The share of inputs predicted rightly whose radius reaches this size, with Wilson's 95 % interval; of an estimate,
        the share whose estimate does. At 0: those with any radius."""
        name = titled(self.method, self.guarantee, self.confidence)
        return Share.of(name, float(radius), int(self.reaches(radius).sum()), len(self))

    def reaches(self, radius: float) -> Tensor:
        """Which inputs (B,) have a radius of this size or more; one that is NaN reaches nothing."""
        return (self.radius >= radius) & (self.radius > 0)

    def curve(self, radii: Sequence[float]) -> list[Share]:
        """`accuracy_at` each of these sizes.

        A method that answers yes or no for one eps says nothing above it, and `certify.evaluate` asks at each.
        """
        return [self.accuracy_at(radius) for radius in sorted(set(radii))]

    def plot(self, radii: Sequence[float] | None = None, ax: Axes | None = None) -> Axes:
        """The curve, a step at each radius (of more than 200, at 200 sizes), which nowhere lies above the share; the band is
        its interval, dots say that it is an estimate."""
        from reprogram.plot import COLOURS, new_axes

        ax = ax or new_axes()
        if radii is None:
            known = self.radius[self.radius.isfinite()].double().unique()
            end = 1.05 * float(known.max()) if len(known) else 1.0
            radii = [0.0, *(known if len(known) <= 200 else torch.linspace(0, end, 200)).tolist(), end]
        look = {"color": COLOURS[0], "marker": "", "linestyle": style_of(self.guarantee), "drawstyle": "steps-pre"}
        line(ax, self.curve(radii), band=True, **look)
        return finished(ax, getattr(self.threat, "norm", "threat"), height_of([self.guarantee]), len(self))

    def summary(self) -> str:
        """What was shown and how sure it is, in a sentence or two; an estimate is called nothing else."""
        n, what = len(self), described(self.threat)
        if self.guarantee == "estimate":
            some = int(self.reaches(largest(self.threat)).sum())
            return (
                f"{self.method} estimates for {shared(some, n)} that no change within {what} alters the right prediction. "
                "An estimate is no guarantee: nothing is proven for any input."
            )
        some = int(self.certified.sum())
        if self.guarantee == "deterministic":
            return (
                f"{self.method} proves for {shared(some, n)} that no change within {what} alters the right prediction; the "
                "proof holds with certainty, up to the rounding of floating point."
            )
        away = int((self.prediction < 0).sum())
        return (
            f"{self.method} shows for {shared(some, n)} that no change within {what} alters the right prediction of the "
            f"randomised classifier, which is not the model by itself; each of these statements holds with probability "
            f"{self.confidence} or more over the method's own draws. It abstains for {away}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the threat, the rows, the counts and the sentence."""
        share = self.accuracy_at(largest(self.threat)) if self.guarantee == "estimate" else None
        right = int(self.certified.sum())
        low, high = wilson(right, len(self))
        shown = (
            {"estimated_accuracy": share.accuracy}
            if share
            else {"certified_accuracy": right / len(self), "low": low, "high": high}
        )
        about = {"method": self.method, "guarantee": self.guarantee, "confidence": self.confidence, "n": len(self)}
        rows = {name: numbers(getattr(self, name)) for name in ROWS}
        types = {name: str(getattr(self, name).dtype).removeprefix("torch.") for name in ROWS}
        return about | shown | {"summary": self.summary(), "threat": plain(self.threat), "dtypes": types} | rows

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Certificate:
        """Inverse of `to_dict`; a threat that is no `Ball` stays the facts that were written of it.

        Raises: CertifyError for something else.
        """
        try:
            rows = {name: tensor(facts[name], facts["dtypes"][name]) for name in ROWS}
            about = {name: facts[name] for name in ("method", "guarantee", "confidence")}
            return cls(**rows, **about, threat=restored(facts["threat"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise CertifyError(
                f"expected the values of a certificate, got some without {error}; write them with to_dict"
            ) from None

    def to_json(self, path: str | Path) -> None:
        """Write the values of `to_dict`, all of the file or nothing."""
        with atomic_file(path) as writing:
            writing.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Certificate:
        """What `to_json` wrote. Raises: CertifyError where values are missing."""
        return cls.from_dict(json.loads(Path(path).read_text()))


def shared(some: int, n: int) -> str:
    low, high = wilson(some, n)
    return f"{some} of {n} inputs ({some / n:.1%}, 95 % interval {low:.1%} to {high:.1%})"


def largest(threat: Any) -> float:
    """The largest eps of a threat; 0 for one without."""
    eps = getattr(threat, "eps", None)
    return 0.0 if eps is None else float(torch.as_tensor(eps, dtype=torch.float64).max())


def described(threat: Any) -> str:
    """A threat in a few words."""
    eps = getattr(threat, "eps", None)
    if eps is None:
        return str(threat)
    low, high = float(torch.as_tensor(eps, dtype=torch.float64).min()), largest(threat)
    size = f"eps {high:g}" if low == high else f"eps {low:g} to {high:g}"
    return f"{getattr(threat, 'norm', type(threat).__name__)} {size}"


def style_of(guarantee: Guarantee) -> str:
    """A curve's line: whole for a proof, broken for what is less."""
    return {"deterministic": "-", "probabilistic": "-.", "estimate": ":"}[guarantee]


def titled(method: str, guarantee: Guarantee, confidence: float | None) -> str:
    """A method's name with how sure it is, for a table or a legend."""
    return {
        "deterministic": method, "probabilistic": f"{method} (confidence {confidence})",
        "estimate": f"{method} (an estimate, no proof)",
    }[guarantee]  # fmt: skip


def height_of(guarantees: Sequence[Guarantee]) -> str:
    """What the upright axis says: an estimate is not called certified."""
    kinds = set(guarantees)
    if kinds == {"estimate"}:
        return "estimated accuracy"
    return "certified or estimated accuracy" if "estimate" in kinds else "certified accuracy"


def proof(certifier: Any, logits: Tensor, y: Tensor, margins: Tensor, radius: Tensor, eps: Tensor) -> Certificate:
    """A deterministic certificate of margins (B, classes) over the threat and of the radii (B,) that were shown.

    What is predicted wrongly, and what is not finite, has no radius.
    """
    prediction, least = logits.argmax(1), margins.scatter(1, y[:, None], torch.inf).amin(1)
    right = (prediction == y) & margins.isfinite().all(1) & radius.isfinite() & ~logits.isnan().any(1)
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
