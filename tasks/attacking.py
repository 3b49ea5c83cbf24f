"""A saved model under attack on a file: rewrites of molecules, or perturbations of pixels, samples, features, embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adversarial
from reprogram.errors import DataError
from reprogram.files import atomic_file, check_place
from reprogram.model import Reprogrammed
from reprogram.train import default_accelerator
from tasks.inference import labels_of, read_like

ATTACKS = {
    "fgsm": adversarial.FGSM, "pgd": adversarial.PGD, "apgd": adversarial.APGD, "square": adversarial.Square,
    "deepfool": adversarial.DeepFool, "autoattack": adversarial.AutoAttack,
}  # fmt: skip
REWRITES = "rewrites"
NORMS = ("linf", "l2", "l1")
PIXELS = (0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255)


@dataclass(frozen=True)
class Attacked:
    """What `attack_file` found: a Markdown table, and the same as plain values. `main` is false in the other processes of
    several."""

    folder: Path
    table: str
    facts: dict[str, Any]
    main: bool = True


def attack_file(
    folder: str | Path, data: Any, out: str | Path = "runs/attack", *, threat: str | None = None, eps: Sequence[float] = (),
    attacks: Sequence[str] = ("pgd",), rows: int = 256, input: str | None = None, target: Sequence[str] = (), seed: int = 0,
    accelerator: Any = None,
) -> Attacked:  # fmt: skip
    """Attack the artefact in `folder` on labelled rows and write `attack.json`, `attack.md` and a figure into `out`.

    Under `accelerate launch` each process attacks its share of the rows; the main one writes.

    Args:
        threat: "rewrites" (other SMILES of the same molecule, the default for molecules), or the norm "linf" (the default
            else), "l2" or "l1" of a change of pixels in [0, 1], of samples, of features, or of a token model's embeddings.
        eps: sizes of the change; for images 0 to 8/255 by default, else there is no usual one.
        attacks: names of `ATTACKS`; a stopped run goes on.
        rows: the first so many readable rows with a label are attacked.

    Raises: DataError for an unknown threat or attack, a missing eps, a norm for a model that predicts no classes.
    """
    accelerator = accelerator or default_accelerator()
    model = Reprogrammed.from_pretrained(folder).to(accelerator.device)
    about, kind, place = model.metadata.get("task", {}), str(model.mapping.kind), Path(out)
    check_place(place)
    read = read_like(data, about, input)
    y = labels_of(read.table, list(target) or list(about.get("target") or []), kind, about)[read.positions]
    some = np.flatnonzero(~np.isnan(y).reshape(len(y), -1).any(1))[:rows]
    if not len(some):
        raise DataError("expected rows with labels to attack, got none; choose the column with target")
    inputs, y = [read.inputs[i] for i in some], y[some]
    modality = str(about.get("modality") or read.table.modality or "molecules")
    molecules = modality == "molecules"
    threat = threat or (REWRITES if molecules else "linf")
    if threat not in ((REWRITES, *NORMS) if molecules else NORMS):
        names = ", ".join((REWRITES, *NORMS) if molecules else NORMS)
        raise DataError(f"expected a threat among {names} for {modality}, got {threat}")
    if threat == REWRITES:
        found = rewritten(model, inputs, y, place, seed, accelerator)
    else:
        images = modality == "images"
        found = perturbed(model, inputs, y, place, threat, tuple(eps), attacks, seed, accelerator, images=images)
    if accelerator.is_main_process:
        write(found)
    accelerator.wait_for_everyone()
    return replace(found, main=accelerator.is_main_process)


def rewritten(
    model: Reprogrammed, smiles: list[str], y: np.ndarray, out: Path, seed: int, accelerator: Any
) -> Attacked:  # fmt: skip
    """Rewrites of every molecule: what moves, of all rewrites and of each kind."""
    from tasks.molecules.threats import rewrite_robustness

    found = rewrite_robustness(model, smiles, y, seed=seed, accelerator=accelerator)
    parts = {"all": found.summary(seed=seed), **found.by_kind()}
    facts = {"threat": REWRITES, "n": len(smiles), "rewrites": len(found.text), "refused": found.refused}
    facts |= {
        "seed": seed,
        "rewrites_by_kind": {name: {k: asdict(v) for k, v in part.items()} for name, part in parts.items()},
    }
    heads = list(parts["all"])
    lines = [f"| rewrites | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for name, part in parts.items():
        cells = [f"{v.value:.3f} ({v.low:.3f} to {v.high:.3f})" for v in part.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"n = {len(smiles)} molecules, {len(found.text)} rewrites, {found.refused} of them too long for the model",
    ]
    return Attacked(out, "\n".join(lines), facts)


def perturbed(
    model: Reprogrammed, inputs: list[Any], y: np.ndarray, out: Path, norm: str, eps: tuple[float, ...],
    names: Sequence[str], seed: int, accelerator: Any, *, images: bool,
) -> Attacked:  # fmt: skip
    """Accuracy under each attack at each eps."""
    from reprogram.plot import save

    if str(model.mapping.kind) != "classification":
        raise DataError(f"expected a model of classes for the threat {norm}, got one of kind {model.mapping.kind}")
    if strange := [name for name in names if name not in ATTACKS]:
        raise DataError(f"expected attacks among {', '.join(ATTACKS)}, got {strange[0]}")
    if not eps and not images:
        raise DataError("expected eps, the sizes of the change, got none; give for example --eps 0.1 --eps 0.3")
    view = model.continuous(inputs)
    limits = {"low": 0.0, "high": 1.0} if images else {"low": None, "high": None}
    ball = adversarial.Ball(norm, 1.0, mask=view.free, **limits)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    labels = torch.from_numpy(y).long().flatten().to(view.inputs.device)
    curve = adversarial.evaluate(
        view.module, view.inputs, labels, {name: ATTACKS[name] for name in names}, threat=ball, eps=eps or PIXELS, seed=seed,
        batch_size=64, out=out / "points.json", accelerator=accelerator,
    )  # fmt: skip
    if accelerator.is_main_process:
        save(curve.plot(), out / "attack.png")
    points = [{k: v for k, v in asdict(point).items() if k != "broken"} for point in curve.points]
    return Attacked(out, curve.to_markdown(), {"threat": norm, "n": len(y), "seed": seed, "points": points})


def write(found: Attacked) -> None:
    """Table and values into the folder."""
    with atomic_file(found.folder / "attack.json") as path:
        path.write_text(json.dumps(found.facts, indent=1) + "\n")
    with atomic_file(found.folder / "attack.md") as path:
        path.write_text(found.table + "\n")
