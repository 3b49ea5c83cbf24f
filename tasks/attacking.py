"""A saved model under attack on a file: rewrites of molecules, or perturbations of pixels, samples, features, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import adversarial
from reprogram.errors import DataError
from reprogram.files import check_place
from reprogram.model import Reprogrammed
from reprogram.train import default_accelerator
from tasks.threatened import REWRITES, Findings, Labelled, labelled

ATTACKS = {
    "fgsm": adversarial.FGSM, "pgd": adversarial.PGD, "apgd": adversarial.APGD, "square": adversarial.Square,
    "deepfool": adversarial.DeepFool, "autoattack": adversarial.AutoAttack,
}  # fmt: skip


def attack_file(
    folder: str | Path, data: Any, out: str | Path = "runs/attack", *, threat: str | None = None, eps: Sequence[float] = (),
    attacks: Sequence[str] = ("pgd",), rows: int = 256, input: str | None = None, target: Sequence[str] = (), seed: int = 0,
    accelerator: Any = None,
) -> Findings:  # fmt: skip
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
    check_place(Path(out))
    task = labelled(folder, data, rows=rows, input=input, target=target, accelerator=accelerator)
    threat = task.threat(threat)
    if threat == REWRITES:
        found = rewritten(task.model, task.inputs, task.y, Path(out), seed, accelerator)
    else:
        found = perturbed(task, Path(out), threat, tuple(eps), attacks, seed, accelerator)
    if accelerator.is_main_process:
        found.write("attack")
    accelerator.wait_for_everyone()
    return replace(found, main=accelerator.is_main_process)


def rewritten(
    model: Reprogrammed, smiles: list[str], y: np.ndarray, out: Path, seed: int, accelerator: Any
) -> Findings:  # fmt: skip
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
    return Findings(out, "\n".join(lines), facts)


def perturbed(
    task: Labelled, out: Path, norm: str, eps: tuple[float, ...], names: Sequence[str], seed: int, accelerator: Any
) -> Findings:  # fmt: skip
    """Accuracy under each attack at each eps."""
    from reprogram.plot import save

    if strange := [name for name in names if name not in ATTACKS]:
        raise DataError(f"expected attacks among {', '.join(ATTACKS)}, got {strange[0]}")
    space = task.space(norm, eps)
    out.mkdir(parents=True, exist_ok=True)
    curve = adversarial.evaluate(
        space.module, space.x, space.y, {name: ATTACKS[name] for name in names}, threat=space.ball, eps=space.eps, seed=seed,
        batch_size=64, out=out / "points.json", accelerator=accelerator,
    )  # fmt: skip
    if accelerator.is_main_process:
        save(curve.plot(), out / "attack.png")
    points = [{k: v for k, v in asdict(point).items() if k != "broken"} for point in curve.points]
    return Findings(out, curve.to_markdown(), {"threat": norm, "n": len(task.y), "seed": seed, "points": points})
