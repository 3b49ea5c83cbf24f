"""A saved model certified on a file: within balls of pixels, samples, features, embeddings, or over rewrites of molecules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import adversarial
import certify
from adversarial.marks import mark_of
from certify.auto import PROOFS
from certify.lipschitz.clever import CLEVER
from certify.randomised.smoothing import Smoothing
from reprogram.errors import DataError
from reprogram.files import atomic_file, check_place
from reprogram.train import default_accelerator
from tasks.threatened import REWRITES, Findings, Labelled, Space, labelled

AUTO = "auto"
METHODS: dict[str, Callable[[Any], certify.Certifier]] = {
    **{name.lower(): make for name, make in PROOFS.items()}, "alpha-crown": PROOFS["AlphaCROWN"], "smoothing": Smoothing,
    "clever": CLEVER,
}  # fmt: skip
METHODS.pop("alphacrown")


@dataclass(frozen=True)
class Kept:
    """A smoothing that goes on from what a stopped run of it left in a folder."""

    smoothing: Smoothing
    folder: Path

    @property
    def threat(self) -> Any:
        return self.smoothing.threat

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> certify.Certificate:
        return self.smoothing(model, x, y, batch_size=batch_size, checkpoint=self.folder)


def certify_file(
    folder: str | Path, data: Any, out: str | Path = "runs/certify", *, method: str = AUTO, threat: str | None = None,
    eps: Sequence[float] = (), sigma: float | None = None, draws: int | None = None, seconds: float = 60.0, rows: int = 64,
    input: str | None = None, target: Sequence[str] = (), seed: int = 0, accelerator: Any = None,
) -> Findings:  # fmt: skip
    """Certify the artefact in `folder` on labelled rows and write `certify.json`, `certify.md` and a figure into `out`.

    Under `accelerate launch` the main process works alone.

    Args:
        method: "auto" takes the tightest that fits `seconds` and says why, or one of `METHODS`; rewrites have one of their own.
        threat: "rewrites" (other SMILES of the same molecule, the default for molecules), or the norm "linf" (the default
            else), "l2" or "l1" of a change of pixels in [0, 1], of samples, of features, or of a token model's embeddings.
        eps: sizes of the change; for images 0 to 8/255 by default, else there is no usual one. 0 is always asked too: the clean
            accuracy.
        sigma, draws: of smoothing; by default the largest eps (its l2 length for linf) and 10,000.
        rows: the first so many readable rows with a label; a stopped run goes on.

    Raises: DataError for an unknown threat or method, options that the method or the threat does not have, a missing eps, a
    norm for a model that predicts no classes; CertifyError for what has no bound.
    """
    accelerator, place = accelerator or default_accelerator(), Path(out)
    check_place(place)
    task = labelled(folder, data, rows=rows, input=input, target=target, accelerator=accelerator)
    threat = task.threat(threat)
    check_options(method, threat, eps, sigma, draws)
    found = Findings(place, "", {}, False)
    if accelerator.is_main_process:
        if threat == REWRITES:
            found = rewritten(task, place, seed)
        else:
            found = bounded(task.space(threat, eps), place, method, sigma, draws, seconds, seed)
        found.write("certify")
    accelerator.wait_for_everyone()
    return found


def check_options(method: str, threat: str, eps: Sequence[float], sigma: float | None, draws: int | None) -> None:
    """Raise DataError for a method that does not exist, and for an option that would be passed over."""
    if method not in (AUTO, *METHODS):
        raise DataError(f"expected a method among {AUTO}, {', '.join(METHODS)}, got {method}")
    if threat == REWRITES and (method != AUTO or eps):
        raise DataError(
            f"expected neither method nor eps for {REWRITES}, which have a method of their own, got "
            f"{method if method != AUTO else list(eps)}; for changes of embeddings give a threat such as linf"
        )
    given = " and ".join(name for name, value in (("sigma", sigma), ("draws", draws)) if value is not None)
    if given and method != "smoothing":
        raise DataError(f"expected {given} with method smoothing alone, got method {method}; add --method smoothing")
    if any(not 0 <= size < float("inf") for size in eps):
        raise DataError(f"expected eps of 0 or more, got {list(eps)}")


def bounded(
    space: Space, out: Path, method: str, sigma: float | None, draws: int | None, seconds: float, seed: int
) -> Findings:  # fmt: skip
    """Certified accuracy at each eps by one method, beside accuracy under attack."""
    from reprogram.plot import save

    out.mkdir(parents=True, exist_ok=True)
    module = space.module.eval()
    sizes, chosen = sorted(size for size in space.eps if size > 0), None
    if not sizes:
        raise DataError(f"expected an eps above 0, got {list(space.eps)}")
    if method == AUTO:
        chosen = choice(space, out / "choice.json", seconds, seed)
        name, make = chosen.name, chosen.make
    elif method == "smoothing":
        length = sizes[-1] * (float(space.x[0].numel()) ** 0.5 if space.ball.norm == "linf" else 1.0)
        options = {"sigma": length if sigma is None else sigma, "n": draws or 10_000, "seed": seed}
        options["noise"] = "uniform" if space.ball.norm == "l1" else "gaussian"
        name, make = f"Smoothing (sigma {options['sigma']:.3g}, {options['n']} draws)", partial(Smoothing, **options)
    else:
        name, make = method, METHODS[method]
    if method == "smoothing" or (chosen and chosen.method == "Smoothing"):
        once, make = make, lambda ball: Kept(once(ball), out / "draws")
    found = certify.evaluate(
        module, space.x, space.y, {name: make}, threat=space.ball, eps=(0.0, *sizes), seed=seed, out=out / "points.json",
        attacks={"APGD": adversarial.APGD},
    )  # fmt: skip
    save(found.plot(), out / "certify.png")
    why = [chosen.explain(), ""] if chosen else []
    text = "\n".join(
        [f"Changes {space.where}, norm {space.ball.norm}.", "", *why, found.to_markdown(), "", meaning(found)]
    )
    points = [{k: v for k, v in asdict(point).items() if k != "held"} for point in found.points]
    attacked = [{k: v for k, v in asdict(p).items() if k != "broken"} for p in found.attacked.curve()]  # type: ignore[union-attr]
    facts = {"threat": space.ball.norm, "where": space.where, "n": len(space.y), "seed": seed, "method": name}
    facts |= {"choice": {"reason": chosen.reason, "trials": [asdict(t) for t in chosen.trials]} if chosen else None}
    return Findings(out, text, plain(facts | {"points": points, "attacked": attacked, "meaning": meaning(found)}))


def choice(space: Space, path: Path, seconds: float, seed: int) -> certify.Choice:
    """The choice of a run that was stopped, which the clock might make otherwise now, or a new one."""
    mark = mark_of(space.module, space.x, space.y, space.ball, space.eps, seconds, seed)
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:  # not a choice of ours
        known = {}
    if isinstance(known, dict) and known.get("mark") == mark:
        return certify.Choice.from_dict(known["choice"])
    found = certify.choose(space.module, space.x, space.y, space.ball, space.eps, seconds=seconds, seed=seed)
    with atomic_file(path) as writing:
        writing.write_text(json.dumps({"mark": mark, "choice": asdict(found)}, indent=1) + "\n")
    return found


def meaning(found: certify.CertifiedRobustness) -> str:
    """What the numbers promise."""
    point = found.points[0]
    if point.guarantee == "deterministic":
        nothing = all(not any(p.held) for p in found.points if p.eps > 0)
        vacuous = (
            " Here the bounds are vacuous: nothing is proven at any eps; take --method smoothing." if nothing else ""
        )
        return f"Certified is a proof, up to the rounding of floating point, for the model as it is.{vacuous}"
    if point.guarantee == "probabilistic":
        return (
            f"Certified holds for each input with probability {point.confidence} or more, for the randomised classifier (the "
            "model's most frequent class under noise), which has to be deployed in the model's place. The accuracy under attack "
            "is that of the model by itself, which this does not bound."
        )
    return "These are estimates; nothing is proven for any input."


def rewritten(task: Labelled, out: Path, seed: int) -> Findings:
    """The majority, or the median, over random SMILES of each molecule: the same for all SMILES of it."""
    from certify.randomised.rewriting import RewriteSmoothing
    from tasks.molecules.writings import Readings, writings

    smoothed, readings = RewriteSmoothing(writings(), seed=seed), Readings(task.model)
    facts: dict[str, Any] = {"threat": REWRITES, "n": len(task.y), "seed": seed, "method": "RewriteSmoothing"}
    if str(task.model.mapping.kind) == "classification":
        labels = torch.from_numpy(task.y).long().flatten()
        found = smoothed(readings, task.inputs, labels)
        share = found.accuracy_at(1.0)
        facts |= {"certified_accuracy": share.accuracy, "low": share.low, "high": share.high}
        facts |= {
            "confidence": found.confidence,
            "prediction": found.prediction.tolist(),
            "certified": found.certified.tolist(),
        }
        lines = [
            f"The class that most random SMILES of a molecule get, the same for every SMILES of it, is right, and shown to be that "
            f"of more than half of all such draws, for {int(found.certified.sum())} of {share.n} molecules ({share.accuracy:.3f}, 95 % interval {share.low:.3f} to "
            f"{share.high:.3f}); each statement holds with probability {found.confidence} or more.",
            "It speaks of this majority, which has to be deployed in the model's place, not of the model's answer to one text.",
        ]
    else:
        middle = smoothed.median(readings, task.inputs)
        widths = (middle.high - middle.low).double()
        facts |= {"confidence": middle.confidence, "low": middle.low.tolist(), "high": middle.high.tolist()}
        facts |= {"median": middle.median.tolist(), "width": float(widths.median())}
        lines = [
            f"The median over random SMILES of a molecule, the same for every SMILES of it, lies in an interval of median width "
            f"{float(widths.median()):.3g} and largest width {float(widths.max()):.3g} in the units of the outputs, for each of "
            f"{len(task.y)} molecules with probability {middle.confidence} or more.",
            "It speaks of the median, which has to be deployed in the model's place, not of the model's answer to one text.",
        ]
    return Findings(out, "\n\n".join(lines), plain(facts))


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
