"""The command line: each command reads its options, calls one public function and shows what it returned."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from reprogram.errors import DataError

if TYPE_CHECKING:
    from tasks.report import Report

CONFIGS = Path(__file__).parent / "configs"
DEBUG = "reprogram.debug"


class OneSentence(TyperGroup):
    """Shows what a user can mend as one sentence on stderr and exits with code 2; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except typer.BadParameter as error:
            place = " or the config file" if error.ctx and error.ctx.default_map else ""
            typer.echo(f"error: {error.format_message().rstrip('.')}; check the command line{place}", err=True)
            raise typer.Exit(2) from None
        except (ValueError, OSError, ImportError) as error:
            if ctx.meta.get(DEBUG):
                raise
            if os.environ.get("RANK", "0") == "0":  # every process of a launch meets the same error: one says it
                typer.echo(f"error: {sentence(error)}", err=True)
            raise typer.Exit(2) from None


def sentence(error: Exception) -> str:
    """One line; an absent package names the command that brings it."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"expected the package {error.name}, got none; `reprogram sources` and `reprogram tasks` have the commands"
        )
    if isinstance(error, OSError):
        return f"could not use {error.filename or 'a file'}: {error.strerror or type(error).__name__}"
    return " ".join(str(error).split()) or type(error).__name__


def read_config(ctx: typer.Context, value: str | None) -> str | None:
    """Options from a YAML file, or from a bundled one by name; flags given on the command line win."""
    if value is None:
        return None
    from reprogram.config import read_yaml

    bundled = CONFIGS / f"{value}.yaml"
    given = read_yaml(bundled if bundled.is_file() and not Path(value).exists() else value)
    options = {
        opt.lstrip("-"): p for p in ctx.command.params for opt in p.opts if p.name not in ("config", "debug", "help")
    }
    unknown = sorted(str(key) for key in given if str(key).replace("_", "-") not in options)
    if unknown:
        raise DataError(f"expected config keys among {', '.join(options)}, got unknown {', '.join(unknown)} in {value}")
    found = {}
    for key, item in given.items():
        option = options[str(key).replace("_", "-")]
        # a spec such as {_target_: ...} travels as JSON text; one target is a list of one
        text = json.dumps(item) if isinstance(item, dict) else item
        found[option.name] = [text] if getattr(option, "multiple", False) and not isinstance(item, list) else text
    ctx.default_map = {**(ctx.default_map or {}), **{k: v for k, v in found.items() if v is not None}}
    return value


def remember_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[DEBUG] = value
    return value


app = typer.Typer(
    name="reprogram", cls=OneSentence, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Reprogram a frozen pretrained model for a new low-data task. Start with: reprogram demo",
)  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", is_eager=True, callback=remember_debug, help="Show tracebacks.")]
Config = Annotated[
    str | None,
    typer.Option(is_eager=True, callback=read_config, help="YAML file whose keys are these options; flags win."),
]
Input = Annotated[str | None, typer.Option("--input", "--smiles", help="Column of SMILES, sequences, texts or files.")]
Target = Annotated[list[str] | None, typer.Option(help="Column of labels; several make a multilabel task.")]
Data = Annotated[
    str,
    typer.Option(
        help="A bundled task (see `reprogram tasks`), a CSV, TSV, Parquet, SDF or .ts file, or a folder of images."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.", min=0)]
Folder = Annotated[str, typer.Argument(help="Folder of a trained model.")]


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder for the model, report and figures.")] = "runs/demo",
    quick: Annotated[bool, typer.Option(help="A small version in well under a minute.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Reprogram MiniMol for hydration free energies, beside its controls and baselines, offline."""
    from tasks.demo import next_steps, run_demo

    report = run_demo(out, quick=quick, seed=seed)
    show(report, as_json, {"folder": out}, [f"Written to {out}/", *next_steps(out)])


@app.command()
def train(
    data: Data,
    out: Annotated[str, typer.Option(help="Folder for the model, report and figures.")] = "runs/model",
    modality: Annotated[
        str | None,
        typer.Option(
            help="molecules, peptides, reactions, texts, images, series or tables; by default what the data looks like."
        ),
    ] = None,
    input: Input = None,
    target: Target = None,
    source: Annotated[
        str, typer.Option(help="A name of `reprogram sources`, several joined by +, a folder, a hub id, or auto.")
    ] = "auto",
    program: Annotated[
        str, typer.Option(help="auto, none, a name such as delta, free, prompt, full, mask, series, or a spec.")
    ] = "auto",
    mapping: Annotated[
        str, typer.Option(help="auto, gp, linear, ridge, a label map such as iterative, or a spec.")
    ] = "auto",
    train_size: Annotated[int | None, typer.Option(help="Train on this many labels only.")] = None,
    split: Annotated[str | None, typer.Option(help="scaffold, random, or a column of train, validation, test.")] = None,
    kind: Annotated[str | None, typer.Option(help="regression, classification or multilabel.")] = None,
    positive: Annotated[str | None, typer.Option(help="Name of the class that is class 1.")] = None,
    units: Annotated[str, typer.Option(help="Units of the target, for tables and figures.")] = "",
    largest_fragment: Annotated[bool, typer.Option(help="Drop counter-ions and solvents.")] = False,
    neutralise: Annotated[bool, typer.Option(help="Remove charges where hydrogens can.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.", min=0)] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            help="Try so many combinations of source, program, map and rate on validation rows, train the best.", min=1
        ),
    ] = None,
    seed: Seed = 0,
    compare: Annotated[str, typer.Option(help="Baselines and controls beside it: none, fast or all.")] = "none",
    config: Config = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Reprogram a frozen model for your data and write it with its report; run again to resume a killed run."""
    from reprogram.selection import HEADS
    from tasks.runs import prepare_task, spec_or_name, train_task

    options: dict[str, Any] = {
        "modality": modality,
        "input": input,
        "target": target,
        "split": split,
        "kind": kind,
        "positive": positive,
        "units": units,
        "source": spec_or_name(source),
    }
    options |= {
        name: True for name, on in {"largest_fragment": largest_fragment, "neutralise": neutralise}.items() if on
    }
    task = prepare_task(data, train_size=train_size, seed=seed, **options)
    parts = {"source": options["source"], "program": spec_or_name(program), "mapping": spec_or_name(mapping)}
    run = train_task(task, out, **parts, epochs=epochs, budget=budget, seed=seed, beside=compare)
    if run.main:
        dropped = [f"The dropped rows and why: {out}/dropped.csv"] if task.report.dropped else []
        use = f"Use it: reprogram predict {out} --data new.csv --out predictions.csv"
        alone = ["No control was run beside it: --compare fast shows what the source and the program are worth."]
        lines = [task.report.summary(), *dropped, *(alone if compare == "none" else []), f"Written to {out}/", use]
        if run.selection is not None and not as_json:
            print_table("Tried on validation rows", list(HEADS), run.selection.table())
        show(run.report, as_json, {"folder": out}, lines)


@app.command()
def predict(
    folder: Folder,
    data: Data,
    out: Annotated[str, typer.Option(help="CSV or TSV file for the predictions.")] = "predictions.csv",
    input: Input = None,
    config: Config = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict a file, or a folder of images; unreadable rows stay, with an empty prediction and the reason."""
    from tasks.inference import predict_file

    done = predict_file(folder, data, out, input=input)
    if as_json:
        return typer.echo(json.dumps(done.to_dict(), allow_nan=False))
    typer.echo(f"{len(done.frame) - len(done.refused)} of {len(done.frame)} rows predicted, written to {out}")
    for row in done.refused[:5]:
        typer.echo(f"row {row.row} {row.input!a}: {row.reason}", err=True)
    if len(done.refused) > 5:
        typer.echo(f"and {len(done.refused) - 5} more, see the column {done.columns[-1]}", err=True)


@app.command()
def evaluate(
    folder: Folder,
    data: Data,
    input: Input = None,
    target: Target = None,
    seed: Seed = 0,
    config: Config = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a trained model on labelled rows, with 95 % bootstrap intervals."""
    from tasks.inference import evaluate_file

    report = evaluate_file(folder, data, input=input, target=target or (), seed=seed)
    left_out = f"{report.data['dropped']} of {report.data['read']} rows left out" if report.data["dropped"] else ""
    show(report, as_json, {"folder": folder}, [left_out] if left_out else [])


@app.command()
def sources(as_json: Json = False, debug: Debug = False) -> None:
    """List the frozen models that come inside installable packages."""
    from reprogram.sources import catalogue

    heads = ("name", "modality", "parameters", "megabytes", "license", "present", "install", "summary")
    listing("Frozen sources", heads, catalogue(), as_json)


@app.command()
def tasks(as_json: Json = False, debug: Debug = False) -> None:
    """List the bundled data sets."""
    from tasks.bundled import available

    heads = ("name", "modality", "n", "kind", "metric", "units", "license", "present", "install", "summary")
    listing("Bundled tasks", heads, available(), as_json)


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
