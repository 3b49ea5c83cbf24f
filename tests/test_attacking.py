"""`reprogram attack`: rewrites of molecules, perturbed pixels, and what does not fit said in one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from adversarial.evaluate import Robustness
from reprogram import adapt, load
from tasks.attacking import attack_file
from tasks.cli import app
from tasks.images import digits

SMILES = ["C" * n + "O" for n in range(1, 12)] + ["c1ccccc1" + "C" * n for n in range(1, 12)]


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("molecules")
    y = [float(n) for n in range(1, 12)] + [float(n) + 5 for n in range(1, 12)]
    table = "smiles,length\n" + "".join(f"{s},{v}\n" for s, v in zip(SMILES, y, strict=True))
    (folder / "data.csv").write_text(table)
    model, _ = adapt("chemnet", SMILES, y, program="none", mapping="ridge", epochs=0, progress=False)
    about = {"modality": "molecules", "target": ["length"], "input": "smiles", "kind": "regression", "name": "length"}
    model.save_pretrained(folder / "model", task=about)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    folder, task = tmp_path_factory.mktemp("pictures"), digits()
    rows = [i for i in range(300) if int(task.targets[i]) < 2][:30]
    images, y = [np.asarray(task.inputs[i]) for i in rows], [int(task.targets[i]) for i in rows]
    for i, (image, label) in enumerate(zip(images, y, strict=True)):
        place = folder / "data" / ["none", "one"][label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).astype(np.uint8)).save(place / f"{i}.png")
    source = load("efficientnet-lite0", size=32)
    model, _ = adapt(
        source, images, y, kind="classification", program="none", mapping="ridge", epochs=0, progress=False
    )
    about = {
        "modality": "images",
        "target": ["class"],
        "kind": "classification",
        "classes": ["none", "one"],
        "name": "digits",
    }
    model.save_pretrained(folder / "model", task=about)
    return folder


def test_rewrites_of_molecules(molecules, tmp_path):
    found = attack_file(molecules / "model", molecules / "data.csv", tmp_path)
    facts = json.loads((tmp_path / "attack.json").read_text())
    everything = facts["rewrites_by_kind"]["all"]
    assert facts == json.loads(json.dumps(found.facts)) and facts["n"] == len(SMILES) and facts["rewrites"] > 50
    assert everything["error_worst"]["value"] >= everything["error"]["value"] and everything["change"]["value"] > 0
    assert "| all |" in (tmp_path / "attack.md").read_text()


def test_pixels_by_the_command_line(pictures, tmp_path):
    arguments = [
        "attack", str(pictures / "model"), "--data", str(pictures / "data"), "--out", str(tmp_path), "--eps", "0", "--eps",
        "0.05", "--attack", "fgsm", "--attack", "pgd", "--rows", "12",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "| pgd |" in done.output and (tmp_path / "attack.png").is_file()
    curve = Robustness.from_json(tmp_path / "points.json")
    assert curve.curve("pgd")[1].accuracy <= curve.curve("pgd")[0].accuracy and curve.curve("pgd")[0].n == 12
    again = CliRunner().invoke(app, [*arguments, "--json"])
    facts = json.loads(again.stdout.strip().splitlines()[-1])
    assert facts["points"][-1]["attack"] == "worst case"


@pytest.mark.parametrize(
    ("options", "says"),
    [({"threat": "l7"}, "a threat among rewrites, linf"), ({"threat": "linf", "eps": (0.1,)}, "a model of classes"),
     ({"target": ["none"]}, "none")],
)  # fmt: skip
def test_what_does_not_fit(molecules, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        attack_file(molecules / "model", molecules / "data.csv", tmp_path, **options)


def test_images_know_no_rewrites(pictures, tmp_path):
    with pytest.raises(ValueError, match="linf, l2, l1 for images"):
        attack_file(pictures / "model", pictures / "data", tmp_path, threat="rewrites")
    with pytest.raises(ValueError, match="attacks among fgsm"):
        attack_file(pictures / "model", pictures / "data", tmp_path, attacks=("magic",))
