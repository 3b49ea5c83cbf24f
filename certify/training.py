"""Losses that make a model hold out under noise: for `reprogram.fit`, where only a program and a map learn, or any loop.

    fit(model, data, loss=certify.training.gaussian(0.25))       # the source stays frozen: smoothing by reprogramming
    certify.Smoothing(ball, sigma=0.25)(view.module, view.inputs, y)

Noise comes from torch's global generator, which `reprogram.fit` seeds and keeps in its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certify.errors import CertifyError

Loss = Callable[[nn.Module, Any, Tensor], Tensor]


def cross_entropy(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    """Of the logits (B, classes) and classes (B,)."""
    return F.cross_entropy(model(x), y.reshape(-1).long())


def gaussian(sigma: float, *, copies: int = 1, loss: Loss = cross_entropy) -> Loss:
    """The loss on inputs with Gaussian noise of standard deviation sigma, the mean over `copies` of each.

    Inputs are a tensor (B, …), or a batch of several, of which those of floating point are moved.

    Reference: Cohen, Rosenfeld & Kolter, ICML 2019, arXiv:1902.02918, section 3.3; Lecuyer et al., S&P 2019,
    arXiv:1802.03471.
    Raises: CertifyError for a sigma that is not above 0, no copies, and inputs without a number that noise could move.
    """
    check_noise(sigma, copies)

    def noisy(model: nn.Module, x: Any, y: Tensor) -> Tensor:
        return loss(model, shaken(x, sigma, copies), y.repeat_interleave(copies, 0))

    return noisy


def reconstruction(sigma: float) -> Loss:
    """How far a denoiser's outputs for noisy inputs are from the clean ones: mean squared error (labels are not used).

    Reference: Salman, Sun, Yang, Kapoor & Kolter, "Denoised smoothing", NeurIPS 2020, arXiv:2003.01908 (MSE).
    """
    check_noise(sigma, 1)
    return lambda denoiser, x, y: F.mse_loss(denoiser(shaken(x, sigma, 1)), x)


def stability(sigma: float) -> Loss:
    """Cross-entropy of a `Denoised` classifier on noisy inputs against what the classifier itself says of the clean ones.

    Reference: Salman et al., NeurIPS 2020, arXiv:2003.01908 (STAB).
    """
    check_noise(sigma, 1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            clean = model.get_submodule("classifier")(x).argmax(1)
        return F.cross_entropy(model(shaken(x, sigma, 1)), clean)

    return loss


class Denoised(nn.Module):
    r"""A denoiser in front of a pretrained classifier: $f(D(x))$. Smoothing this certifies a classifier never trained on noise.

    Any two modules; train the denoiser's parameters alone, by `reconstruction` or `stability`.
    Reference: Salman et al., NeurIPS 2020, arXiv:2003.01908.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module):
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.denoiser(x))


def shaken(x: Any, sigma: float, copies: int) -> Any:
    """Copies of inputs, each with noise of its own."""
    if isinstance(x, Tensor):
        x = x.repeat_interleave(copies, 0)
        return torch.add(x, torch.randn_like(x), alpha=sigma)
    if not any(isinstance(value, Tensor) and value.is_floating_point() for value in getattr(x, "values", list)()):
        raise CertifyError(
            f"expected a tensor, or a batch with one, of floating point, got {type(x).__name__}; tokens have no noise, "
            "smooth their embeddings"
        )
    return {key: moved(value, sigma, copies) for key, value in x.items()}


def moved(value: Any, sigma: float, copies: int) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return shaken(value, sigma, copies)
    return value.repeat_interleave(copies, 0) if isinstance(value, Tensor) else value


def check_noise(sigma: float, copies: int) -> None:
    if not 0 < sigma < float("inf"):
        raise CertifyError(f"expected a sigma above 0, got {sigma}")
    if copies < 1:
        raise CertifyError(f"expected at least one noisy copy of each input, got {copies}")
