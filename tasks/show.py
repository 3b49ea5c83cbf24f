"""What a command prints: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tasks.molecules.optimisation_result import OptimisationResult
    from tasks.report import Report
    from tasks.threatened import Findings


def listing(title: str, heads: tuple[str, ...], items: list[Any], as_json: bool) -> None:
    """Dataclass rows as JSON or as a table; an absent one shows the command that brings it."""
    from dataclasses import asdict

    if as_json:
        return typer.echo(json.dumps([asdict(item) for item in items], indent=2))
    rows = []
    for item in items:
        facts = {key: getattr(item, key) for key in heads if key not in ("present", "install")}
        cells = [f"{v:,}" if isinstance(v, int | float) else str(v) for v in facts.values()]
        rows.append([*cells[:-1], "yes" if item.present else item.install, cells[-1]])
    print_table(
        title, [*(h for h in heads if h not in ("present", "install", "summary")), "installed", "summary"], rows
    )


def show_molecules(result: OptimisationResult, out: str, as_json: bool) -> None:
    """The best molecule of every search as JSON or as a table, with what it cost."""
    frame = result.frame()
    if as_json:
        rows = json.loads(frame.to_json(orient="records"))
        return typer.echo(json.dumps({"folder": out, "ledger": result.ledger, "best": rows}, allow_nan=False))
    heads = [
        "start",
        "smiles",
        *(f"{when}{name}" for name in result.names for when in ("start_", "")),
        "similarity",
        "calls",
    ]
    cells = [
        [f"{row[h]:.3f}" if isinstance(row[h], float) else str(row[h]) for h in heads]
        for row in frame.to_dict("records")
    ]
    print_table(f"{', '.join(result.names)}: best of {len(result.runs)} searches", heads, cells)
    said = [
        f"{run.starts[0][:60]}: {run.note or 'no feasible molecule found'} ({run.reason})"
        for run in result.runs
        if run.note or not run.ranked
    ]
    for line in said[:5]:
        typer.echo(line)
    if len(said) > 5:
        typer.echo(f"and {len(said) - 5} more such starts, see the column note of results.csv and searches/")
    typer.echo(f"{result.ledger['queries']:g} molecules asked for; all of them, drawings and provenance in {out}/")


def show(report: Report, as_json: bool, extra: dict[str, Any], lines: list[str]) -> None:
    """A report as JSON, or as a table with its verdict and some closing lines."""
    if as_json:
        return typer.echo(json.dumps(report.to_dict() | extra, allow_nan=False))
    names = list(dict.fromkeys(row.metric for row in report.rows))
    size = next((row.train_size for row in report.rows if row.train_size), None)
    sizes = [f"{size} training rows"] if size else []
    sizes += [f"{report.rows[0].n} test labels", "95 % intervals"] if report.rows else []
    units = f" ({report.units})" if report.units and report.kind == "regression" else ""
    heads = ["method", "group", *(name + units * (name in ("rmse", "mae")) for name in names), "seconds"]
    cells = report.table(names)
    shown = [i for i in range(len(heads)) if any(row[i].strip("–") for row in cells)]  # nothing measured, no column
    print_table(
        f"{report.task}: {', '.join(sizes)}", [heads[i] for i in shown], [[row[i] for i in shown] for row in cells]
    )
    for line in [*report.verdict, *report.notes, *lines]:
        typer.echo(line)


def show_findings(found: Findings, out: str, as_json: bool) -> None:
    """What an attack or a certificate found, said by the main process alone."""
    if found.main:
        typer.echo(json.dumps(found.facts) if as_json else f"{found.text}\n\nWritten to {out}/")


def print_table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # through a pipe there is no terminal to fit into: a narrow guess would cut numbers in half
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
