"""The default recipe: what joins the stack is decided on held-out training rows, and leaving a program out leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import reprogram as rp
from reprogram.auto import LEFT_OUT, Plan, adapt_auto
from reprogram.sources import FeatureCodec, load


def counts(texts):
    return np.array([[float(text.count(c)) for c in "CNOcnF"] for text in texts])


class Through(nn.Module):
    def forward(self, features):
        return features


@pytest.fixture
def beside():
    """A second frozen source: how often each character occurs."""
    return load(Through(), codec=FeatureCodec(counts), takes="features", width=6, name="counts")


def held_out_with_errors(y, errors):
    """Predictions (M, n, 1) that are wrong by a constant each."""
    return torch.stack([y + error for error in errors])


def test_a_programmed_readout_must_beat_its_twin_beside_other_sources(tiny_source, beside):
    y = torch.randn(30, 1)
    plan = Plan([tiny_source, beside], "regression", 1, True)
    assert (len(plan.untouched()), len(plan.programmed())) == (3, 2)
    assert plan.kept(held_out_with_errors(y, [1.0, 0.5, 0.6, 0.4, 0.7]), y) == [0, 1, 2, 3]
    assert plan.kept(held_out_with_errors(y, [1.0, 0.5, 0.6, 0.5, 0.5]), y) == [0, 1, 2, 4]
    assert plan.kept(held_out_with_errors(y, [0.1, 0.5, 0.6, 0.9, 0.9]), y) == [0, 1, 2]
    alone = Plan([tiny_source], "regression", 1, True)
    assert alone.kept(held_out_with_errors(y, [0.1, 0.5, 0.6, 0.9, 0.9]), y) == [0, 1, 2, 3, 4]
    assert len(Plan([tiny_source], "classification", 2, True).programmed()) == 1
    assert Plan([tiny_source, beside], "regression", 1, False).programmed() == []


@pytest.mark.parametrize("kind", ["regression", "classification", "multilabel"])
def test_a_program_left_out_leaves_no_trace(tiny_source, beside, toy, kind, monkeypatch):
    texts, y = toy
    high = np.array(y) > np.median(y)
    y = {"regression": y, "classification": high.astype(int), "multilabel": np.stack([high, ~high], 1).astype(float)}[
        kind
    ]
    options = {"kind": kind, "sources": [tiny_source, beside], "epochs": 2, "progress": False}
    frozen, _ = adapt_auto(texts, y, reprogrammed=False, **options)
    monkeypatch.setattr(Plan, "kept", lambda plan, held_out, y: list(range(len(plan.untouched()))))
    model, history = adapt_auto(texts, y, **options)
    assert history.stopped == LEFT_OUT and len(model.source.members) == 2
    assert np.array_equal(rp.predict(model, texts), rp.predict(frozen, texts))
    monkeypatch.setattr(Plan, "kept", lambda plan, held_out, y: list(range(len(held_out))))
    model, history = adapt_auto(texts, y, **options)
    assert history.epochs and not history.stopped and len(model.source.members) == 3
    assert not np.array_equal(rp.predict(model, texts), rp.predict(frozen, texts))
