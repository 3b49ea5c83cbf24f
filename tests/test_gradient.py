"""Gradient steps from queries alone: right on average, useful in `fit`, resumed bit for bit."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from reprogram import Reprogrammed
from reprogram.gradient import CMAES, SPSA, CoordinateWise, RandomGradientFree, flat
from reprogram.label_map import LabelMap
from reprogram.mapping import LinearMap
from reprogram.objectives import adam, cma_rates, spsa_rates
from reprogram.programs import Pad
from reprogram.sources import BlackBox, Source
from reprogram.train import fit

STEPS = {
    "rgf": (lambda: RandomGradientFree(directions=5, radius=1e-3), adam(program=0.05), 1.0),
    "spsa": (lambda: SPSA(repeats=3, radius=1e-2), spsa_rates(program=0.5, correction=0), math.inf),
    "spsa-gc": (lambda: SPSA(repeats=3, radius=1e-2), spsa_rates(program=0.1), math.inf),
    "coordinate": (lambda: CoordinateWise(coordinates=20), adam(program=0.1), 1.0),
    "cma": (lambda: CMAES(sigma=0.3, popsize=8), cma_rates(), math.inf),
}


class Quadratic(nn.Module):
    """F(w) = w·A w / 2 + b·w with a known gradient."""

    def __init__(self, size=6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(size, size, generator=generator)
        self.register_buffer("a", half @ half.T / size)
        self.register_buffer("b", torch.randn(size, generator=generator))
        self.w = nn.Parameter(torch.randn(size, generator=generator))

    def trainable(self):
        return [("program.w", self.w)]

    def loss(self):
        return 0.5 * self.w @ self.a @ self.w + self.b @ self.w

    def gradient(self):
        return (self.a @ self.w + self.b).detach()


class Plain:
    """An accelerator for one process on a CPU."""

    num_processes = 1

    def backward(self, loss):
        loss.backward()


@pytest.mark.parametrize(
    "step",
    [RandomGradientFree(directions=4000, radius=1e-4), SPSA(repeats=4000, radius=1e-2), CoordinateWise(coordinates=6)],
)
def test_estimates_agree_with_the_gradient(step):
    torch.manual_seed(0)
    model = Quadratic().double()
    before = model.w.detach().clone()
    step(model, model.loss, Plain())
    assert torch.equal(model.w.detach(), before)
    cosine = nn.functional.cosine_similarity(model.w.grad, model.gradient(), dim=0)
    assert cosine > 0.99
    assert abs(model.w.grad.norm() / model.gradient().norm() - 1) < 0.1


def test_coordinates_left_out_have_no_gradient():
    torch.manual_seed(1)
    model = Quadratic().double()
    CoordinateWise(coordinates=2)(model, model.loss, Plain())
    kept = model.w.grad != 0
    assert kept.sum() == 2
    torch.testing.assert_close(model.w.grad[kept], model.gradient()[kept], rtol=1e-5, atol=1e-6)


def test_evolution_finds_the_minimum():
    model = Quadratic().double()
    step, descent = CMAES(sigma=0.5), torch.optim.SGD([model.w], lr=1.0)
    step.begin(model)
    for _ in range(120):
        step(model, model.loss, Plain())
        descent.step()
    torch.testing.assert_close(model.w.detach(), torch.linalg.solve(model.a, -model.b), rtol=1e-2, atol=1e-2)


def boxed(source):
    """The source as a black box: probabilities only."""
    box = BlackBox(lambda pixels: source.network(torch.from_numpy(pixels)).softmax(1).detach().numpy())
    return Source(
        box, source.codec, name="box", takes="image", width=source.width, returns="logits", differentiable=False
    )


@pytest.mark.parametrize("name", STEPS)
def test_a_black_box_is_reprogrammed(pixel_source, pictures, name):
    make, rates, clip = STEPS[name]
    x, y = pictures
    model = Reprogrammed(Pad(image_size=24), boxed(pixel_source), LabelMap(8, 3, method="first"))
    history = fit(
        model, {"train": (x, y)}, gradient=make(), optimizer=rates, clip=clip, epochs=60, batch_size=48, progress=False
    )
    losses = history.column("train_loss")
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


@pytest.mark.parametrize("name", STEPS)
def test_stopped_and_resumed_equals_uninterrupted(pixel_source, pictures, tmp_path, name):
    make, rates, clip = STEPS[name]
    x, y = pictures
    options = {"optimizer": rates, "clip": clip, "batch_size": 16, "progress": False, "epochs": 4}

    def stop(training):
        if training.epoch == 1:
            raise KeyboardInterrupt

    found = []
    for folder, hooks in (("whole", []), ("halves", [stop])):
        for attempt in (hooks, []):
            model = Reprogrammed(Pad(image_size=16), pixel_source, LabelMap(8, 3, method="frequency"))
            try:
                fit(
                    model, {"train": (x, y)}, gradient=make(), hooks=attempt, checkpoint_dir=tmp_path / folder,
                    checkpoint_every=1, **options,
                )  # fmt: skip
            except KeyboardInterrupt:
                continue
            break
        found.append(flat([p for _, p in model.trainable()]))
    assert torch.equal(*found)


def test_a_trained_map_keeps_its_exact_gradient(pixel_source, pictures):
    x, y = pictures
    model = Reprogrammed(Pad(image_size=16), boxed(pixel_source), LinearMap(8, 3, kind="classification"))
    records = model.encode(x)
    target = torch.tensor(y)

    def closure():
        return model.row_losses(model(model.collate(records)), target).mean()

    with torch.no_grad():
        model.mapping.prepare(model.features(model.collate(records)), target)
    nn.init.normal_(model.mapping.linear.weight)  # it starts at 0, where the program does not matter yet
    expected = torch.autograd.grad(closure(), model.mapping.linear.weight)[0]
    for make, _, _ in STEPS.values():
        step = make()
        getattr(step, "begin", lambda model: None)(model)
        model.zero_grad()
        step(model, closure, Plain())
        torch.testing.assert_close(model.mapping.linear.weight.grad, expected)
        assert model.program.frame.grad.abs().sum() > 0
