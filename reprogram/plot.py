"""Every figure: data in, matplotlib Axes out. No pyplot, so notebooks, threads and servers are safe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprogram.errors import DataError
from reprogram.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from reprogram.train import History

# Okabe and Ito's colours, which people with any colour vision tell apart; shapes say the same once more for print
GROUPS = {
    "reprogrammed": ("#0072B2", "o"),
    "probe": ("#009E73", "s"),
    "baseline": ("#D55E00", "D"),
    "control": ("#7F7F7F", "^"),
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
GREY = "#999999"


def new_axes(*, width: float = 5.0, height: float = 4.0) -> Axes:
    """Axes of a new figure with its own Agg canvas; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def save(ax: Axes, path: str | Path, *, dpi: int = 150) -> Path:
    """Write the whole figure of `ax`, all or nothing; the suffix names the format (png, svg, pdf)."""
    path = Path(path)
    figure = ax.get_figure(root=True)
    if figure is None:
        raise DataError("expected axes of a figure, got axes that were removed from theirs")
    known = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise DataError(f"expected a figure file that ends in .{', .'.join(sorted(known))}, got {path.name}")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=dpi)
    return path


def parity(
    y: Any, p: Any, *, low: Any = None, high: Any = None, units: str = "", name: str = "", ax: Axes | None = None
) -> Axes:
    """Predicted against measured values, the line of perfect prediction, and intervals where they are given.

    Shapes: y, p, low, high (n,), in `units`. Missing labels (NaN) are left out.

    Raises: DataError when lengths differ or nothing is measured.
    """
    y, p = np.asarray(y, dtype=float).ravel(), np.asarray(p, dtype=float).ravel()
    bounds = [None if b is None else np.asarray(b, dtype=float).ravel() for b in (low, high)]
    if any(b is not None and len(b) != len(y) for b in (p, *bounds)) or not np.isfinite(y).any():
        raise DataError(f"expected measured and predicted values of equal length, got {len(y)} and {len(p)}")
    known = np.isfinite(y)
    y, p = y[known], p[known]
    ax = new_axes(width=4.6, height=4.6) if ax is None else ax
    if bounds[0] is not None and bounds[1] is not None:
        ax.vlines(y, bounds[0][known], bounds[1][known], color=COLOURS[0], alpha=0.25, linewidth=1.2, zorder=2)
    both = np.concatenate([y, p, *(b[known] for b in bounds if b is not None)])
    margin = 0.05 * (np.ptp(both) or 1.0)
    limits = (both.min() - margin, both.max() + margin)
    ax.plot(limits, limits, color=GREY, linewidth=1, zorder=1)
    ax.scatter(y, p, s=22, color=COLOURS[0], alpha=0.8, edgecolor="white", linewidth=0.4, zorder=3)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.set_title(name, fontsize=10)
    ax.set_xlabel(f"measured{_in(units)}")
    ax.set_ylabel(f"predicted{_in(units)}")
    error = p - y
    text = f"RMSE {np.sqrt((error**2).mean()):.2f}\nMAE {np.abs(error).mean():.2f}\nn = {len(y)}"
    ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=9)
    return ax


def history(record: History, ax: Axes | None = None) -> Axes:
    """Loss over epochs; the training loss has an axis of its own, because it may be another quantity (evidence).

    Raises: DataError for a history without epochs (a closed-form fit has none).
    """
    from matplotlib.ticker import MaxNLocator

    if not record.epochs:
        raise DataError("expected a history with epochs, got none; a closed-form fit has no curve to draw")
    ax = new_axes(width=5.4, height=3.6) if ax is None else ax
    ax.set_xlabel("epoch")
    columns = [c for c in ("validation_loss", "train_loss") if record.column(c)]
    axes = [ax, ax.twinx()] if len(columns) > 1 else [ax]
    for place, column, colour, marker in zip(axes, columns, COLOURS, "os", strict=False):
        epochs = [row["epoch"] + 1 for row in record.epochs if column in row]
        place.plot(
            epochs,
            record.column(column),
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.5,
            linestyle="-" if place is ax else "--",
        )
        place.set_ylabel(column.replace("_", " ").replace("train ", "training "), color=colour)
        place.tick_params(axis="y", labelcolor=colour)
        place.spines["top"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if record.best_epoch >= 0 and columns[0] == "validation_loss":
        ax.axvline(record.best_epoch + 1, color=GREY, linestyle="--", linewidth=1, zorder=0)
        ax.set_title(f"epoch {record.best_epoch + 1} kept: lowest validation loss", fontsize=10, color="#555555")
    return ax


def comparison(
    frame: pd.DataFrame, ax: Axes | None = None, *, larger_is_better: bool = False, label: str | None = None
) -> Axes:
    """Methods as dots with their intervals, the best on top, coloured by group.

    `frame` has one row per method with the columns method, group, value, low, high, and metric for the axis label.

    Raises: DataError without a row that has a value.
    """
    rows = frame[frame["value"].notna()].sort_values("value", ascending=not larger_is_better, kind="stable")
    if rows.empty:
        raise DataError("expected at least one method with a value to compare, got none")
    ax = new_axes(width=7.2, height=1.3 + 0.3 * len(rows)) if ax is None else ax
    for group in dict.fromkeys(rows["group"]):
        colour, marker = GROUPS.get(group, (COLOURS[3], "v"))
        chosen = (rows["group"] == group).to_numpy()
        places, part = np.flatnonzero(chosen), rows[chosen]
        ax.hlines(places, part["low"], part["high"], color=colour, linewidth=1.6, alpha=0.7)
        ax.scatter(part["value"], places, color=colour, marker=marker, s=36, zorder=3, label=group)
    ax.axvline(rows["value"].iloc[0], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.set_yticks(range(len(rows)), rows["method"])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    metric = rows["metric"].iloc[0] if "metric" in rows else "value"
    better = "higher" if larger_is_better else "lower"
    ax.set_xlabel(f"{label or metric} with 95 % interval, {better} is better", loc="right")
    _legend_above(ax, columns=4)
    return ax


def learning_curve(frame: pd.DataFrame, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """The metric of each method over the number of training labels, with intervals.

    `frame` has the columns method, train_size, value, low, high, and metric for the axis label.

    Raises: DataError without a row that has a value.
    """
    rows = frame[frame["value"].notna()]
    if rows.empty:
        raise DataError("expected at least one measured point for a learning curve, got none")
    ax = new_axes(width=6.0, height=4.4) if ax is None else ax
    methods = list(dict.fromkeys(rows["method"]))
    for i, method in enumerate(methods):
        part = rows[rows["method"] == method].sort_values("train_size")
        colour, marker = COLOURS[i % len(COLOURS)], "osD^vPX*"[i % 8]
        # methods measured at the same sizes would draw their intervals on top of each other
        shifted = part["train_size"] * 1.025 ** (i - (len(methods) - 1) / 2)
        ax.vlines(shifted, part["low"], part["high"], color=colour, linewidth=1.2, alpha=0.5)
        ax.plot(shifted, part["value"], color=colour, marker=marker, markersize=5, linewidth=1.5, label=method)
    sizes = sorted(set(rows["train_size"]))
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("training labels")
    ax.set_ylabel(label or (rows["metric"].iloc[0] if "metric" in rows else "value"))
    _legend_above(ax, columns=2)
    return ax


def _in(units: str) -> str:
    return f" ({units})" if units else ""


def _legend_above(ax: Axes, *, columns: int) -> None:
    """A legend outside the data, where it can hide no point."""
    count = len(ax.get_legend_handles_labels()[1])
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2, "columnspacing": 1.2}
    ax.legend(ncols=min(columns, count), frameon=False, fontsize=9, **place)
