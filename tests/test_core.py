"""The laws of the core: frozen means frozen, save → load and spec → build are identities, resume is exact."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import reprogram as rp
from reprogram.batching import bucketed_batches
from reprogram.config import build, to_spec
from reprogram.parts import build_program

ROOT = Path(__file__).parents[1]
TOKENS = ["C", "N", "O", "c", "n", "F"]
PROGRAMS = {
    "identity": lambda: rp.Identity(),
    "free": lambda: rp.FreeEmbeddings(TOKENS, split="characters"),
    "dense": lambda: rp.Dictionary(TOKENS, sparsity=None, atoms=20, split="characters"),
    "sparse": lambda: rp.Dictionary(TOKENS, sparsity=3, atoms=20, split="characters"),
    "prompt": lambda: rp.SoftPrompt(prompt_length=3),
    "lora": lambda: rp.programs.LowRank(rp.FreeEmbeddings(TOKENS, split="characters"), rank=2),
}
MAPPINGS = {
    "linear": lambda kind, t: rp.LinearMap(8, t, kind=kind),
    "ridge": lambda kind, t: rp.LinearMap(8, t, kind=kind, ridge=True),
    "gp": lambda kind, t: rp.GaussianProcess(8, t, kind=kind),
    "stack": lambda kind, t: rp.Stack(
        [rp.GaussianProcess(8, t, kind=kind, kernels=("linear",)), rp.LinearMap(8, t, kind=kind, ridge=True)], folds=3
    ),
}


def targets(kind, y):
    y = np.asarray(y)
    if kind == "regression":
        return y
    label = (y > np.median(y)).astype(int)
    if kind == "classification":
        return label
    two = np.stack([label, 1 - label], 1).astype(float)
    two[::5, 1] = np.nan
    return two


def snapshot(source):
    return {k: v.clone() for k, v in source.network.state_dict().items()}


def compose(source, program, mapping, kind="regression", outputs=1):
    return rp.Reprogrammed(PROGRAMS[program](), source, MAPPINGS[mapping](kind, outputs))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("loss", ["supervised", "evidence"])
def test_frozen_means_frozen_and_training_helps(tiny_source, toy, program, loss):
    texts, y = toy
    before = snapshot(tiny_source)
    model = compose(tiny_source, program, "gp" if loss == "evidence" else "linear")
    history = rp.fit(model, {"train": (texts, y)}, loss=getattr(rp, loss), epochs=12, progress=False)
    assert all(torch.equal(before[k], v) for k, v in snapshot(tiny_source).items())
    assert not tiny_source.training and not any(p.requires_grad for p in tiny_source.parameters())
    assert history.column("train_loss")[-1] < history.column("train_loss")[0]


@pytest.mark.parametrize("kind, outputs", [("regression", 1), ("classification", 2), ("multilabel", 2)])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_save_and_load_is_identity(tiny_source, toy, tmp_path, mapping, kind, outputs):
    texts, y = toy
    model = compose(tiny_source, "free", mapping, kind, outputs)
    trained = mapping in ("linear", "gp")
    loss = rp.evidence if mapping == "gp" else rp.supervised
    rp.fit(model, {"train": (texts, targets(kind, y))}, loss=loss, epochs=2 if trained else 0, progress=False)
    model.save_pretrained(tmp_path / "a")
    again = rp.Reprogrammed.from_pretrained(tmp_path / "a", source=tiny_source)
    p = rp.predict(model, texts)
    assert np.array_equal(p, rp.predict(again, texts))
    assert p.shape == (60, outputs) and np.isfinite(p).all()
    if kind == "classification":
        assert np.allclose(p.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_spec_and_build_are_inverse(program, mapping):
    for thing in (PROGRAMS[program](), MAPPINGS[mapping]("regression", 2)):
        spec = to_spec(thing)
        assert to_spec(build(json.loads(json.dumps(spec)))) == spec


def test_build_refuses_foreign_code():
    foreign = ({"_target_": "os.system", "command": "true"}, {"_target_": "reprogram.config.importlib"})
    own = ({"_target_": "reprogram.model.download", "repo_id": "a/b"}, {"_target_": "reprogram.files.umask"})
    for bad in (*foreign, *own):
        with pytest.raises(rp.DataError, match="expected"):
            build(bad)
    with pytest.raises(rp.DataError, match="unknown"):
        build({"_target_": "reprogram.mapping.LinearMap", "width": 3, "depth": 2})
    with pytest.raises(rp.DataError, match="unknown"):
        build({"_target_": "reprogram.sources.load", "name_or_module": "a/b", "download": True})


def test_targets_are_in_the_users_units(tiny_source, toy):
    texts, y = toy
    for scale, shift in ((1.0, 0.0), (1000.0, -5e4)):
        model = compose(tiny_source, "identity", "gp")
        rp.fit(model, {"train": (texts, np.asarray(y) * scale + shift)}, epochs=0)
        p = (rp.predict(model, texts)[:, 0] - shift) / scale
        assert np.corrcoef(p, y)[0, 1] > 0.8 and abs(p.mean() - np.mean(y)) < 0.3


def test_sparsity_is_kept_during_training(tiny_source, toy):
    texts, y = toy
    model = compose(tiny_source, "sparse", "linear")
    assert (model.program.codes != 0).sum(1).max() <= 3
    rp.fit(model, {"train": (texts, y)}, epochs=5, progress=False)
    assert (model.program.codes != 0).sum(1).max() <= 3


def test_free_embeddings_start_where_the_source_is(tiny_source):
    """Tokens the source knows start at its own rows, so before training the native encoding is reproduced exactly."""
    texts = ["CNO", "cnoCC", "N"]
    program = rp.FreeEmbeddings(list("CNOcno"), split="characters")
    model = rp.Reprogrammed(program, tiny_source, rp.LinearMap(8))
    native = rp.Reprogrammed(rp.Identity(), tiny_source, rp.LinearMap(8))
    a = model.features(model.collate(model.encode(texts)))
    b = native.features(native.collate(native.encode(texts)))
    assert torch.allclose(a, b, atol=1e-6)
    dense = rp.Reprogrammed(
        rp.Dictionary(list("CNOcno"), sparsity=None, atoms=24, split="characters"), tiny_source, rp.LinearMap(8)
    )
    assert torch.allclose(dense.features(dense.collate(dense.encode(texts))), b, atol=1e-4)


def test_padding_does_not_change_a_row(tiny_source):
    for program in PROGRAMS:
        model = compose(tiny_source, program, "linear")
        alone = model.features(model.collate(model.encode(["CN"])))
        together = model.features(model.collate(model.encode(["CN", "CNOCNOCNOCNO"])))[:1]
        assert torch.allclose(alone, together, atol=1e-6), program


@pytest.mark.parametrize("n, size", [(1, 4), (17, 4), (100, 32), (1000, 7)])
def test_batches_hold_every_row_once(n, size):
    lengths = torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    batches = bucketed_batches(lengths, size, seed=1, epoch=2)
    assert sorted(i for b in batches for i in b) == list(range(n))
    assert batches == bucketed_batches(lengths, size, seed=1, epoch=2)
    assert max(map(len, batches)) <= size
    others = bucketed_batches(lengths, size, seed=1, epoch=3)
    assert n < size or {frozenset(b) for b in batches} != {frozenset(b) for b in others}  # batch mates change
    waste = sum(max(lengths[i] for i in b) * len(b) for b in batches) / sum(lengths)
    assert waste < 1.35 or n < 500


def test_validation_chooses_the_epoch_and_stops_early(tiny_source, toy):
    texts, y = toy
    noise = np.random.default_rng(0).normal(size=20)
    model = compose(tiny_source, "free", "linear")
    history = rp.fit(
        model, {"train": (texts[:40], y[:40]), "validation": (texts[40:], noise)}, epochs=60, patience=3, progress=False
    )
    losses = history.column("validation_loss")
    assert len(losses) < 60 and history.stopped and losses[history.best_epoch] == min(losses)


def test_same_seed_same_result(tiny_source, toy):
    texts, y = toy
    runs = []
    for seed in (0, 0, 1):
        model = compose(tiny_source, "free", "linear")
        rp.fit(model, {"train": (texts, y)}, epochs=3, seed=seed, progress=False)
        runs.append(rp.predict(model, texts))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_identity_features_are_computed_once(tiny_source, toy):
    texts, y = toy
    calls = []
    tiny_source.network.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    rp.fit(compose(tiny_source, "identity", "linear"), {"train": (texts, y)}, epochs=10, progress=False)
    assert sum(calls) == len(texts)


def test_one_forward_and_one_backward_per_step(tiny_source, toy):
    """Counted in rows, because a large batch of texts of different lengths goes through in parts."""
    texts, y = toy
    rows = {"forward": 0, "backward": 0}

    def count(what, tensor):
        rows[what] += len(tensor)

    tiny_source.network.mix.register_forward_hook(lambda module, args, output: count("forward", output))
    tiny_source.network.mix.register_full_backward_hook(lambda module, into, out: count("backward", out[0]))
    epochs = 5
    rp.fit(compose(tiny_source, "free", "linear"), {"train": (texts, y)}, epochs=epochs, batch_size=30, progress=False)
    assert rows["backward"] == epochs * len(texts)
    assert rows["forward"] == (epochs + 1) * len(
        texts
    )  # once before, to standardise; a trained map needs no pass after


def test_missing_labels_are_masked(tiny_source, toy):
    """A label that is never observed leaves the loss finite, and unknown entries do not move anything."""
    texts, y = toy
    labels = targets("multilabel", y)
    other = labels.copy()
    assert np.isnan(other[:, 1]).any()
    for mapping in ("linear", "gp", "ridge"):
        model = compose(tiny_source, "identity", mapping, "multilabel", 2)
        rp.fit(model, {"train": (texts, labels)}, epochs=0)
        assert np.isfinite(rp.predict(model, texts)).all()


def test_side_by_side_is_concatenation(tiny_source, toy):
    texts, y = toy
    twin = tiny_source.randomised(3)
    both = rp.SideBySide([tiny_source, twin])
    program = rp.Parallel([rp.FreeEmbeddings(TOKENS, split="characters"), rp.Identity()])
    model = rp.Reprogrammed(program, both, rp.GaussianProcess(both.width, columns=both.columns))
    rp.fit(model, {"train": (texts, y)}, loss=rp.evidence, epochs=3, progress=False)
    features = model.features(model.collate(model.encode(texts[:4])))
    single = rp.Reprogrammed(program.programs[0], tiny_source, rp.LinearMap(8))
    other = rp.Reprogrammed(rp.Identity(), twin, rp.LinearMap(8))
    parts = [m.features(m.collate(m.encode(texts[:4]))) for m in (single, other)]
    assert torch.allclose(features, torch.cat(parts, 1), atol=1e-6)


RESUME = """
import sys, torch
sys.path.insert(0, {root!r}); sys.path.insert(0, {root!r} + "/tests")
torch.set_num_threads(1)
import conftest, reprogram as rp, time
source = conftest.tiny_source.__wrapped__() if hasattr(conftest.tiny_source, "__wrapped__") else conftest.tiny_source.__pytest_wrapped__.obj()
texts, y = conftest.toy.__wrapped__() if hasattr(conftest.toy, "__wrapped__") else conftest.toy.__pytest_wrapped__.obj()
model = rp.Reprogrammed(rp.FreeEmbeddings({tokens!r}, split="characters"), source, rp.LinearMap(8))
slow = {slow}
def loss(m, x, y):
    time.sleep(slow)
    return rp.supervised(m, x, y)
rp.fit(model, {{"train": (texts[:50], y[:50]), "validation": (texts[50:], y[50:])}}, loss=loss, epochs=6, batch_size=8,
       checkpoint_dir={folder!r}, checkpoint_every=1, progress=False)
torch.save(model.learned_state(), {out!r})
"""


@pytest.mark.parametrize("delay", [0.35, 0.9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, delay):
    """SIGKILL somewhere, start again: the same final weights, bit for bit."""

    def run(folder, out, slow, kill_after=None):
        code = RESUME.format(
            root=str(ROOT), tokens=TOKENS, slow=slow, folder=str(tmp_path / folder), out=str(tmp_path / out)
        )
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        if kill_after is not None:
            deadline = time.time() + 60
            while not (tmp_path / folder / "checkpoint.pt").exists() and time.time() < deadline:
                time.sleep(0.02)
            time.sleep(kill_after)
            os.kill(process.pid, signal.SIGKILL)
        _, error = process.communicate(timeout=120)
        assert kill_after is not None or process.returncode == 0, error.decode()[-2000:]

    run("whole", "whole.pt", 0)
    run("cut", "cut.pt", 0.05, kill_after=delay)
    assert not (tmp_path / "cut.pt").exists(), "the run ended before it was killed"
    run("cut", "cut.pt", 0)
    a, b = torch.load(tmp_path / "whole.pt", weights_only=True), torch.load(tmp_path / "cut.pt", weights_only=True)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_checkpoint_of_another_run_is_refused(tiny_source, toy, tmp_path):
    texts, y = toy
    rp.fit(
        compose(tiny_source, "free", "linear"), {"train": (texts, y)}, epochs=1, checkpoint_dir=tmp_path, progress=False
    )
    with pytest.raises(rp.DataError, match="remove"):
        rp.fit(
            compose(tiny_source, "dense", "linear"),
            {"train": (texts, y)},
            epochs=1,
            checkpoint_dir=tmp_path,
            progress=False,
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda texts, y: {"data": {"train": (texts, [-v for v in y])}},
        lambda texts, y: {"data": {"train": ([text[::-1] + "C" for text in texts], y)}},
        lambda texts, y: {"optimizer": rp.adam(program=0.5)},
        lambda texts, y: {"optimizer": rp.momentum()},
        lambda texts, y: {"loss": lambda model, x, y: rp.supervised(model, x, y) * 2},
        lambda texts, y: {"batch_size": 16},
    ],
    ids=["targets", "rows", "rate", "optimizer", "loss", "batches"],
)
def test_checkpoint_of_a_changed_run_is_refused(tiny_source, toy, tmp_path, change):
    options = {"epochs": 1, "checkpoint_dir": tmp_path, "progress": False, "data": {"train": toy}}
    rp.fit(compose(tiny_source, "free", "linear"), **options)
    with pytest.raises(rp.DataError, match="remove"):
        rp.fit(compose(tiny_source, "free", "linear"), **options | change(*toy))
    again = compose(tiny_source, "free", "linear")
    assert len(rp.fit(again, **options).epochs) == 1


REFUSED = {
    "kind": ({"kind": "binary"}, "kind"),
    "length": ({"y": [1.0] * 10}, "one target per input"),
    "infinite": ({"y": [float("inf")] * 30}, "row 0"),
    "text": ({"y": ["high"] * 30}, "number classes"),
    "fraction": ({"y": [0.5] * 30, "kind": "classification"}, "class indices"),
    "one class": ({"y": [1] * 30, "kind": "classification"}, "two classes"),
    "empty column": ({"y": [[1.0, float("nan")]] * 30, "kind": "multilabel"}, "column 1"),
    "signs": ({"y": [[-1.0]] * 30, "kind": "multilabel"}, "labels 0 and 1"),
    "outputs": ({"outputs": 3}, "target columns"),
    "one string": ({"inputs": "C" * 30}, "a list of inputs"),
    "auto with a map": ({"source": "auto", "mapping": "ridge"}, "name a source"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_adapt_refuses_targets_that_do_not_fit(tiny_source, toy, name):
    changed, words = REFUSED[name]
    texts, y = toy
    given = {"source": tiny_source, "inputs": texts[:30], "y": y[:30], "kind": "regression"} | changed
    with pytest.raises(rp.DataError, match=words):
        rp.adapt(given.pop("source"), given.pop("inputs"), given.pop("y"), progress=False, **given)


def test_options_of_a_source_come_back_with_the_artefact(tmp_path):
    smiles = ["CCO", "CCN", "CCC", "c1ccccc1", "CC(=O)O", "CCCl"] * 2
    model, _ = rp.adapt(
        rp.load("morgan", radius=3), smiles, np.arange(12.0), program="none", mapping="ridge", progress=False
    )
    model.save_pretrained(tmp_path / "model")
    again = rp.Reprogrammed.from_pretrained(tmp_path / "model")
    assert np.array_equal(rp.predict(again, smiles), rp.predict(model, smiles))
    assert rp.load(again.source) is again.source and again.source.spec["radius"] == 3
    with pytest.raises(ValueError, match="no revision"):
        rp.load("morgan", revision="v9")


def test_damaged_artefacts_are_refused(tiny_source, toy, tmp_path):
    texts, y = toy
    model = compose(tiny_source, "free", "linear")
    rp.fit(model, {"train": (texts, y)}, epochs=1, progress=False)

    def load(change, source=tiny_source):
        folder = model.save_pretrained(tmp_path / "a")
        change(folder)
        with pytest.raises(rp.DataError, match="expected") as error:
            rp.Reprogrammed.from_pretrained(folder, source=source)
        assert "\n" not in str(error.value)

    def edit(key, value):
        def change(folder):
            config = json.loads((folder / "config.json").read_text())
            config[key] = value
            (folder / "config.json").write_text(json.dumps(config))

        return change

    weights = "model.safetensors"
    load(lambda f: (f / weights).write_bytes((f / weights).read_bytes()[:-9]))
    load(lambda f: (f / weights).unlink())
    load(lambda f: (f / "config.json").write_text("{"))
    load(edit("format", 99))
    load(edit("program", {"_target_": "os.system", "command": "true"}))
    load(edit("mapping", to_spec(rp.LinearMap(9))))
    load(lambda f: None, source=tiny_source.randomised(1))
    load(lambda f: None, source=None)


def test_inside_the_transformers_trainer(tiny_source, toy, tmp_path):
    from transformers import Trainer, TrainingArguments

    texts, y = toy
    both = rp.SideBySide([tiny_source, tiny_source])
    programs = rp.Parallel([rp.Identity(), PROGRAMS["free"]()])
    model = rp.Reprogrammed(programs, both, rp.LinearMap(16))
    rows = rp.trainer_rows(model, texts, y)
    before = snapshot(tiny_source)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=8, per_device_train_batch_size=10, learning_rate=3e-2, use_cpu=True,
        report_to=[], save_strategy="epoch", save_total_limit=1, logging_strategy="no", remove_unused_columns=False,
        disable_tqdm=True,
    )  # fmt: skip
    collator = rp.trainer_collator(model)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator)
    start = trainer.evaluate()["eval_loss"]
    assert start < 1.5  # the map starts at the mean, in the units of the targets
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start
    assert all(torch.equal(before[k], v) for k, v in snapshot(tiny_source).items())
    (saved,) = tmp_path.glob("checkpoint-*/model.safetensors")
    fresh = rp.Reprogrammed(
        rp.Parallel([rp.Identity(), PROGRAMS["free"]()]), rp.SideBySide([tiny_source, tiny_source]), rp.LinearMap(16)
    )
    state = load_file(saved)
    assert not any("source" in name for name in state)
    fresh.load_state_dict(state)
    assert np.array_equal(rp.predict(fresh, texts), rp.predict(model, texts))
    with pytest.raises(RuntimeError, match=r"mapping\.center"):
        fresh.load_state_dict({k: v for k, v in state.items() if k != "mapping.center"})


def test_trackers_are_started_where_they_were_asked_for(tiny_source, toy, tmp_path):
    from accelerate import Accelerator

    pytest.importorskip("tensorboard")
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    texts, y = toy
    rp.fit(compose(tiny_source, "free", "linear"), {"train": (texts, y)}, epochs=2, accelerator=accelerator)
    accelerator.end_training()
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_wrong_calls_are_one_sentence(tiny_source, toy):
    texts, y = toy
    model = compose(tiny_source, "free", "linear")
    with pytest.raises(rp.DataError, match="got the text 'CNO'"):
        model("CNO")
    with pytest.raises(rp.DataError, match="classes below 2"):
        rp.fit(rp.Reprogrammed(rp.Identity(), tiny_source, rp.LinearMap(8, 2, kind="classification")),
               {"train": (texts, [0, 1, 2] * 20)})  # fmt: skip
    wide = rp.load(tiny_source.network, codec=tiny_source.codec, takes="tokens", width=7, name="wide")
    with pytest.raises(ValueError, match="expected 7 values per input"):
        rp.adapt(wide, texts, y, program="none", mapping="ridge")
    with pytest.raises(rp.DataError, match="at least two rows"):
        rp.adapt(tiny_source, texts[:25], list(range(25)), kind="classification")


def test_a_spec_may_hold_numpy_numbers():
    mapping = rp.LinearMap(np.int64(8), np.int64(2), kind="classification")
    assert json.dumps(to_spec({"map": mapping, "value": np.float32(0.5)}))
    assert build(to_spec(mapping)).outputs == 2


def test_a_dictionary_keeps_the_rows_of_its_own_tokens():
    table = torch.randn(3000, 6)
    program = rp.Dictionary(["a", "b"], sparsity=None, atoms=4, split="characters")
    program.start(table, [2990, 2991])
    assert torch.equal(program.table()[1:].detach().round(decimals=4), table[[2990, 2991]].round(decimals=4))


def test_predicting_in_pieces_changes_nothing(tiny_source, toy, monkeypatch):
    import reprogram.train

    texts, y = toy
    model, _ = rp.adapt(tiny_source, texts, y, epochs=1, progress=False)
    whole = rp.predict(model, texts)
    monkeypatch.setattr(reprogram.train, "CHUNK", 7)
    assert np.allclose(rp.predict(model, texts), whole, atol=1e-5)


def test_a_stream_is_predicted_while_it_is_read(tiny_source, toy):
    from itertools import count, islice

    import datasets

    texts, y = toy
    model, _ = rp.adapt(tiny_source, texts, y, epochs=1, progress=False)
    whole, read = rp.predict(model, texts), []

    def endless():
        for i in count():
            read.append(i)
            yield texts[i % len(texts)]

    found = []
    for row in islice(rp.predict_stream(model.train(), endless(), batch_size=7), 50):
        found.append(row)
        assert len(read) <= (len(found) + 6) // 7 * 7  # never more than the batch at hand
    assert np.allclose(np.stack(found), whole[:50], atol=1e-5) and not model.program.training
    rows = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()
    again = list(rp.predict_stream(model, (row["text"] for row in rows)))
    assert np.allclose(np.stack(again), whole, atol=1e-5)
    assert list(rp.predict_stream(model, [])) == []
    with pytest.raises(rp.DataError, match="batch_size of at least 1, got 0"):
        rp.predict_stream(model, texts, batch_size=0)
    with pytest.raises(rp.DataError, match="got the text"):
        rp.predict_stream(model, "CCO")


def test_unwritable_and_full_disk_leave_nothing(tiny_source, toy, tmp_path, monkeypatch):
    model = compose(tiny_source, "free", "linear")
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(rp.DataError, match=r"writable|folder"):
        model.save_pretrained(blocker / "inside")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(rp.DataError, match="No space"):
        model.save_pretrained(tmp_path / "art")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_filled_from_within(tmp_path):
    from reprogram.files import atomic_folder

    for existed in (False, True):  # a folder that is there may be a disk of its own
        with atomic_folder(tmp_path / "out") as work:
            assert work.parent == (tmp_path / "out" if existed else tmp_path)
            (work / "file").write_text("x")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["file"]


def test_another_revision_of_a_source_is_a_warning(tmp_path):
    texts = ["C" * n for n in range(1, 30)]
    model, _ = rp.adapt("descriptors", texts, range(29), program="none", mapping="ridge", progress=False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["source"]["revision"] = "rdkit 1999.1"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"at rdkit 1999\.1"):
        rp.Reprogrammed.from_pretrained(tmp_path)


def test_wrong_program_for_a_source_is_one_sentence(tiny_source):
    with pytest.raises(ValueError, match="graphs"):
        rp.Reprogrammed(rp.GraphDelta(), tiny_source, rp.LinearMap(8))
    with pytest.raises(rp.DataError, match="program"):
        build_program("quantum", tiny_source, ["C"], 0)


def test_models_can_be_copied(tiny_source, toy):
    texts, y = toy
    model = compose(tiny_source, "free", "gp")
    rp.fit(model, {"train": (texts, y)}, loss=rp.evidence, epochs=2, progress=False)
    twin = copy.deepcopy(model)
    assert np.array_equal(rp.predict(model, texts), rp.predict(twin, texts))
