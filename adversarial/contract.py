"""What every attack promises, as one function: for our own tests and for authors of other attacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adversarial.attacks.base import Attack
from adversarial.goals import Targeted
from adversarial.probe import Result
from adversarial.threat import Region


class Counted(nn.Module):
    """A module that counts the samples which pass forward and backward through it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.forwards, self.backwards = module, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self.passed)
        return self.module(x)

    def passed(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Rowwise(nn.Linear):
    """A linear layer whose arithmetic for a row is the same in every batch, to the last bit: matrix products are not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(2) + self.bias


def example(
    shape: Sequence[int] = (6,), classes: int = 3, count: int = 12, seed: int = 0
) -> tuple[nn.Module, Tensor, Tensor]:
    """A small smooth network in float64 with dropout and batch norm, inputs within [0, 1], and the classes it gives them
    with two wrong ones among them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = int(torch.tensor(shape).prod())
        model = nn.Sequential(
            nn.Flatten(), Rowwise(size, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Dropout(0.5), Rowwise(16, classes)
        ).double()
        x = 0.1 + 0.8 * torch.rand(count, *shape, dtype=torch.float64)
    with torch.no_grad():
        model.eval()[-1].bias -= model(x).mean(0)  # every class is some input's
        y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % classes
    return model, x, y


def check_attack(
    attack: Attack, *, shape: Sequence[int] = (6,), classes: int = 3, targeted: bool = True, gradients: bool = True,
    expected: float = 0.0,
) -> Result:  # fmt: skip
    """Run an attack whose threat has bounds within [0, 1] on `example` and hold it to the laws.

    Examples lie in the threat, reach the goal, and are clean inputs where it is not reached; success, distance and counts
    are what an outsider finds; a seed repeats itself, a sample comes to the same alone, in another order and in a batch;
    model, gradients and the global generator are left as they were; a target is aimed at. `gradients` says whether the
    attack may ask for gradients, `expected` which share of sound inputs it has to break.

    Raises: AssertionError naming the law that is broken.
    """
    model, x, y = example(shape, classes)
    model.train()
    counted, before = Counted(model), {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    result = attack.run(counted, x, y, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, torch.random.get_rng_state()), "the global random generator moved"
    assert model.training and all(module.training for module in model.modules()), "the model's mode changed"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), (
        "the model's state changed"
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters()), "the model's parameters were touched"
    assert int(result.forwards.sum()) == counted.forwards, "forward passes are not those that were made"
    assert int(result.backwards.sum()) == counted.backwards, "backward passes are not those that were made"
    assert gradients or not counted.backwards, "an attack without gradients asked for them"
    model.eval()
    holds(attack, model, x, y, result)
    sound = ~result.natural
    share = float(result.success[sound].double().mean())
    assert share >= expected, f"broke {share:.2f} of the sound inputs, expected at least {expected}"
    again(attack, model, x, y, result)
    if targeted:
        target = (y + 1) % classes
        found = attack.run(model, x, Targeted(target), generator=torch.Generator().manual_seed(1))
        wrong = model(found.x_adv).argmax(1) != target
        assert not bool((wrong & found.success).any()), "a targeted example is of another class"
        same = (found.x_adv == x).flatten(1).all(1)
        assert bool(same[~found.success].all()), "a targeted failure is not the clean input"
    return result


def holds(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, result: Result) -> None:
    """What an outsider finds about a result."""
    region: Region = attack.threat.around(x)
    with torch.no_grad():
        wrong = model(result.x_adv).argmax(1) != y
        natural = model(x).argmax(1) != y
    assert torch.equal(wrong, result.success), "success is not what the model says"
    assert torch.equal(natural, result.natural), "natural errors are not what the model says"
    same = (result.x_adv == x).flatten(1).all(1)
    assert bool(same[~result.success | natural].all()), "a failure or a natural error is not the clean input"
    assert bool((result.distance[natural] == 0).all()), "a natural error has a distance"
    assert bool(result.distance[~result.success].isinf().all()), "a failure has a distance"
    if region.apply.__name__ != "identity":
        return
    assert bool(region.contains(result.x_adv).all()), "an example lies outside the threat"
    assert bool(region.contains(result.worst).all()), "the worst point lies outside the threat"
    found = region.distance(result.x_adv)
    assert torch.allclose(found[result.success], result.distance[result.success]), "a distance is not the example's"


def again(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, result: Result) -> None:
    """The same seed, another order, and every sample alone."""

    def differs(other: Result, rows: Tensor) -> bool:
        return not (
            torch.equal(other.success, result.success[rows])
            and torch.allclose(other.x_adv, result.x_adv[rows], rtol=0, atol=1e-9)
        )

    rows = torch.arange(len(x))
    for order, size, law in (
        (rows, 1024, "the same seed gave another result"), (rows.flip(0), 1024, "another order gave another result"),
        (rows, 1, "a sample alone gave another result"), (rows, 5, "other batches gave another result"),
    ):  # fmt: skip
        other = attack.run(model, x[order], y[order], generator=torch.Generator().manual_seed(1), batch_size=size)
        assert not differs(other, order), law
