"""How much a model is certified for: accuracy against eps under several certifiers, beside what attacks leave of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import adversarial
from adversarial.attacks.base import Attack
from adversarial.evaluate import WORST, Robustness, wrong
from adversarial.marks import mark_of
from adversarial.shares import curve_of, finished, line, names_of, table, wilson
from adversarial.threat import Ball
from certify.certificate import Certificate, Certifier, Guarantee, height_of, style_of, titled
from certify.checks import check_labels
from certify.errors import CertifyError
from reprogram.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Maker = Callable[[Any], Certifier]


@dataclass(frozen=True)
class CertifiedPoint:
    """What one certifier says at one eps: `accuracy` is the share of n inputs that are predicted rightly and certified, or,
    where `guarantee` is "estimate", estimated to hold; `low` to `high` is Wilson's 95 % interval over inputs.

    held: whether each input counts. seconds: at this eps alone.
    """

    method: str
    eps: float
    accuracy: float
    low: float
    high: float
    n: int
    guarantee: Guarantee
    confidence: float | None
    seconds: float
    held: tuple[bool, ...]

    @property
    def name(self) -> str:
        """The method with what it promises, for tables and legends."""
        return titled(self.method, self.guarantee, self.confidence)


@dataclass(frozen=True)
class CertifiedRobustness:
    """Certified accuracy of several certifiers at several eps, and accuracy under attack, which no proof can exceed."""

    norm: str
    points: tuple[CertifiedPoint, ...]
    attacked: Robustness | None = None
    mark: str = ""

    def curve(self, method: str) -> list[CertifiedPoint]:
        """One certifier's points by growing eps. Raises ValueError for a name that is not there."""
        found = next((point.name for point in self.points if point.method == method), method)
        return curve_of(self.points, found, "a certifier")

    def contradictions(self) -> list[tuple[str, float, int]]:
        """Certifier, eps and input where a proof stands against an example; a proof that is right has none.

        Randomised certifiers speak of another classifier, estimates promise nothing: neither can be contradicted here.
        """
        broken = {p.eps: p.broken for p in self.attacked.curve()} if self.attacked else {}
        return [
            (point.method, point.eps, row)
            for point in self.points
            if point.guarantee == "deterministic" and point.eps in broken
            for row, (held, lost) in enumerate(zip(point.held, broken[point.eps], strict=True))
            if held and lost
        ]

    def to_json(self, path: str | Path) -> None:
        """Write all values, all of the file or nothing."""
        with atomic_file(path) as writing:
            writing.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> CertifiedRobustness:
        """What `to_json` wrote."""
        facts = json.loads(Path(path).read_text())
        points = tuple(CertifiedPoint(**p | {"held": tuple(p["held"])}) for p in facts["points"])
        attacked = facts["attacked"] and Robustness.from_dict(facts["attacked"])
        return cls(facts["norm"], points, attacked, facts["mark"])

    def to_markdown(self) -> str:
        """A line per certifier, the accuracy under attack last, a column per eps."""
        bound = [replace(p, attack=f"under attack ({WORST})") for p in self.attacked.curve()] if self.attacked else []
        lines = table([*self.points, *bound], height_of([point.guarantee for point in self.points]), self.norm)
        note = f"n = {self.points[0].n}, 95 % intervals (Wilson) over samples"
        against = self.contradictions()
        if against:
            name, eps, row = against[0]
            note += (
                f"; WRONG: {len(against)} proofs stand against examples, the first by {name} at {eps:g} for row {row}"
            )
        elif bound:
            note += "; no proof stands against an example"
        return "\n".join([*lines, "", note])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Certified accuracy against eps, a line per certifier: proofs solid, randomised ones dash-dotted, estimates dotted;
        the broad line is the accuracy under attack."""
        from reprogram.plot import COLOURS, new_axes

        ax = ax or new_axes()
        if self.attacked:
            line(ax, self.attacked.curve(), broad=True, label="under attack")
        names, wide = names_of(self.points), max(point.eps for point in self.points)
        for i, name in enumerate(names):
            curve = curve_of(self.points, name, "a certifier")
            look = {"color": COLOURS[i % 6], "marker": "osD^vP"[i % 6], "linestyle": style_of(curve[0].guarantee)}
            look["markersize"] = 3 + (len(names) - 1 - i) % 6  # where lines meet, those behind still show
            line(ax, curve, bars=0.008 * wide * (i - (len(names) - 1) / 2), **look)
        return finished(ax, self.norm, height_of([p.guarantee for p in self.points]), self.points[0].n)


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, certifiers: Mapping[str, Maker], *, threat: Any, eps: Sequence[float],
    attacks: Mapping[str, Callable[[Ball], Attack]] | None = None, seed: int = 0, batch_size: int = 64,
    out: str | Path | None = None, progress: bool = True,
) -> CertifiedRobustness:  # fmt: skip
    """Certified accuracy under each certifier at each eps, and accuracy under attack at the same.

    Args:
        model, x, y: a module in evaluation mode that returns logits, inputs (B, …) and classes (B,).
        certifiers: by name, what makes a certifier of a threat: `CROWN`, `lambda ball: CROWN(ball, "ibp")`.
        threat: norm, bounds and mask; its eps is replaced.
        eps: sizes; 0 gives the clean accuracy. The largest is asked first: an input that a proof covers there is covered
            at every smaller one. A randomised certifier or an estimate is asked once, at the largest, and the other sizes
            are read off its radii, so that its confidence is not spent twice.
        attacks: by name, what makes an attack; APGD by default, `{}` for none.
        seed: of the attacks; a randomised certifier has its own.
        out: a JSON file; a run that was stopped goes on from what it holds (attacks: from the file beside it).

    Raises: ValueError for no eps or a negative one, and for a file of another evaluation; CertifyError for no certifier, for
    labels that are none, and for what a certifier cannot bound.
    """
    from tqdm.auto import tqdm

    check_labels(x, y)
    if not certifiers or not eps or min(eps) < 0 or max(eps) == 0 or not hasattr(threat, "eps"):
        raise CertifyError(
            f"expected certifiers, a threat with an eps, and sizes of 0 or more with one above, got {list(certifiers)}, "
            f"{type(threat).__name__} and {list(eps)}"
        )
    sizes = sorted({float(size) for size in eps}, reverse=True)
    mark = mark_of(
        model, x, y, threat, {name: make(replace(threat, eps=sizes[0])) for name, make in certifiers.items()}
    )
    found = {(point.method, point.eps): point for point in kept(out, mark)}
    clean = ~wrong(model, x, y, 1024)

    def keep(attacked: Robustness | None = None) -> CertifiedRobustness:
        points = tuple(found[key] for name in certifiers for key in sorted(found) if key[0] == name)
        whole = CertifiedRobustness(getattr(threat, "norm", "threat"), points, attacked, mark)
        if out is not None:
            whole.to_json(out)
        return whole

    with tqdm(total=len(certifiers) * len(sizes), desc="certify", delay=2, disable=not progress) as bar:
        for name, make in certifiers.items():
            asked = Asked(name, make, model, x, y, threat, batch_size)
            known = {size: found[name, size] for size in sizes if (name, size) in found}
            for point in asked.points(sizes, clean, known):
                found[name, point.eps] = point
                keep()
                bar.update()
    attacks = {"APGD": adversarial.APGD} if attacks is None else attacks
    if not attacks:
        return keep()
    beside = None if out is None else Path(out).with_suffix(".attacks.json")
    return keep(
        adversarial.evaluate(model, x, y, attacks, threat=threat, eps=sizes, seed=seed, out=beside, progress=progress)
    )


@dataclass(frozen=True)
class Asked:
    """One certifier, asked about the same inputs at several eps."""

    name: str
    make: Maker
    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Any
    batch_size: int

    def points(
        self, sizes: Sequence[float], clean: Tensor, known: Mapping[float, CertifiedPoint]
    ) -> Iterator[CertifiedPoint]:
        """Points by falling eps; `known` are those of a stopped run, `clean` says which inputs the model gets right."""
        last = known.get(sizes[0])
        if last is None or (last.guarantee != "deterministic" and len(known) < len(sizes)):
            found, seconds = self.certificate(sizes[0], torch.arange(len(clean), device=clean.device))
            if found.guarantee != "deterministic":
                yield from self.read(found, sizes, seconds)
                return
            last = self.point(sizes[0], found, found.certified, seconds)
        yield last
        for size in sizes[1:]:
            last = known.get(size) or self.smaller(size, clean, last)
            yield last

    def smaller(self, size: float, clean: Tensor, last: CertifiedPoint) -> CertifiedPoint:
        """A proof's point below `last`, whose inputs it covers."""
        if size == 0:
            return self.point(size, last, clean, 0.0)
        held, seconds = torch.tensor(last.held, device=clean.device), 0.0
        rows = (clean & ~held).nonzero()[:, 0]
        if len(rows):
            found, seconds = self.certificate(size, rows)
            held = held.index_put((rows,), found.certified)
        return self.point(size, last, held, seconds)

    def read(self, found: Certificate, sizes: Sequence[float], seconds: float) -> Iterator[CertifiedPoint]:
        """Points off the radii of one certificate."""
        for size in sizes:
            right = found.prediction == self.y
            yield self.point(size, found, right & found.reaches(size) if size else right, seconds)
            seconds = 0.0

    def certificate(self, size: float, rows: Tensor) -> tuple[Certificate, float]:
        """That of some inputs, and the seconds it took."""
        started = time.perf_counter()
        ball = narrowed(replace(self.threat, eps=size), rows, self.x)
        found = self.make(ball)(self.model, self.x[rows], self.y[rows], batch_size=self.batch_size)
        return found, time.perf_counter() - started

    def point(self, size: float, like: Certificate | CertifiedPoint, held: Tensor, seconds: float) -> CertifiedPoint:
        n, some = len(held), int(held.sum())
        about = like.guarantee, like.confidence, round(seconds, 3), tuple(held.tolist())
        return CertifiedPoint(self.name, size, some / n, *wilson(some, n), n, *about)


def narrowed(threat: Any, rows: Tensor, x: Tensor) -> Any:
    """A threat around all of x for some of its rows: bounds and a mask may be a sample's own."""
    if not isinstance(threat, Ball):
        return threat

    def own(value: Any) -> Any:
        found = value if value is None else torch.as_tensor(value, device=x.device)  # an array or a list is one as well
        return found[rows] if found is not None and found.ndim == x.ndim and len(found) == len(x) > 1 else value

    sizes = torch.as_tensor(threat.eps, device=x.device)
    eps = sizes[rows] if sizes.shape == (len(x),) else own(threat.eps)
    return replace(threat, eps=eps, low=own(threat.low), high=own(threat.high), mask=own(threat.mask))


def kept(out: str | Path | None, mark: str) -> tuple[CertifiedPoint, ...]:
    """Points of a run that was stopped."""
    if out is None or not Path(out).is_file():
        return ()
    try:
        before = CertifiedRobustness.from_json(out)
    except (ValueError, TypeError, KeyError) as error:
        raise CertifyError(
            f"expected a stopped evaluation in {out}, got something else; choose another file"
        ) from error
    if before.mark != mark:
        raise ValueError(
            f"expected the evaluation that {out} was begun with, got another model, data, threat or other certifiers; "
            "choose another file"
        )
    return before.points
