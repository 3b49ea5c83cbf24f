"""Whether the operations that were traced are the model: they give its own answers, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from certify.errors import CertifyError

PRECISE = (torch.float32, torch.float64)


def check_precise(x: Tensor) -> None:
    """Raise CertifyError for inputs whose rounding would be larger than what bounds decide."""
    if not x.is_floating_point():
        raise CertifyError(
            f"expected inputs of floating point, got {x.dtype}; a token model is certified on its embeddings"
        )
    if x.dtype not in PRECISE:
        raise CertifyError(
            f"expected inputs of float32 or float64, got {x.dtype}, whose rounding no bound accounts for; certify model.float()"
        )


def check_one_precision(kinds: set[torch.dtype], name: str, path: str) -> None:
    """Raise CertifyError for an operation that turns one floating type into another: a narrower one rounds."""
    floating = sorted(str(kind).removeprefix("torch.") for kind in kinds if kind.is_floating_point)
    if len(floating) > 1:
        raise CertifyError(
            f"expected one floating type throughout, got {' and '.join(floating)} at {name} in {path or 'the model'}; cast all "
            "of it with model.float() or model.double()"
        )


def alone(model: nn.Module, x: Tensor) -> Tensor:
    """A model's answer to one input. Raises: CertifyError for a model that has none."""
    try:
        return model(x)
    except (RuntimeError, IndexError, ValueError) as error:
        raise CertifyError(
            f"expected a model that answers one input as it does a batch, got {str(error).splitlines()[0]!r}; name the axes that "
            "it squeezes or flattens"
        ) from error


def check_answers(graph: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> None:
    """Raise CertifyError where a graph does not give a model's answers at probes near x (B, …), each by itself."""
    first = x[:1].detach()
    ramp = torch.linspace(0, 1, first.numel(), dtype=x.dtype, device=x.device).view_as(first)
    probe = torch.cat([first, first / 2, (first + ramp) / 2])  # no two rows are alike, not even of zeros
    with torch.no_grad():
        own = [alone(model, row[None]) for row in probe]
        if not all(torch.is_tensor(each) and each.ndim and len(each) == 1 for each in own):
            got = tuple(own[0].shape) if torch.is_tensor(own[0]) else type(own[0]).__name__
            raise CertifyError(f"expected logits (1, classes) for one input, got {got}; wrap the model")
        try:
            found = graph(probe)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise CertifyError(
                "expected operations that work for any number of samples, got some that work for the example's alone "
                f"({str(error).splitlines()[0]}); take sizes from the input"
            ) from error
    answers = torch.cat(own)
    if found.shape == answers.shape and torch.allclose(found, answers, rtol=1e-3, atol=1e-4, equal_nan=True):
        return
    if found.shape == answers.shape and bool((found.isnan() & ~answers.isnan()).any()):
        raise CertifyError(
            "expected a model whose operations are numbers, got differences of infinities; write a mask's -inf as -1e4"
        )
    raise CertifyError(
        "expected a model whose operations give its own answers sample by sample, got others; does it draw random numbers, "
        "or mix the samples of a batch?"
    )
