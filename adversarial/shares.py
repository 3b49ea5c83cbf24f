"""Shares of samples at several eps, with intervals: one table and one figure for attacks and for certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Measured(Protocol):
    """The share of n samples that `name` leaves right at one eps; `low` to `high` is Wilson's 95 % interval."""

    @property
    def name(self) -> str: ...
    @property
    def eps(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


M = TypeVar("M", bound=Measured)


@dataclass(frozen=True)
class Share:
    """A measured share and nothing else."""

    name: str
    eps: float
    accuracy: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, name: str, eps: float, right: int, n: int) -> Share:
        return cls(name, eps, right / n, *wilson(right, n), n)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `right` in n. Reference: Wilson, JASA 1927."""
    from scipy.stats import binomtest

    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def names_of(points: Sequence[Measured]) -> list[str]:
    """Each name once, in order."""
    return list(dict.fromkeys(point.name for point in points))


def curve_of(points: Sequence[M], name: str, what: str) -> list[M]:
    """One name's points by growing eps. Raises ValueError for a name that is not there."""
    found = sorted((point for point in points if point.name == name), key=lambda point: point.eps)
    if not found:
        raise ValueError(f"expected {what} among {', '.join(names_of(points))}, got {name!r}")
    return found


def table(points: Sequence[Measured], head: str, norm: str) -> list[str]:
    """Lines of a Markdown table: one for each name, a column for each eps."""
    eps = sorted({point.eps for point in points})
    lines = [f"| {head} | {' | '.join(f'{norm} {e:g}' for e in eps)} |", "| --- " * (len(eps) + 1) + "|"]
    for name in names_of(points):
        found = {
            point.eps: f"{point.accuracy:.3f} ({point.low:.3f} to {point.high:.3f})"
            for point in points
            if point.name == name
        }
        lines.append(f"| {name} | {' | '.join(found.get(e, '') for e in eps)} |")
    return lines


def line(
    ax: Axes, curve: Sequence[Measured], *, broad: bool = False, band: bool = False, bars: float | None = None, **style: Any
) -> None:  # fmt: skip
    """A curve against eps with a mark at each point; a broad one lies behind the others.

    Its intervals are a `band`, or, of several curves, `bars` so far beside its points.
    """
    look: dict[str, Any] = {"linewidth": 1.2, "zorder": 3}
    if broad:
        look = {"color": "black", "linewidth": 5.0, "alpha": 0.3, "zorder": 2}
    eps = [point.eps for point in curve]
    look = {"marker": "o", "markersize": 3, "label": curve[0].name} | look | style
    (drawn,) = ax.plot(eps, [point.accuracy for point in curve], **look)
    low, high = [p.low for p in curve], [p.high for p in curve]
    if band:
        step: Any = "pre" if style.get("drawstyle") == "steps-pre" else None
        ax.fill_between(eps, low, high, color=drawn.get_color(), alpha=0.1, linewidth=0, step=step)
    if bars is not None:
        ax.vlines([e + bars for e in eps], low, high, color=drawn.get_color(), alpha=0.45, linewidth=1)


def finished(ax: Axes, norm: str, height: str, n: int | None = None) -> Axes:
    """Labels, limits and legend; of how many samples."""
    if n is not None:
        ax.set_title(f"n = {n}, with 95 % intervals", fontsize=9, color="#555555", loc="left")
    ax.set_xlabel(f"eps ({norm})")
    ax.set_ylabel(height)
    ax.set_ylim(-0.02, 1.02)
    ax.legend(frameon=False, fontsize="small")
    return ax
