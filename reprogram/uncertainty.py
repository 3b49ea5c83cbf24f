"""How sure a reprogrammed model is of a prediction, and how far an input lies from what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reprogram.features import features_of
from reprogram.gaussian_process import GaussianProcess
from reprogram.mapping import probabilities
from reprogram.model import Reprogrammed
from reprogram.stack import Stack


@torch.no_grad()
def deviation(model: Reprogrammed, inputs: Sequence[Any]) -> np.ndarray:
    """Standard deviation of each prediction (n, T): in the target's units for values, of the probability for classes.

    For values a Gaussian process gives its posterior's, label noise included, and a stack the mixture's: its members'
    own and how far they disagree. A map that is one line, or a single Gaussian process on classes, knows no deviation
    and has 0.
    """
    features = features_of(model, model.encode(list(inputs)))
    return variance(model.mapping, features).sqrt().double().numpy()


def variance(mapping: nn.Module, features: Tensor) -> Tensor:
    """Predictive variance (B, T)."""
    if isinstance(mapping, GaussianProcess) and mapping.kind == "regression":
        latent = mapping.covariance(features).diagonal().clamp_min(0)[:, None]
        return (latent + mapping.noise) * mapping.scale.double().square()
    if isinstance(mapping, Stack):
        outputs = torch.stack([probabilities(mapping.kind, member(features)).double() for member in mapping.members])
        own = torch.stack([variance(member, features) for member in mapping.members])
        weights = mapping.weights[:, None, None]
        mean = (weights * outputs).sum(0)
        return (weights * (own + (outputs - mean).square())).sum(0)
    return torch.zeros(len(features), mapping.outputs, dtype=torch.float64)


@torch.no_grad()
def strangeness(model: Reprogrammed, inputs: Sequence[Any]) -> np.ndarray:
    """Share (n,) of the training rows that are less strange to the model than each input: 1 is outside of its domain.

    Strange is what the other rows leave unexplained: the posterior over the prior variance of a Gaussian process, of a
    training row with itself left out. A stack has the mean over its processes.

    Raises: ValueError for a model without a Gaussian process.
    """
    return strange(model.mapping, features_of(model, model.encode(list(inputs))))


def strange(mapping: nn.Module, features: Tensor) -> np.ndarray:
    """`strangeness` (B,) of source features (B, S)."""
    members = mapping.members if isinstance(mapping, Stack) else [mapping]
    processes = [member for member in members if isinstance(member, GaussianProcess) and len(member.support)]
    if not processes:
        raise ValueError("expected a model with a Gaussian process, got none; its domain is not known")
    return np.mean([share_less_strange(process, features) for process in processes], axis=0)


def share_less_strange(process: GaussianProcess, features: Tensor) -> np.ndarray:
    """Share (B,) of a process's support rows that the others explain better than they explain each input."""
    support, inputs = process.support.double(), process.select(features)
    prior = process.kernel(support, support)
    precision = torch.linalg.inv(prior + process.noise * torch.eye(len(prior), dtype=torch.float64))
    left_out = ((1 / precision.diagonal() - process.noise) / prior.diagonal()).sort().values
    found = process.covariance(features).diagonal() / process.kernel(inputs, inputs).diagonal()
    return (torch.searchsorted(left_out.contiguous(), found.contiguous()).double() / len(left_out)).numpy()
