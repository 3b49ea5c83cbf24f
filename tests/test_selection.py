"""Selection: a budgeted search that looks at training and validation rows alone, and goes on where it was stopped."""

import numpy as np
import pytest

from reprogram.errors import DataError
from reprogram.selection import select
from reprogram.train import fit, predict

pytest.importorskip("optuna")


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
    model = found.build(data["train"][0], 3, "classification")
    fit(model, data, epochs=10, progress=False)
    assert (predict(model, data["validation"][0]).argmax(1) == data["validation"][1]).mean() > 0.4


def test_same_seed_same_search_and_a_stopped_one_goes_on(data, pixel_source, tmp_path, monkeypatch):
    import reprogram.selection as selection

    whole = chosen(data, pixel_source, storage=tmp_path / "whole.log")
    assert whole.trials == chosen(data, pixel_source).trials
    calls, run = [], selection.run

    def counted(candidate, *args, **options):
        calls.append(str(candidate))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(candidate, *args, **options)

    monkeypatch.setattr(selection, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        chosen(data, pixel_source, storage=tmp_path / "halves.log")
    again = chosen(data, pixel_source, storage=tmp_path / "halves.log")
    assert len(calls) == 4 + 3  # three were done, the fourth was cut off
    assert len(again.trials) == 6
    assert chosen(data, pixel_source, storage=tmp_path / "halves.log").trials == again.trials
    assert len(calls) == 4 + 3


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
    assert all(np.isfinite(t.loss) == (t.candidate.program == "none") for t in found.trials)
    with pytest.raises(DataError, match="a candidate that can be trained, got none: expected luck"):
        chosen(data, pixel_source, programs=["pad"], budget=2)


def test_wrong_calls_are_one_sentence(data, pixel_source):
    with pytest.raises(DataError, match="no validation part"):
        chosen({"train": data["train"]}, pixel_source)
    with pytest.raises(DataError, match="at least one source"):
        select(data, [], kind="classification", outputs=3)
