r"""Label maps: target classes read off a source's own classes by one matrix, filled in one of many ways, never by gradient.

Legend: n rows, S source classes, T target classes. A filler takes source logits (n, S) and classes (n,) and returns the
matrix (T, S); every row sums to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprogram.config import configurable
from reprogram.errors import DataError

METHODS = ("first", "random", "frequency", "iterative", "bayesian", "bayesian+", "text")
REFRESHED = ("iterative", "bayesian", "bayesian+")  # filled again after every epoch, from the present program


@configurable
class LabelMap(nn.Module):
    r"""Target logits from source logits z by a matrix ω (T, S): $\omega z$, or $\log(\omega\,\mathrm{softmax}(z))$.

    `method` fills ω:
    - "first", "random": target class t is source class t, or one drawn with `seed`;
    - "frequency": the pairs of source and target class that most often meet, greedily one to one, once (FLM);
      "iterative": again after every epoch (ILM);
    - "bayesian": $\omega_{ts} \propto N_{st} / (N_s + \lambda)$ with N the number of rows of class t that the source calls
      s (BLM); "bayesian+": N sums the source's probabilities over its top k = max(1, ⌊`top` T⌋) classes (BLM+). Both
      every epoch;
    - "text": the source classes whose names are most alike; made by `LabelMap.by_names`.
    `many` source classes speak for each target class in the one-to-many methods (BAR, V2S), each with the same weight.
    `average="probabilities"` averages probabilities, as BAR and V2S do, instead of logits.

    Nothing here is trained. A class without a row gets the source classes that are left over (one to one) or all of them
    alike (Bayesian), so few shots and absent classes do no harm.

    Shapes: source logits (B, S) -> (B, T).
    Reference: Chen et al., CVPR 2023, arXiv:2211.11635 (frequency, iterative); Cai et al., "Bayesian-guided Label Mapping
    for Visual Reprogramming", NeurIPS 2024, arXiv:2410.24018; Tsai, Chen & Ho, "Transfer Learning without Knowing", ICML
    2020, arXiv:2007.08714 (many to one).
    Raises: DataError for an unknown method, or more classes than the source can give.
    """

    kind = "classification"

    def __init__(
        self, width: int, outputs: int, *, method: str = "bayesian+", many: int = 1, average: str = "logits",
        smoothing: float = 1.0, top: float = 0.15, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if method not in METHODS:
            raise DataError(f"expected a label map among {', '.join(METHODS)}, got {method!r}")
        if average not in ("logits", "probabilities"):
            raise DataError(f"expected average to be logits or probabilities, got {average!r}")
        if outputs < 2 or many < 1 or outputs * many > width:
            raise DataError(
                f"expected at least 2 classes and no more than the source's {width}, got {outputs} classes of {many} each"
            )
        self.outputs, self.method, self.many, self.average = outputs, method, many, average
        self.smoothing, self.top, self.seed = smoothing, top, seed
        self.register_buffer("weight", torch.full((outputs, width), 1 / width))

    @classmethod
    def by_names(
        cls, targets: Sequence[str], sources: Sequence[str], embed: Callable[[list[str]], Tensor], *, many: int = 1
    ) -> LabelMap:
        """The map "text": each target class takes the source classes whose names `embed`, (n) names to (n, D), puts
        nearest by cosine, one to one.
        """
        first, second = (F.normalize(embed(list(names)).float(), dim=1) for names in (targets, sources))
        found = cls(len(sources), len(targets), method="text", many=many)
        found.weight.copy_(one_to_many(greedy(first @ second.T, many), len(sources)))
        return found

    @property
    def solved(self) -> bool:
        """Whether `refit` fills the matrix again."""
        return self.method in REFRESHED

    @torch.no_grad()
    def prepare(self, features: Tensor, y: Tensor) -> None:
        """Fill the matrix for the first time."""
        if self.method != "text":
            self.weight.copy_(self.filled(features.detach().float(), y.long()))

    @torch.no_grad()
    def refit(self, features: Tensor, y: Tensor) -> LabelMap:
        """Fill the matrix again, where the method does."""
        if self.solved:
            self.prepare(features, y)
        return self

    def filled(self, logits: Tensor, y: Tensor) -> Tensor:
        """The matrix (T, S) of this method for these rows."""
        width, count = self.weight.shape[1], self.outputs
        if self.method == "first":
            return one_to_many(torch.arange(count * self.many).view(count, -1), width)
        if self.method == "random":
            drawn = torch.randperm(width, generator=torch.Generator().manual_seed(self.seed))
            return one_to_many(drawn[: count * self.many].view(count, -1), width)
        if self.method in ("frequency", "iterative"):
            return one_to_many(greedy(joint_counts(logits, y, count), self.many), width)
        k = 1 if self.method == "bayesian" else max(1, int(self.top * count))
        counts = (
            joint_counts(logits, y, count) if self.method == "bayesian" else top_mass(logits, y, count, min(k, width))
        )
        return bayesian(counts, self.smoothing)

    def forward(self, features: Tensor) -> Tensor:
        weight = self.weight.to(features.dtype)
        if self.average == "logits":
            return F.linear(features, weight)
        return F.linear(features.softmax(-1), weight).clamp_min(1e-12).log()


def joint_counts(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """N (T, S): rows of class t that the source calls s."""
    found = logits.new_zeros(count, logits.shape[1])
    return found.index_put((y, logits.argmax(1)), logits.new_ones(len(y)), accumulate=True)


def top_mass(logits: Tensor, y: Tensor, count: int, k: int) -> Tensor:
    """N (T, S): the source's probability of s summed over the rows of class t in whose top k it is."""
    chance = logits.softmax(1)
    best = chance.topk(k, dim=1)
    kept = torch.zeros_like(chance).scatter(1, best.indices, best.values)
    return logits.new_zeros(count, logits.shape[1]).index_add(0, y, kept)


def bayesian(counts: Tensor, smoothing: float) -> Tensor:
    """P(t | s) by counts with Laplace smoothing, each target's row normalised; alike for a class without rows."""
    chance = counts / (counts.sum(0) + smoothing)
    total = chance.sum(1, keepdim=True)
    return torch.where(total > 0, chance / total.clamp_min(1e-30), torch.full_like(chance, 1 / chance.shape[1]))


def greedy(scores: Tensor, many: int) -> Tensor:
    """Source classes (T, many), disjoint: the largest score left is assigned, then its source class is taken.

    Ties go to the lower class numbers. A class whose scores are used up takes the first source classes left over.
    """
    scores, chosen = scores.clone(), [[] for _ in range(len(scores))]
    for _ in range(len(scores) * many):
        target, source = divmod(int(scores.argmax()), scores.shape[1])
        chosen[target].append(source)
        scores[:, source] = -torch.inf
        if len(chosen[target]) == many:
            scores[target] = -torch.inf
    return torch.tensor(chosen)


def one_to_many(chosen: Tensor, width: int) -> Tensor:
    """The matrix (T, S) that averages source classes `chosen` (T, many)."""
    return torch.zeros(len(chosen), width).scatter(1, chosen, 1 / chosen.shape[1])
