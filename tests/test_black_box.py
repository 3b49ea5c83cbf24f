"""Black boxes: what is asked is counted, remembered, limited and repeated; a model behind HTTP with every fault of one."""

import copy
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from reprogram import Reprogrammed
from reprogram.errors import BudgetError, DataError, Unanswered
from reprogram.gradient import RandomGradientFree
from reprogram.label_map import LabelMap
from reprogram.objectives import adam
from reprogram.programs import Pad
from reprogram.sources import BlackBox, Source
from reprogram.sources.images import ImageCodec
from reprogram.sources.ledger import Ledger
from reprogram.sources.remote import Endpoint
from reprogram.train import fit, refresh


class Counting:
    """Softmax of a fixed linear map, counting the rows it saw and failing where told to."""

    def __init__(self, failures=()):
        self.seen, self.rows, self.failures = 0, [], list(failures)

    def __call__(self, x):
        if self.failures and (error := self.failures.pop(0)) is not None:
            raise error
        self.seen += len(x)
        self.rows += [row.tobytes() for row in x]
        logits = x.reshape(len(x), -1)[:, :4]
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def ask(box, *rows):
    return box(pixels=torch.tensor([[float(r), 1.0, 2.0, 3.0] for r in rows]))


def test_answers_are_log_probabilities_in_the_order_of_the_rows():
    box, function = BlackBox(Counting()), Counting()
    x = torch.randn(5, 4)
    expected = torch.from_numpy(function(x.numpy())).log()
    torch.testing.assert_close(box(pixels=x), expected)
    torch.testing.assert_close(box(pixels=x.flip(0)), expected.flip(0))


def test_nothing_is_asked_twice(tmp_path):
    function = Counting()
    box = BlackBox(function, cache=tmp_path / "ledger.db", price=0.01)
    first = ask(box, 1, 2, 2, 3, 1)
    again = ask(box, 3, 1, 4)
    assert function.seen == box.queries == 4
    assert len(set(function.rows)) == 4
    assert box.ledger.hits == 4
    assert box.ledger.cost == pytest.approx(0.04)
    torch.testing.assert_close(first[3], again[0])
    later = BlackBox(Counting([AssertionError("asked again")]), cache=tmp_path / "ledger.db", price=0.01)
    torch.testing.assert_close(ask(later, 4, 2), torch.stack([again[2], first[1]]))
    assert later.queries == 4


def test_a_budget_is_never_exceeded(tmp_path):
    function = Counting()
    box = BlackBox(function, budget=5, cache=tmp_path / "ledger.db")
    ask(box, 1, 2, 3)
    with pytest.raises(BudgetError, match="room for 3 more queries, got 2 left of the budget of 5"):
        ask(box, 4, 5, 6)
    assert function.seen == box.queries == 3
    ask(box, 1, 2, 3, 4, 5)  # two new ones
    again = BlackBox(function, budget=5, cache=tmp_path / "ledger.db")
    with pytest.raises(BudgetError):
        ask(again, 6)
    assert function.seen == 5


def test_failures_are_repeated_after_a_growing_pause(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    failures = [TimeoutError("slow"), ConnectionResetError("gone"), Unanswered("busy", billed=False, after=9.0), None]
    function = Counting(failures)
    box = BlackBox(function, wait=1.0)
    ask(box, 1, 2)
    assert pauses == [1.0, 2.0, 9.0]
    assert function.seen == 2
    assert box.ledger.failures == 3
    assert box.queries == 6  # two that may have been worked on, none that was refused, and the answer


def test_giving_up_is_one_sentence_and_keeps_what_is_known(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    box = BlackBox(Counting([None, *[TimeoutError("slow")] * 3]), retries=2)
    ask(box, 1)
    with pytest.raises(DataError, match="got none in 3 calls \\(slow\\)"):
        ask(box, 2)
    ask(box, 1)
    assert box.queries == 1 + 3
    assert box.ledger.hits == 1


@pytest.mark.parametrize(
    "answer, message",
    [
        (np.full((2, 3), np.nan), "NaN or infinity for row 0"),
        (np.ones((3, 3)), r"shape \(2, width\)"),
        (np.ones(2), r"shape \(2, width\)"),
        (np.array([[0.5, -3.0], [0.1, 0.9]]), "say what it returns: logits or features"),
        ([["a", "b"], ["c", "d"]], "expected numbers"),
    ],
)
def test_wrong_answers_are_one_sentence_and_not_kept(answer, message):
    box = BlackBox(lambda x: answer)
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            ask(box, 1, 2)
    assert box.queries == 4
    assert box.ledger.hits == 0


def test_copies_and_pickles_keep_their_memory():
    box = BlackBox(Counting())
    ask(box, 1, 2)
    for twin in (copy.deepcopy(box), pickle.loads(pickle.dumps(box))):
        twin.function = Counting([AssertionError("asked again")])
        ask(twin, 2, 1)
        assert (twin.queries, twin.ledger.hits) == (2, 2)


def test_a_file_that_is_no_ledger_is_one_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("no database at all, " * 100)
    with pytest.raises(DataError, match="expected a ledger in"):
        Ledger(tmp_path / "notes.txt").spend(1)


SPEND = """
import sys
from reprogram.errors import BudgetError
from reprogram.sources.images import ImageCodec
from reprogram.sources.ledger import Ledger
ledger = Ledger(sys.argv[1], budget=150)
try:
    for _ in range(100):
        ledger.spend(1)
except BudgetError:
    pass
"""


def test_processes_share_one_budget(tmp_path):
    command = [sys.executable, "-c", SPEND, str(tmp_path / "ledger.db")]
    workers = [subprocess.Popen(command) for _ in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    assert Ledger(tmp_path / "ledger.db").queries == 150


def as_source(function, like, **options):
    return Source(
        BlackBox(function, **options), like.codec, name="box", takes="image", width=like.width, returns="logits",
        differentiable=False,
    )  # fmt: skip


def reprogrammed(source):
    return Reprogrammed(Pad(image_size=16), source, LabelMap(8, 3, method="frequency"))


def train(model, pictures, **options):
    x, y = pictures
    return fit(
        model, {"train": (x, y)}, gradient=RandomGradientFree(directions=2), optimizer=adam(program=0.05), batch_size=12,
        progress=False, **options,
    )  # fmt: skip


def locally(source):
    return lambda x: source.network(torch.from_numpy(x)).softmax(1).detach().numpy()


def test_training_ends_where_the_budget_does(pixel_source, pictures):
    source = as_source(locally(pixel_source), pixel_source, budget=500)
    model = reprogrammed(source)
    history = train(model, pictures, epochs=100)
    assert "no budget left" in history.stopped
    assert 1 <= len(history.epochs) < 100
    assert source.network.queries <= 500
    assert all(p.isfinite().all() for _, p in model.trainable())


def test_a_budget_that_ends_in_a_hook_or_before_a_resumed_run_keeps_what_was_learned(pixel_source, pictures, tmp_path):
    options = {"cache": tmp_path / "ledger.db", "budget": 400}
    found = []
    for _ in range(2):  # the second run starts with nothing left
        source = as_source(locally(pixel_source), pixel_source, **options)
        model = Reprogrammed(Pad(image_size=16), source, LabelMap(8, 3, method="iterative"))
        history = train(
            model, pictures, epochs=100, hooks=[refresh], checkpoint_dir=tmp_path / "run", checkpoint_every=1
        )
        assert "no budget left" in history.stopped
        assert len(history.epochs) >= 1
        found.append(len(history.epochs))
    assert source.network.queries <= 400
    assert found[0] == found[1] or found[0] == found[1] + 1  # an epoch cut off in its hook is not in the checkpoint


def test_a_budget_too_small_for_one_step_is_one_sentence(pixel_source, pictures):
    with pytest.raises(BudgetError, match="of the budget of 10"):
        train(reprogrammed(as_source(locally(pixel_source), pixel_source, budget=10)), pictures, epochs=1)
    with pytest.raises(BudgetError, match="of the budget of 60"):  # enough for the label map, not for a step
        train(reprogrammed(as_source(locally(pixel_source), pixel_source, budget=60)), pictures, epochs=1)


@pytest.fixture
def remote():
    """Start a server in another process, plain or faulty; `stop()` gives the number of inputs it answered."""
    started = []

    def start(kind="plain"):
        script = Path(__file__).with_name("serving.py")
        process = subprocess.Popen(
            [sys.executable, str(script), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)

        def stop():
            process.stdin.write("stop\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        return process.stdout.readline().strip(), stop

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("format", ["json", "npy"])
def test_a_remote_model_answers_like_the_local_one(pixel_source, remote, format):
    url, stop = remote()
    box = as_source(Endpoint(url, format=format), pixel_source)
    pixels = torch.rand(6, 3, 32, 32)
    torch.testing.assert_close(box({"pixels": pixels}).softmax(1), pixel_source({"pixels": pixels}).softmax(1))
    assert stop() == box.network.queries == 6


def test_training_over_a_faulty_line_counts_as_the_service_does(pixel_source, pictures, remote, tmp_path):
    url, stop = remote("faulty")
    options = {"cache": tmp_path / "ledger.db", "wait": 0.01}
    source = as_source(Endpoint(url, format="npy", timeout=0.5), pixel_source, **options)
    model = reprogrammed(source)
    train(model, pictures, epochs=3)
    local = reprogrammed(as_source(locally(pixel_source), pixel_source))
    train(local, pictures, epochs=3)
    assert stop() == source.network.queries
    assert source.network.ledger.failures >= 4
    torch.testing.assert_close(model.program.frame, local.program.frame, rtol=1e-3, atol=1e-4)


def test_addresses_that_never_answer_are_one_sentence(pixel_source, remote):
    with pytest.raises(DataError, match="http://"):
        Endpoint("localhost:80")
    nobody = as_source(Endpoint("http://127.0.0.1:9/"), pixel_source, retries=1, wait=0.0)
    with pytest.raises(DataError, match="no connection"):
        nobody({"pixels": torch.rand(2, 3, 32, 32)})
    assert nobody.network.queries == 0
    url, _ = remote()
    wrong = as_source(Endpoint(url), pixel_source)
    with pytest.raises(DataError, match="got 400"):
        wrong({"pixels": torch.rand(2, 3, 5, 5)})


@pytest.mark.parametrize("name", ["rgf", "spsa", "spsa-gc", "coordinate", "cma"])
def test_adapt_learns_a_program_from_answers_alone(name):
    from reprogram import adapt, predict

    if name == "cma":
        pytest.importorskip("cma")
    weight = torch.randn(3 * 32 * 32, 5, generator=torch.Generator().manual_seed(0)) / 50
    box = BlackBox(lambda pixels: torch.from_numpy(pixels).flatten(1).matmul(weight).softmax(1).numpy(), budget=2000)
    source = Source(
        box, ImageCodec((32, 32)), name="box", takes="image", width=5, returns="logits", differentiable=False
    )
    drawn = np.random.default_rng(0)
    images, labels = list(drawn.random((12, 8, 8)).astype(np.float32)), drawn.integers(0, 2, 12)
    model, history = adapt(source, images, labels, kind="classification", gradient=name, epochs=2, progress=False)
    assert type(model.program).__name__ == "Coordinator" and len(history.epochs) == 2
    assert 12 < box.queries <= 2000 and predict(model, images).shape == (12, 2)
    with pytest.raises(DataError, match="a gradient step among"):
        adapt(source, images, labels, kind="classification", gradient="newton")
    with pytest.raises(DataError, match="mapping 'linear' with a gradient step"):
        adapt(source, images, labels, kind="classification", gradient=name, mapping="gp")
