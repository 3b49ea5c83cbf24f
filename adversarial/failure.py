"""Signs that an attack failed, and so says little about a model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adversarial.attacks.base import Attack
from adversarial.attacks.gradient import PGD
from adversarial.evaluate import wrong
from adversarial.probe import Result
from adversarial.threat import Ball


@dataclass(frozen=True)
class Indicators:
    """Signs that an attack says little about a model; each is a share of the samples that were right at first.

    unavailable_gradients: no usable gradient in more than half of the backward passes.
    unstable_predictions: another class in a second pass over the same input.
    incomplete_optimisation: broken when the attack is given four times the steps, but not before.
    silent_success: broken by the attack's point of largest loss, though the attack says it failed.
    transfer_failure: broken on the surrogate that was attacked in the model's place, but the model itself is not; 0 without one.
    unconstrained_failure: not broken even with the whole box to move in.
    black_box_ahead: broken by an attack without gradients of the same threat, but not by this one.

    Reference: Pintor et al., "Indicators of attack failure", NeurIPS 2022, arXiv:2106.09947; the last as in Croce & Hein
    2020. Differs from the paper: shares of samples that were measured by running again, not properties of loss curves.
    """

    unavailable_gradients: float
    unstable_predictions: float
    incomplete_optimisation: float
    silent_success: float
    transfer_failure: float
    unconstrained_failure: float
    black_box_ahead: float

    def warnings(self, tolerance: float = 0.05) -> list[str]:
        """A sentence for each sign above `tolerance`."""
        said = {
            "unavailable_gradients": "have no usable gradient; attack a smooth version of the model or use decisions only",
            "unstable_predictions": "change class from pass to pass; use EOT or AutoAttack(threat, 'rand')",
            "incomplete_optimisation": "are broken by four times the steps; raise the steps",
            "silent_success": "are broken by a point that the attack did not return; mend the attack",
            "transfer_failure": "are broken on the surrogate but not on the model; attack the model itself or a closer surrogate",
            "unconstrained_failure": "are not broken even without a bound; gradients are likely masked",
            "black_box_ahead": "are broken without gradients but not with them; gradients are likely masked",
        }
        return [
            f"{getattr(self, name):.0%} of samples {text}"
            for name, text in said.items()
            if getattr(self, name) > tolerance
        ]


def indicators(
    model: nn.Module, x: Tensor, y: Tensor, attack: PGD, black_box: Attack, *, surrogate: nn.Module | None = None,
    seed: int = 0, batch_size: int = 1024,
) -> Indicators:  # fmt: skip
    """The signs of failure of a gradient attack on these samples, by running it, stronger forms of it, and `black_box`.

    `surrogate`: a model that was attacked in the place of this one, which may have no gradient.
    """

    def run(which: Attack, on: nn.Module = model) -> Result:
        return which.run(on, x, y, generator=torch.Generator().manual_seed(seed), batch_size=batch_size)

    plain, longer, free = run(attack), run(replace(attack, steps=4 * attack.steps)), run(unbounded(attack))
    other = run(black_box)
    sound = ~plain.natural
    again = wrong(model, x, y, batch_size) != plain.natural
    worst = wrong(model, plain.worst, y, batch_size)
    blind = plain.blind > plain.backwards / 2
    lost = torch.zeros_like(sound)
    if surrogate is not None:
        there = run(attack, surrogate)
        lost = there.success & ~there.natural & ~wrong(model, there.x_adv, y, batch_size)

    def share(mask: Tensor) -> float:
        return float((mask & sound).sum() / sound.sum().clamp_min(1))

    return Indicators(
        share(blind), share(again), share(longer.success & ~plain.success), share(worst & ~plain.success),
        share(lost), share(~free.success), share(other.success & ~plain.success),
    )  # fmt: skip


def unbounded(attack: PGD) -> PGD:
    """The same attack with the whole box to move in, by steps of a twentieth of it."""
    assert isinstance(attack.threat, Ball)
    ball = attack.threat
    if ball.low is None or ball.high is None:
        raise ValueError("expected a threat with bounds to attack without eps, got none; pass low= and high=")
    reach = float(torch.as_tensor(ball.high).max() - torch.as_tensor(ball.low).min())
    return replace(attack, threat=replace(ball, norm="linf", eps=reach), step=0.05, steps=max(attack.steps, 40))
