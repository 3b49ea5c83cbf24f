"""`reprogram certify` and the choice behind it: proofs, smoothing, rewrites, and what does not fit said in one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from adversarial import Ball
from certify import CertifiedRobustness, CertifyError, Choice, choose
from certify.contract import example
from reprogram import adapt, load
from tasks.certifying import certify_file
from tasks.cli import app
from tasks.images import digits

SMILES = ["C" * n + "O" for n in range(1, 9)] + ["c1ccccc1" + "C" * n for n in range(1, 9)]


@pytest.fixture(scope="module")
def small():
    model, x, _ = example()
    return model.requires_grad_(False), x, model(x).argmax(1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Zeros and ones through a frozen image network."""
    from PIL import Image

    folder, task = tmp_path_factory.mktemp("pictures"), digits()
    rows = [i for i in range(300) if int(task.targets[i]) < 2][:30]
    images, y = [np.asarray(task.inputs[i]) for i in rows], [int(task.targets[i]) for i in rows]
    for i, (image, label) in enumerate(zip(images, y, strict=True)):
        place = folder / "data" / ["none", "one"][label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).astype(np.uint8)).save(place / f"{i}.png")
    source = load("efficientnet-lite0", size=32)
    kinds = {"kind": "classification", "program": "none", "mapping": "ridge"}
    model, _ = adapt(source, images, y, epochs=0, progress=False, **kinds)
    about = {
        "modality": "images",
        "target": ["class"],
        "kind": "classification",
        "classes": ["none", "one"],
        "name": "digits",
    }
    model.save_pretrained(folder / "model", task=about)
    return folder


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    """Lengths of molecules, as numbers and as two classes."""
    folder = tmp_path_factory.mktemp("molecules")
    y = [float(n) for n in range(1, 9)] + [float(n) + 5 for n in range(1, 9)]
    rows = zip(SMILES, y, strict=True)
    (folder / "data.csv").write_text("smiles,length,long\n" + "".join(f"{s},{v},{int(v > 6)}\n" for s, v in rows))
    for target, kind, values in (("length", "regression", y), ("long", "classification", [int(v > 6) for v in y])):
        model, _ = adapt(
            "chemnet", SMILES, values, kind=kind, program="none", mapping="ridge", epochs=0, progress=False
        )
        about = {"modality": "molecules", "target": [target], "input": "smiles", "kind": kind, "name": target}
        model.save_pretrained(folder / kind, task=about | ({"classes": ["0", "1"]} if kind == "classification" else {}))
    return folder


def test_the_tightest_that_fits_is_chosen(small):
    model, x, y = small
    found = choose(model, x, y, Ball("linf", 1.0), (0.001,))
    assert (
        found.method == "IBP" and len(found.trials) == 1 and "Chosen: IBP" in found.explain()
    )  # nothing is left to gain
    wide = choose(model, x, y, Ball("l1", 1.0), (0.0, 0.1, 0.4, 0.8))
    assert wide.method in ("CROWN-IBP", "CROWN", "AlphaCROWN", "Cascade") and {t.method for t in wide.trials} >= {
        "IBP",
        "CROWN-IBP",
    }
    best = max(trial.certified for trial in wide.trials)
    assert next(t for t in wide.trials if t.method == wide.method).certified == best > wide.trials[0].certified
    certificate = wide.make(Ball("l1", 0.02))(model, x, y)
    assert certificate.certified.any() and Choice.from_dict(json.loads(json.dumps(wide.__dict__, default=vars))) == wide


class Sine(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + 1e-3 * torch.sin(x[:, :3])


def test_what_has_no_bound_is_smoothed(small):
    model, x, y = small
    odd = Sine(model).eval()
    found = choose(odd, x, odd(x).argmax(1), Ball("l2", 1.0), (0.05,), seconds=5)
    assert found.method == "Smoothing" and "got sin" in found.explain() and "sigma" in found.name
    assert found.options["seed"] == 0 and found.options["n"] >= 500
    vacuous = choose(model, x, y, Ball("linf", 1.0), (0.4,), seconds=5)
    assert vacuous.method == "Smoothing" and "vacuous" in vacuous.reason


def test_what_cannot_be_chosen(small):
    model, x, y = small
    ball = Ball("linf", 1.0)
    with pytest.raises(CertifyError, match="an eps above 0"):
        choose(model, x, y, ball, (0.0,))
    with pytest.raises(CertifyError, match="gets right, got none"):
        choose(model, x, (y + 1) % 3, ball, (0.1,))
    with pytest.raises(CertifyError, match="more seconds"):
        choose(model, x, y, ball, (0.4,), seconds=1e-6)


@pytest.mark.slow
def test_pictures_by_the_command_line(pictures, tmp_path):
    arguments = [
        "certify", str(pictures / "model"), "--data", str(pictures / "data"), "--out", str(tmp_path), "--eps", "0", "--eps",
        "0.004", "--method", "ibp", "--rows", "4",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "| ibp |" in done.output and "bounds are vacuous" in done.output and "in front of the program" in done.output
    assert (tmp_path / "certify.png").is_file() and "under attack" in (tmp_path / "certify.md").read_text()
    found = CertifiedRobustness.from_json(tmp_path / "points.json")
    assert found.curve("ibp")[0].n == 4 and found.contradictions() == []
    again = CliRunner().invoke(app, [*arguments, "--json"])  # goes on from what is there
    facts = json.loads(again.stdout.strip().splitlines()[-1])
    assert facts == json.loads((tmp_path / "certify.json").read_text()) and facts["points"][1]["accuracy"] == 0.0


def test_rewrites_of_molecules(molecules, tmp_path):
    found = certify_file(molecules / "classification", molecules / "data.csv", tmp_path, rows=6)
    assert found.facts["n"] == 6 and 0 <= found.facts["certified_accuracy"] <= 1 and "majority" in found.text
    values = certify_file(molecules / "regression", molecules / "data.csv", tmp_path, rows=4)
    facts = json.loads((tmp_path / "certify.json").read_text())
    assert facts["width"] >= 0 and len(facts["low"]) == 4 and "median" in values.text


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ibp", "auto"])
def test_embeddings_of_molecules(molecules, tmp_path, method):
    """A network of hundreds of recurrent steps: bounds end, and what they cannot show is said."""
    arguments = [
        "certify", str(molecules / "classification"), "--data", str(molecules / "data.csv"), "--out", str(tmp_path), "--rows", "2",
        "--threat", "linf", "--eps", "0.0001", "--method", method, "--seconds", "2",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    if done.exit_code:
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    else:
        assert "of the embeddings" in done.output and (tmp_path / "certify.json").is_file()
        assert CertifiedRobustness.from_json(tmp_path / "points.json").contradictions() == []


@pytest.mark.parametrize(
    ("options", "says"),
    [({"threat": "l7"}, "a threat among rewrites, linf"), ({"threat": "linf", "eps": (0.1,)}, "a model of classes"),
     ({"method": "magic"}, "a method among auto, ibp"), ({"target": ["none"]}, "none")],
)  # fmt: skip
def test_what_does_not_fit(molecules, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        certify_file(molecules / "regression", molecules / "data.csv", tmp_path, **options)


def test_an_error_is_one_sentence(pictures, tmp_path):
    arguments = ["certify", str(pictures / "model"), "--data", str(pictures / "data"), "--out", str(tmp_path)]
    for options, says in (
        (["--threat", "rewrites"], "linf, l2, l1 for images"),
        (["--eps", "0", "--method", "ibp"], "an eps above 0"),
    ):
        done = CliRunner().invoke(app, [*arguments, *options])
        assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--method", "crown"], "neither method nor eps for rewrites"), (["--eps", "0.1"], "neither method nor eps for rewrites"),
     (["--threat", "l2", "--eps", "0.1", "--sigma", "0.1"], "sigma with method smoothing alone, got method auto"),
     (["--threat", "l2", "--eps", "0.1", "--method", "ibp", "--draws", "99"], "draws with method smoothing alone"),
     (["--threat", "l2", "--eps", "0.1", "--method", "smoothing", "--sigma", "0"], "a sigma above 0"),
     (["--threat", "l2", "--eps", "nan"], "eps of 0 or more"), (["--threat", "l2", "--eps", "-1", "--eps", "0.1"], "eps of 0 or more")],
)  # fmt: skip
def test_no_option_is_passed_over(molecules, tmp_path, options, says):
    place = [
        str(molecules / "classification"),
        "--data",
        str(molecules / "data.csv"),
        "--out",
        str(tmp_path),
        "--rows",
        "1",
    ]
    done = CliRunner().invoke(app, ["certify", *place, *options])
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1


def test_smoothing_by_the_command_goes_on(monkeypatch, tmp_path, small):
    """A stopped run has its draws in the folder of results, and comes to the numbers of one that was not stopped."""
    from certify.randomised import sampling
    from tasks import certifying
    from tasks.threatened import Space

    monkeypatch.setattr(sampling, "SECONDS", 0.0)
    model, x, y = small
    asked = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.left = model, float("inf")

        def forward(self, z):
            asked.append(len(z))
            self.left -= len(z)
            if self.left < 0:
                raise KeyboardInterrupt
            return self.model(z)

    counting = Counting().eval()
    space = Space(counting, x, y, Ball("l2", 1.0), (0.05,), "of the inputs")

    def run(place):
        return certifying.bounded(space, place, "smoothing", None, 2000, 60.0, 0)

    points = [{k: v for k, v in p.items() if k != "seconds"} for p in run(tmp_path / "whole").facts["points"]]
    cost = sum(asked)
    assert [point["eps"] for point in points] == [0.0, 0.05]  # beside the clean accuracy
    counting.left = len(x) * 1000
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    asked.clear()
    counting.left = float("inf")
    again = [{k: v for k, v in p.items() if k != "seconds"} for p in run(tmp_path / "stopped").facts["points"]]
    assert again == points and sum(asked) < 0.8 * cost
