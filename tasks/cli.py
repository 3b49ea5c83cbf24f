"""The command line: each command reads its options, calls one public function and shows what it returned."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from tasks import options
from tasks.show import listing, print_table, show, show_findings, show_molecules

if TYPE_CHECKING:
    from tasks.runs import Run
    from tasks.task import ReadReport


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
            if ctx.meta.get(options.DEBUG):
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


app = typer.Typer(
    name="reprogram", cls=OneSentence, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Reprogram a frozen pretrained model for a new low-data task. Start with: reprogram demo",
)  # fmt: skip


@app.command()
def demo(
    out: options.ModelFolder = "runs/demo",
    quick: options.Quick = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Reprogram MiniMol for hydration free energies, beside its controls and baselines, offline."""
    from tasks.demo import next_steps, run_demo

    report = run_demo(out, quick=quick, seed=seed)
    show(report, as_json, {"folder": out}, [f"Written to {out}/", *next_steps(out)])


@app.command()
def train(
    data: options.Data,
    out: options.ModelFolder = "runs/model",
    modality: options.Modality = None,
    input: options.Input = None,
    target: options.Target = None,
    source: options.Source = "auto",
    program: options.Program = "auto",
    mapping: options.Mapping = "auto",
    train_size: options.TrainSize = None,
    split: options.Split = None,
    kind: options.Kind = None,
    positive: options.Positive = None,
    units: options.Units = "",
    largest_fragment: options.LargestFragment = False,
    neutralise: options.Neutralise = False,
    epochs: options.Epochs = None,
    budget: options.Budget = None,
    seed: options.Seed = 0,
    compare: options.Beside = "none",
    config: options.Config = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Reprogram a frozen model for your data and write it with its report; run again to resume a killed run."""
    from tasks.runs import prepare_task, spec_or_name, train_task

    parts = {"source": spec_or_name(source), "program": spec_or_name(program), "mapping": spec_or_name(mapping)}
    cleaning = {"largest_fragment": largest_fragment, "neutralise": neutralise}
    task = prepare_task(
        data, train_size=train_size, seed=seed, modality=modality, input=input, target=target, split=split, kind=kind,
        positive=positive, units=units, source=parts["source"], **{name: True for name, on in cleaning.items() if on},
    )  # fmt: skip
    run = train_task(task, out, **parts, epochs=epochs, budget=budget, seed=seed, beside=compare)
    if run.main:
        told(run, task.report, compare, as_json)


@app.command()
def predict(
    folder: options.Folder,
    data: options.Data,
    out: options.TableFile = "predictions.csv",
    input: options.Input = None,
    config: options.Config = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
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
    folder: options.Folder,
    data: options.Data,
    input: options.Input = None,
    target: options.Target = None,
    seed: options.Seed = 0,
    config: options.Config = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure a trained model on labelled rows, with 95 % bootstrap intervals."""
    from tasks.inference import evaluate_file

    report = evaluate_file(folder, data, input=input, target=target or (), seed=seed)
    left_out = f"{report.data['dropped']} of {report.data['read']} rows left out" if report.data["dropped"] else ""
    show(report, as_json, {"folder": folder}, [left_out] if left_out else [])


@app.command()
def attack(
    folder: options.Folder,
    data: options.Data,
    out: options.AttackFolder = "runs/attack",
    threat: options.ThreatOption = None,
    eps: options.Eps = None,
    attack: options.Attacks = None,
    rows: options.AttackedRows = 256,
    input: options.Input = None,
    target: options.Target = None,
    seed: options.Seed = 0,
    config: options.Config = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Attack a trained model on labelled rows; run again to resume a killed run."""
    from tasks.attacking import attack_file

    found = attack_file(
        folder, data, out, threat=threat, eps=eps or (), attacks=attack or ("pgd",), rows=rows, input=input,
        target=target or (), seed=seed,
    )  # fmt: skip
    show_findings(found, out, as_json)


@app.command()
def certify(
    folder: options.Folder,
    data: options.Data,
    out: options.CertifyFolder = "runs/certify",
    method: options.CertifyMethod = "auto",
    threat: options.ThreatOption = None,
    eps: options.Eps = None,
    seconds: options.Seconds = 60.0,
    sigma: options.Sigma = None,
    draws: options.Draws = None,
    rows: options.CertifiedRows = 64,
    input: options.Input = None,
    target: options.Target = None,
    seed: options.Seed = 0,
    config: options.Config = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Prove, or show with a probability, that a trained model keeps its answers; run again to resume a killed run."""
    from tasks.certifying import certify_file

    found = certify_file(
        folder, data, out, method=method, threat=threat, eps=eps or (), sigma=sigma, draws=draws, seconds=seconds, rows=rows,
        input=input, target=target or (), seed=seed,
    )  # fmt: skip
    show_findings(found, out, as_json)


@app.command()
def optimize(
    starts: options.Starts,
    objective: options.Objective = None,
    similarity: options.Similarity = 0.4,
    budget: options.Calls = 500,
    out: options.SearchFolder = "runs/optimised",
    input: options.Input = None,
    within: options.Within = None,
    keep: options.Keep = None,
    forbid: options.Forbid = None,
    alerts: options.AlertsOption = False,
    prefer: options.Prefer = None,
    method: options.Method = "guided",
    space: options.SpaceOption = "annalog",
    goal: options.Goal = None,
    proposals: options.Proposals = None,
    timeout: options.Timeout = None,
    failing: options.Failing = False,
    largest_fragment: options.LargestFragment = False,
    neutralise: options.Neutralise = False,
    seed: options.Seed = 0,
    config: options.Config = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Find better molecules near those of a file with few calls of an oracle; run again to resume a killed run."""
    from tasks.molecules.optimise_file import optimize_file

    cleaning = {"largest_fragment": largest_fragment, "neutralise": neutralise}
    result = optimize_file(
        starts, objective or ["qed"], out, input=input, similarity=similarity or None, within=within or (),
        keep=keep or (), forbid=forbid or (), alerts=alerts, prefer=prefer, timeout=timeout, failing=failing,
        cleaning={name: True for name, on in cleaning.items() if on}, method=method, space=space, goal=goal,
        proposals=proposals, budget=budget, seed=seed,
    )  # fmt: skip
    if result.main:
        show_molecules(result, out, as_json)


@app.command()
def sources(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the frozen models that come inside installable packages."""
    from reprogram.sources import catalogue

    heads = ("name", "modality", "parameters", "megabytes", "license", "present", "install", "summary")
    listing("Frozen sources", heads, catalogue(), as_json)


@app.command()
def tasks(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the bundled data sets."""
    from tasks.bundled import available

    heads = ("name", "modality", "n", "kind", "metric", "units", "license", "present", "install", "summary")
    listing("Bundled tasks", heads, available(), as_json)


def told(run: Run, read: ReadReport, compare: str, as_json: bool) -> None:
    """What a training made and read, and what to do with it."""
    from reprogram.selection import HEADS

    if run.selection is not None and not as_json:
        print_table("Tried on validation rows", list(HEADS), run.selection.table())
    dropped = [f"The dropped rows and why: {run.folder}/dropped.csv"] if read.dropped else []
    alone = ["No control was run beside it: --compare fast shows what the source and the program are worth."]
    use = f"Use it: reprogram predict {run.folder} --data new.csv --out predictions.csv"
    lines = [read.summary(), *dropped, *(alone if compare == "none" else []), f"Written to {run.folder}/", use]
    show(run.report, as_json, {"folder": str(run.folder)}, lines)
