"""A reprogrammed model certified as one: its program, its frozen source and its map, in front of the program."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import certify
from adversarial import PGD, Ball
from reprogram import LinearMap, Reprogrammed, adapt, load, programs

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
            attack = PGD(Ball("linf", e, *bounds, view.free), steps=8, early=False)
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
    shares = checked(mapped(program, tiny_source), SMILES, [1e-4, 0.5])
    assert all(share[0] == 1.0 and share[1] < 1.0 for share in shares)


def test_attention_with_padding(bert_source):
    encoder = bert_source.network.model.encoder
    encoder.layer = encoder.layer[:1]
    model = mapped(programs.Identity(), bert_source)
    shares = checked(model, ["CO", "c1ccc"], [1e-5], methods=[METHODS[0], METHODS[2]])
    assert shares[1] == [1.0]


def test_images_in_front_of_the_program(pixel_source, pictures):
    model = mapped(programs.Pad(), pixel_source)
    images = [torch.as_tensor(each)[None] for each in pictures[0][:3]]
    for share in checked(model, images, [1e-4, 0.3], (0.0, 1.0)):
        assert share[0] == 1.0 and share[1] < 1.0


class Chooses(nn.Module):
    """Twice the others, or their squares, or what `pick` makes of them, as the last number says."""

    def __init__(self, pick=None):
        super().__init__()
        self.pick = pick

    def forward(self, x):
        mask = x[:, -1:].round().long()
        if self.pick is not None:
            return self.pick(x[:, :-1], mask)
        return torch.where(mask.bool(), 2 * x[:, :-1], x[:, :-1].square() + 0.5)


@pytest.mark.parametrize(("norm", "make"), [("linf", METHODS[0]), ("linf", METHODS[2]), ("l2", METHODS[1])])
def test_what_the_threat_leaves_as_it_is_is_a_constant(make, norm):
    """A condition of each sample's own: margins against those of many points, which meet them where all is linear."""
    x = torch.tensor([[0.9, 0.2, 1.0], [0.9, 0.2, 0.0], [0.3, 0.8, 1.0]])
    y, eps = torch.tensor([0, 0, 1]), 0.1
    free = torch.ones_like(x)
    free[:, -1] = 0
    ball = Ball(norm, eps, None, None, free)
    found = make(ball)(Chooses().eval(), x, y)
    spread = eps * {"linf": 2.0, "l2": 2**0.5, "l1": 1.0}[norm]
    linear = 2 * ((x[:, 0] - x[:, 1]).abs() - spread)
    whole = found.margin[[0, 2]] - linear[[0, 2]]
    assert (whole <= 1e-5).all() and (norm != "linf" or (whole >= -1e-5).all())
    grid = torch.cartesian_prod(torch.linspace(-eps, eps, 41), torch.linspace(-eps, eps, 41))
    moves = grid[{"linf": grid.abs().amax(1), "l2": grid.norm(dim=1), "l1": grid.abs().sum(1)}[norm] <= eps + 1e-6]
    for row in range(3):
        points = x[row].repeat(len(moves), 1)
        points[:, :2] += moves
        z = Chooses()(points)
        assert found.margin[row] <= (z[:, y[row]] - z[:, 1 - y[row]]).min() + 1e-5


def test_what_jumps_has_no_bound():
    x, y = torch.tensor([[0.9, 0.2, 1.0]]), torch.tensor([0])
    free = torch.tensor([[1.0, 1.0, 0.0]])
    with pytest.raises(certify.CertifyError, match="leaves the values as they are of which round"):
        certify.CROWN(Ball("linf", 0.1))(Chooses().eval(), x, y)
    for pick in (lambda x, mask: x * mask.bool(), lambda x, mask: x.gather(1, mask.expand(-1, 2))):
        with pytest.raises(certify.CertifyError, match="cast them first"):
            certify.CROWN(Ball("linf", 0.1, None, None, free))(Chooses(pick).eval(), x, y)
    with pytest.raises(certify.CertifyError, match="keeps samples apart"):
        certify.trace(Chooses(lambda x, mask: x[torch.arange(len(x)).flip(0)] + mask).eval(), x)


def test_last_states_of_a_recurrent_network():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            _, (h, c) = self.cells(x)
            return self.last(torch.cat([h[-1], c[0]], 1))

    torch.manual_seed(0)
    model, x = Last().eval(), torch.randn(3, 2, 3)
    graph = certify.trace(model, x)
    assert torch.allclose(graph(x), model(x), atol=1e-5)
    with torch.no_grad():
        y = model(x).argmax(1)
    assert certify.IBP(Ball("linf", 1e-5, None, None))(graph, x, y).certified.all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0"])
def test_real_sources_are_bounded_and_not_broken(name):
    """Bounds of networks of this depth say nothing; they have to end, be finite, and break no promise."""
    if name == "minilm":
        texts, y = ["good film", "a bad one", "great fun", "dull plot"], [1, 0, 1, 0]
        model, _ = adapt(
            load(name), texts, y, epochs=0, progress=False, kind="classification", program="none", mapping="ridge"
        )
        checked(model.eval(), texts[:2], [1e-6], methods=METHODS[:1])
        return
    images, y = [torch.rand(1, 12, 12) * (0.3 + 0.7 * (i % 2)) for i in range(8)], [i % 2 for i in range(8)]
    model, _ = adapt(
        load(name, size=32), images, y, epochs=1, progress=False, kind="classification", program=programs.Pad(),
        mapping="linear",
    )  # fmt: skip
    checked(model.eval(), images[:2], [1e-6], (0.0, 1.0), methods=METHODS[:2])
