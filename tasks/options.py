"""The options of the command line: what each is called and means, and how they are read from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reprogram.errors import DataError

CONFIGS = Path(__file__).parent / "configs"
DEBUG = "reprogram.debug"


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
ModelFolder = Annotated[str, typer.Option(help="Folder for the model, report and figures.")]
TableFile = Annotated[str, typer.Option(help="CSV or TSV file for the predictions.")]
Quick = Annotated[bool, typer.Option(help="A small version in well under a minute.")]
Modality = Annotated[
    str | None,
    typer.Option(
        help="molecules, peptides, reactions, texts, images, series or tables; by default what the data looks like."
    ),
]
Source = Annotated[
    str, typer.Option(help="A name of `reprogram sources`, several joined by +, a folder, a hub id, or auto.")
]
Program = Annotated[
    str, typer.Option(help="auto, none, a name such as delta, free, prompt, full, mask, series, or a spec.")
]
Mapping = Annotated[str, typer.Option(help="auto, gp, linear, ridge, a label map such as iterative, or a spec.")]
TrainSize = Annotated[int | None, typer.Option(help="Train on this many labels only.")]
Split = Annotated[str | None, typer.Option(help="scaffold, random, or a column of train, validation, test.")]
Kind = Annotated[str | None, typer.Option(help="regression, classification or multilabel.")]
Positive = Annotated[str | None, typer.Option(help="Name of the class that is class 1.")]
Units = Annotated[str, typer.Option(help="Units of the target, for tables and figures.")]
LargestFragment = Annotated[bool, typer.Option(help="Drop counter-ions and solvents.")]
Neutralise = Annotated[bool, typer.Option(help="Remove charges where hydrogens can.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training rows.", min=0)]
Budget = Annotated[
    int | None,
    typer.Option(
        help="Try so many combinations of source, program, map and rate on validation rows, train the best.", min=1
    ),
]
Beside = Annotated[str, typer.Option(help="Baselines and controls beside it: none, fast or all.")]

Starts = Annotated[str, typer.Option(help="CSV, TSV, Parquet or SDF file of molecules to begin with.")]
Objective = Annotated[
    list[str] | None,
    typer.Option(
        help="qed, plogp, sa, logp, … (min: before it to minimise), a GuacaMol objective, a trained model's folder, or "
        "command:… that reads SMILES and writes numbers; several make a multi-objective search. Default qed."
    ),
]
Similarity = Annotated[
    float,
    typer.Option(
        help="Least Tanimoto similarity to the start; 0 for none, then the starts are one population unless --alerts."
    ),
]
Calls = Annotated[
    int, typer.Option("--budget", help="Molecules the oracle may be asked for in all, the starts included.", min=1)
]
Within = Annotated[list[str] | None, typer.Option(help="property:low:high, such as logp:1:4 or weight::500.")]
Keep = Annotated[list[str] | None, typer.Option(help="SMARTS that must stay.")]
Forbid = Annotated[list[str] | None, typer.Option(help="SMARTS that must not appear.")]
AlertsOption = Annotated[bool, typer.Option("--alerts", help="No PAINS or Brenk alert that the start does not have.")]
Prefer = Annotated[
    str | None,
    typer.Option(help="Of several objectives: pareto (default), weighted:1,0.5 or lexicographic:0.9,-3 (goals)."),
]
Method = Annotated[str, typer.Option(help="guided, evolution, graph-ga, sampling, qmo, cma-es or latent-evolution.")]
Goal = Annotated[
    float | None, typer.Option(help="End a search when the objective, or the fitness of several, reaches this.")
]
Proposals = Annotated[
    int | None, typer.Option(help="Molecules that may be written in all; ten times the budget by default.", min=1)
]
SearchFolder = Annotated[str, typer.Option("--out", help="Folder for the ledger, the searches and their results.")]
SpaceOption = Annotated[str, typer.Option("--space", help="annalog, or the folder of a sequence-to-sequence model.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds a call of the oracle may take.")]
Failing = Annotated[
    bool, typer.Option("--failing", help="NaN from a command says that a molecule cannot be measured; else an error.")
]
AttackFolder = Annotated[str, typer.Option("--out", help="Folder of results; an unfinished run in it goes on.")]
ThreatOption = Annotated[
    str | None, typer.Option("--threat", help="rewrites (molecules), linf, l2 or l1; by default what suits the data.")
]
Eps = Annotated[list[float] | None, typer.Option(help="Size of the change; may be given several times.")]
Attacks = Annotated[list[str] | None, typer.Option(help="fgsm, pgd (default), apgd, square, deepfool or autoattack.")]
AttackedRows = Annotated[int, typer.Option("--rows", help="Rows that are attacked at most.", min=1)]
CertifyFolder = Annotated[str, typer.Option("--out", help="Folder of results; an unfinished run in it goes on.")]
CertifyMethod = Annotated[
    str,
    typer.Option(
        "--method",
        help="auto (the tightest that fits the time), ibp, crown-ibp, crown, alpha-crown, cascade, smoothing, or clever (an estimate).",
    ),
]
Seconds = Annotated[float, typer.Option(help="Time that auto plans with.", min=1)]
Sigma = Annotated[float | None, typer.Option(help="Standard deviation of smoothing's noise, in units of the inputs.")]
Draws = Annotated[int | None, typer.Option(help="Smoothing's draws for each input.", min=1)]
CertifiedRows = Annotated[int, typer.Option("--rows", help="Rows that are certified at most.", min=1)]
