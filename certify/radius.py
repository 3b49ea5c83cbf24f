"""The largest size of a threat for which any certifier certifies each input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from adversarial.threat import Ball
from certify.certificate import Certifier
from certify.engine.graph import Graph
from certify.errors import CertifyError


def radius_of(
    certifier: Certifier,
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor,
    *,
    start: float = 0.05,
    steps: int = 15,
    batch_size: int = 64,
) -> Tensor:
    r"""The largest eps (B,) that a search finds certified for each input; 0 where it finds none.

    log eps begins at log `start` and goes up or down by one until a certified and an uncertified eps are known, which it
    then halves the way between: `steps` certificates of every input. Only what was certified is
    reported, so that no assumption is made on how certificates depend on eps. The certifier's own eps does not matter; a
    certifier that shows a part of a threat moves its lower end.

    A traced model, `certify.trace(model, x)`, in the model's place saves tracing it at every step.

    Reference: the search of Boopathy et al., "CNN-Cert", AAAI 2019, arXiv:1811.12395.

    Raises: CertifyError for a threat that is no ball of linf, l2 or l1, and for `start` or `steps` that are not above 0.
    """
    threat = getattr(certifier, "threat", None)
    if not isinstance(threat, Ball) or threat.norm == "l0":
        raise CertifyError(f"expected a certifier of a Ball in linf, l2 or l1 to search its eps, got one of {threat}")
    if not start > 0 or steps < 1:
        raise CertifyError(f"expected start and steps above 0, got {start} and {steps}")
    found = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    size, refused = torch.full_like(found, start), torch.full_like(found, torch.inf)
    for _ in range(steps):
        given = replace(certifier, threat=replace(threat, eps=size))(model, x, y, batch_size=batch_size)
        if given.guarantee == "estimate":
            raise CertifyError(f"expected a certifier that proves, got the estimates of {given.method}")
        found = torch.maximum(found, torch.where(given.certified, size, torch.minimum(given.radius.to(size), size)))
        refused = torch.where(given.certified, refused, torch.minimum(refused, size))
        size = following(found, refused, size)
    return found


def following(found: Tensor, refused: Tensor, size: Tensor) -> Tensor:
    """The next eps to try: a step down or up where one side is open, else the geometric mean."""
    step = torch.where(found == 0, refused / torch.e, size * torch.e)
    return torch.where((found > 0) & refused.isfinite(), found.sqrt() * refused.sqrt(), step)
