"""Selection: a budgeted search that looks at training and validation rows alone, and goes on where it was stopped."""

import numpy as np
import pytest

from reprogram.errors import DataError
from reprogram.search import Candidate, search
from reprogram.selection import judged, openers, pool, select
from reprogram.train import fit, predict


@pytest.fixture
def data(pictures):
    x, y = pictures
    return {"train": (x[:30], y[:30]), "validation": (x[30:], y[30:])}


def chosen(data, source, **options):
    options = {"kind": "classification", "outputs": 3, "budget": 6, "epochs": 9, "progress": False} | options
    return select(data, [source], **options)


def test_candidates_are_different_ranked_and_explained(data, pixel_source):
    found = chosen(data, pixel_source)
    assert len({str(t.candidate) for t in found.trials}) == len(found.trials) == 6
    losses = [t.loss for t in found.trials]
    assert losses == sorted(losses)
    assert str(found.best) in found.why()
    assert found.to_markdown().count("\n| ") == 7
    model, _ = found.train(data, 3, "classification")
    assert (predict(model, data["validation"][0]).argmax(1) == data["validation"][1]).mean() > 0.4


def test_same_seed_same_search_and_a_stopped_one_goes_on(data, pixel_source, tmp_path, monkeypatch):
    import reprogram.search as searching

    whole = chosen(data, pixel_source, storage=tmp_path / "whole.json")
    assert whole.trials == chosen(data, pixel_source).trials
    calls, tried = [], searching.tried

    def counted(candidate, *args):
        calls.append(str(candidate))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tried(candidate, *args)

    monkeypatch.setattr(searching, "tried", counted)
    with pytest.raises(KeyboardInterrupt):
        chosen(data, pixel_source, storage=tmp_path / "halves.json")
    again = chosen(data, pixel_source, storage=tmp_path / "halves.json")
    assert len(calls) == 4 + 3  # three were done, the fourth was cut off
    assert again.trials == whole.trials
    assert chosen(data, pixel_source, storage=tmp_path / "halves.json").trials == again.trials
    assert len(calls) == 4 + 3
    with pytest.raises(DataError, match="a journal of the same search"):
        chosen(data, pixel_source, storage=tmp_path / "halves.json", programs=["resize"])


GRID = [Candidate(s, p, m, r) for s in "abcd" for p in ("none", "pad", "full") for m in ("i", "l") for r in (0.01, 0.1)]


def level(candidate):
    """A loss to which every part of the candidate adds its own."""
    parts = {"a": 0.8, "b": 0.4, "c": 0.2, "d": 0.9}[candidate.source] + 0.3 * (candidate.mapping == "i")
    return 0.1 + parts + {"none": 0.3, "pad": 0.0, "full": 0.2}[candidate.program] + 0.1 * (candidate.rate < 0.1)


@pytest.mark.parametrize("seed", range(4))
def test_what_candidates_share_leads_to_the_best_of_them(seed):
    def attempt(candidate, told):
        for epoch in range(9):
            if told(level(candidate) + 1 / (epoch + 1)):
                break
        return level(candidate)

    found = search(GRID, attempt, budget=16, epochs=9, seed=seed, progress=False)
    assert len({t.candidate for t in found}) == len(found) == 16
    best = min(found, key=lambda t: t.rank)
    assert level(best.candidate) <= sorted(map(level, GRID))[1]
    weak = [t for t in found if t.stopped]
    assert weak and all(t.epochs == 3 and t.loss == np.inf for t in weak)
    assert not any(t.stopped for t in found[:3])
    assert len(search(GRID[:5], attempt, budget=16, epochs=9, progress=False)) == 5


def test_every_source_comes_first_as_a_probe(data, pixel_source):
    opening = openers(GRID, 0)
    assert sorted(str(c) for c in opening) == [f"none → {s} → l, rate 0.1" for s in "abcd"]
    assert {tuple(c.source for c in openers(GRID, seed)) for seed in range(5)} != {tuple("abcd")}
    tried = search(GRID, lambda candidate, told: level(candidate), budget=5, epochs=3, first=opening, progress=False)
    assert [t.candidate for t in tried[:4]] == opening


def test_the_pool_has_every_candidate_once(pixel_source, sound_source, tiny_source):
    found = pool([pixel_source], "classification", rates=(0.01, 0.1))
    assert len(set(map(str, found))) == len(found) == 2 + 2 + 5 * 3 * 2  # no rate where nothing is trained
    fixed = pool([tiny_source], "regression", ["none", "sparse", "pad", "words"], (0.01,))
    assert [c.program for c in fixed] == ["none", "sparse", "words"]  # "words" is for no source of its own kind
    assert not pool([sound_source], "classification", ["pad"])


def test_a_candidate_that_fails_does_not_end_the_search(data, pixel_source, monkeypatch):
    import reprogram.selection as selection

    build = selection.build_program

    def fragile(program, *args):
        if program != "none":
            raise DataError("expected luck, got none")
        return build(program, *args)

    monkeypatch.setattr(selection, "build_program", fragile)
    found = chosen(data, pixel_source, programs=["none", "pad"], budget=5)
    assert found.best.program == "none"
    assert all(bool(t.error) == (t.candidate.program != "none") for t in found.trials)
    with pytest.raises(DataError, match="a candidate that can be trained, got none: expected luck"):
        chosen(data, pixel_source, programs=["pad"], budget=2)


def test_a_loss_says_nothing_of_the_scale_of_logits(data, pixel_source):
    from reprogram.label_map import LabelMap
    from reprogram.model import Reprogrammed
    from reprogram.programs import Identity

    x, y = data["validation"]
    y = [(label + (row % 4 == 0)) % 3 for row, label in enumerate(y)]  # some are wrong, or no confidence is too much
    losses = []
    for scale in (0.01, 1.0, 7.0):
        model = Reprogrammed(Identity(), pixel_source, LabelMap(8, 3, method="bayesian+"))
        fit(model, data, epochs=1, progress=False)
        model.mapping.weight.mul_(scale)
        losses.append(judged(model, x, y))
        assert losses[-1] <= np.log(3) + 1e-4  # no confidence at all costs so much
    assert losses[1] == pytest.approx(losses[2], abs=1e-4)


def test_wrong_calls_are_one_sentence(data, pixel_source):
    with pytest.raises(DataError, match="no validation part"):
        chosen({"train": data["train"]}, pixel_source)
    with pytest.raises(DataError, match="at least one source"):
        select(data, [], kind="classification", outputs=3)
    with pytest.raises(DataError, match="different names"):
        select(data, [pixel_source, pixel_source], kind="classification", outputs=3)
    with pytest.raises(DataError, match="a program that fits"):
        chosen(data, pixel_source, programs=["sparse"])
