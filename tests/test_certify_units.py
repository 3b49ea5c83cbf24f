"""A reprogrammed model certified as one: its program, its frozen source and its map, in front of the program."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import certify
from adversarial import PGD, Ball
from certify.bounds import Bounds
from reprogram import LabelMap, LinearMap, Reprogrammed, adapt, load, programs

SMILES = ["CCO", "c1ccccc1C(=O)O", "CCN(CC)CC", "CC(C)Cl"]
METHODS = [certify.IBP, lambda ball: certify.CROWN(ball, intermediate="ibp"), certify.CROWN]


def stated(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def checked(model: Reprogrammed, inputs: list, eps: list[float], bounds: tuple = (None, None), methods=METHODS):
    """Certified shares [method][eps]; nothing certified is broken, and the model is the same bit for bit afterwards."""
    before, needs = stated(model), [p.requires_grad for p in model.parameters()]
    view = model.continuous(inputs)
    with torch.no_grad():
        logits = view.module(view.inputs)
    y, graph, shares = logits.argmax(1), certify.trace(view.module, view.inputs), []
    for make in methods:
        found = [make(Ball("linf", e, *bounds, view.free))(graph, view.inputs, y) for e in eps]
        shares.append([float(each.certified.float().mean()) for each in found])
        for e, each in zip(eps, found, strict=True):
            attack = PGD(Ball("linf", e, *bounds, view.free), steps=20, early=False)
            worst = attack.run(view.module, view.inputs, y).worst
            with torch.no_grad():
                answers = view.module(worst)
            assert not (each.certified & (answers.argmax(1) != y)).any()
            others = answers.masked_fill(nn.functional.one_hot(y, answers.shape[1]).bool(), -torch.inf).amax(1)
            gap = answers.gather(1, y[:, None])[:, 0] - others
            assert (gap >= each.margin - 1e-4 * (1 + each.margin.abs())).all()
    assert view.module.training is False and needs == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(value, before[name]) for name, value in stated(model).items())
    return shares


def mapped(program: nn.Module, source: nn.Module, seed: int = 0) -> Reprogrammed:
    torch.manual_seed(seed)
    model = Reprogrammed(program, source, LinearMap(source.width, 2, kind="classification")).eval()
    for weight in model.mapping.parameters():
        nn.init.normal_(weight, std=0.5)
    return model


def test_tokens(tiny_source):
    program = programs.FreeEmbeddings(list("CNOclan1()="), split="characters")
    for made in (programs.Identity(), program, programs.SoftPrompt(prompt_length=2)):
        shares = checked(mapped(made, tiny_source), SMILES, [1e-5, 1e-4, 0.5])
        assert all(share[:2] == [1.0, 1.0] and share[2] < 1.0 for share in shares)


def test_attention_with_padding(bert_source):
    shares = checked(mapped(programs.Identity(), bert_source), SMILES[:3], [1e-5, 1e-3], methods=METHODS[:2])
    assert [share[0] for share in shares] == [1.0, 1.0]
