"""The default recipe: what joins the stack is decided on held-out training rows, and leaving a program out leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import reprogram as rp
from reprogram.auto import LEFT_OUT, Plan, adapt_auto
from reprogram.sources import FeatureCodec, load
from reprogram.stack import unit_scale


def counts(texts):
    return np.array([[float(text.count(c)) for c in "CNOcnF"] for text in texts])


class Through(nn.Module):
    def forward(self, features):
        return features


@pytest.fixture
def beside():
    """A second frozen source: how often each character occurs."""
    return load(Through(), codec=FeatureCodec(counts), takes="features", width=6, name="counts")


def used(plan, y, *errors):
    """Readouts with a weight, when each predicts held-out rows wrong by a constant."""
    return plan.weights(torch.stack([y + error for error in errors]), y).nonzero()[:, 0].tolist()


def test_a_programmed_readout_must_beat_its_twin_beside_other_sources(tiny_source, beside):
    y = torch.randn(30, 1)
    plan = Plan([tiny_source, beside], "regression", 1, True)
    assert (len(plan.untouched()), len(plan.programmed())) == (3, 2)
    assert used(plan, y, 0.55, 0.50, 0.52, 0.49, 0.53) == [0, 1, 2, 3]
    assert used(plan, y, 0.55, 0.50, 0.52, 0.50, 0.51) == [0, 1, 2, 4]
    assert used(plan, y, 0.45, 0.50, 0.52, 0.55, 0.55) == [0, 1, 2]
    assert used(plan, y, 0.45, 0.50, 0.90, 0.55, 0.80) == [0, 1]
    alone = Plan([tiny_source], "regression", 1, True)
    assert used(alone, y, 0.45, 0.50, 0.52, 0.55, 0.55) == [0, 1, 2, 3, 4]
    assert len(Plan([tiny_source], "classification", 2, True).programmed()) == 1
    assert Plan([tiny_source, beside], "regression", 1, False).programmed() == []


def test_a_constant_column_decides_nothing():
    y = torch.cat([torch.randn(40, 1), torch.full((40, 1), 3.0)], 1)
    good, bad = y.clone(), torch.zeros(40, 2) + torch.tensor([0.0, 3.0])
    good[:, 1] += 1e-3
    matrix, values = unit_scale("regression", torch.stack([good, bad]), y)
    assert matrix.shape == (40, 2) and np.allclose(matrix[:, 0], values, atol=1e-5)
    one_hot = torch.randint(2, (40,))
    assert unit_scale("classification", torch.rand(2, 40, 3), one_hot)[0].shape == (80, 2)


def test_a_rarely_known_label_does_not_stop_the_recipe(tiny_source, toy):
    texts, y = toy
    y = np.stack([np.array(y) > np.median(y), np.full(60, np.nan)], 1).astype(float)
    y[0, 1] = 1
    model, _ = rp.adapt(tiny_source, texts, y, kind="multilabel", epochs=2, progress=False)
    assert np.isfinite(rp.predict(model, texts)[:, 0]).all()


def test_several_sources_by_list_and_what_is_said_of_them(tiny_source, beside, toy):
    texts, y = toy
    model, _ = rp.adapt([tiny_source, beside], texts, y, epochs=1, progress=False)
    assert {member.name for member in model.source.members} == {"tiny", "counts"}
    with pytest.raises(rp.DataError, match="name each once"):
        rp.adapt([beside, beside], texts, y)
    with pytest.raises(rp.DataError, match="several sources"):
        rp.adapt([tiny_source, beside], texts, y, mapping="ridge")
    with pytest.raises(rp.DataError, match="an empty list"):
        rp.adapt([], texts, y)


def test_own_modules_come_back_with_the_artefact(tiny_source, beside, toy, tmp_path):
    texts, y = toy
    for name, source in {"one": tiny_source, "two": [tiny_source, beside]}.items():
        model, _ = rp.adapt(source, texts, y, epochs=1, progress=False)
        model.save_pretrained(tmp_path / name)
        again = rp.Reprogrammed.from_pretrained(tmp_path / name, source=source)
        assert np.array_equal(rp.predict(model, texts), rp.predict(again, texts))
        with pytest.raises(rp.DataError, match="pass source="):
            rp.Reprogrammed.from_pretrained(tmp_path / name)
    with pytest.raises(rp.DataError, match="expected 2 sources"):
        rp.Reprogrammed.from_pretrained(tmp_path / "two", source=tiny_source)
    with pytest.raises(rp.DataError, match="weights"):
        rp.Reprogrammed.from_pretrained(tmp_path / "one", source=tiny_source.randomised(0))


@pytest.mark.parametrize("kind", ["regression", "classification", "multilabel"])
def test_a_program_left_out_leaves_no_trace(tiny_source, beside, toy, kind, monkeypatch):
    texts, y = toy
    high = np.array(y) > np.median(y)
    y = {"regression": y, "classification": high.astype(int), "multilabel": np.stack([high, ~high], 1).astype(float)}[
        kind
    ]
    options = {"kind": kind, "sources": [tiny_source, beside], "epochs": 2, "progress": False}
    frozen, _ = adapt_auto(texts, y, reprogrammed=False, **options)
    plain = Plan.weights

    def frozen_only(plan, held_out, y):
        target, plan.target = plan.target, None
        found = plain(plan, held_out[: len(plan.untouched())], y)
        plan.target = target
        return torch.cat([found, torch.zeros(len(held_out) - len(found))])

    monkeypatch.setattr(Plan, "weights", frozen_only)
    model, history = adapt_auto(texts, y, **options)
    assert history.stopped == LEFT_OUT and len(model.source.members) == 2
    assert np.array_equal(rp.predict(model, texts), rp.predict(frozen, texts))
    monkeypatch.setattr(Plan, "weights", lambda plan, held_out, y: torch.full((len(held_out),), 1 / len(held_out)))
    model, history = adapt_auto(texts, y, **options)
    assert history.epochs and not history.stopped and len(model.source.members) == 3
    assert not np.array_equal(rp.predict(model, texts), rp.predict(frozen, texts))
