r"""Texts that mean the same: a prediction by random writings that no rewriting changes, and how far others let it change.

Let c(t) be the canonical form of a text t, the same for all texts of one meaning, and W a random writing of a canonical form,
drawn anew with a seed s. A model f is smoothed to

    $g(t) = \arg\max_k P_s[f(W_s(c(t))) = k]$, or for a regression $g(t) = median_s\,f(W_s(c(t)))$.

Claim: g(t) = g(t') for all texts with c(t) = c(t'). Proof: g sees t through c(t) alone. So the invariance holds for every
rewriting there is, drawn or not, however adversarial, provided that `canonical` tells the truth. The seeds of the draws
are a function of c(t) too, so the sample's own answer, its abstention and its interval are the same for every
writing as well; only whether the sample's answer is g's is a matter of probability, which the counts bound.

A canonical form by itself, f(c(t)), is just as invariant; votes over writings make an answer that does not hang on how
the model takes one particular text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm

from certify.certificate import Certificate
from certify.checks import check_classes
from certify.errors import CertifyError
from certify.randomised.votes import check_reach, check_sampling, chosen, lower_share, median_ranks, tally, upper_share

Outputs = Callable[[list[str]], Tensor]  # texts -> logits or values (n, T); not finite where a text cannot be read


@dataclass(frozen=True)
class Writings:
    """All texts with the same canonical form as the given one.

    Args:
        canonical: text -> its canonical form.
        rewrite: canonical form and seed -> another text with this canonical form (or the same text, where there is no
            other); equal arguments, equal results.
    """

    canonical: Callable[[str], str]
    rewrite: Callable[[str, int], str]

    def contains(self, candidate: str, text: str) -> bool:
        """Whether two texts have the same canonical form."""
        return self.canonical(candidate) == self.canonical(text)

    def draws(self, text: str, count: int, seed: int) -> list[str]:
        """Independent random writings; which ones, the canonical form and `seed` decide."""
        name = self.canonical(text)
        random = Random(f"{seed} {name}")
        return [self.rewrite(name, random.getrandbits(31)) for _ in range(count)]


@dataclass(frozen=True)
class Middle:
    """Medians over writings and an interval around each, shapes (B, T); `confidence` is a row's, all T outputs together."""

    median: Tensor
    low: Tensor
    high: Tensor
    confidence: float

    @property
    def width(self) -> Tensor:
        return self.high - self.low


@dataclass(frozen=True)
class Changed:
    """Share of a text's writings that change its prediction, with the ends of a two-sided interval, shapes (B,)."""

    share: Tensor
    low: Tensor
    high: Tensor
    n: int
    confidence: float


def other_class(own: Tensor, other: Tensor) -> Tensor:
    """Whether another class has the largest logit."""
    return own.argmax(-1) != other.argmax(-1)


def farther_than(tolerance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Whether any output moved by more than this."""
    return lambda own, other: ((own - other).abs() > tolerance).any(-1)


@dataclass(frozen=True)
class RewriteSmoothing:
    """The class that most random writings get, or the median of their values: the same for every text of one meaning.

    `n0` writings name a class; it is answered if the lower Clopper–Pearson bound of its share among `n` more is above
    one half, else -1. Then it is the smoothed classifier's class with confidence 1 - alpha, for each text by itself.

    Args:
        threat: the texts of one meaning.
        n0, n: writings that name the class, and that count it (all of them for a median).
        alpha: probability of a wrong statement about one text.

    Reference: the votes, Cohen et al., ICML 2019, arXiv:1902.02918; random SMILES, Bjerrum, 2017, arXiv:1703.07076.
    Differs from the paper: no noise and no radius; the set is a class of equivalence, covered as a whole.
    """

    threat: Writings
    n0: int = 32
    n: int = 200
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.alpha, self.n0, self.n)

    def __call__(self, outputs: Outputs, texts: Sequence[str], y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for texts (B) with labels y (B,); radius 1 is the whole set.

        Raises: CertifyError for labels that are none, and for an n at which no majority can be shown.
        """
        check_reach(self.n, self.alpha)
        if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32) or y.shape != (len(texts),):
            got = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise CertifyError(f"expected a label for each of {len(texts)} texts, a whole number, got {got}")
        found = self.sampled(outputs, texts, self.n0 + self.n, batch_size)
        check_classes(y, found[0])
        votes, classes = chosen(found.flatten(0, 1)).view(found.shape[:2]), found.shape[2]
        named = tally(votes[:, : self.n0], classes).argmax(1)
        count = (votes[:, self.n0 :] == named[:, None]).sum(1)
        sure = lower_share(count, self.n, self.alpha) > 0.5
        prediction = torch.where(sure, named, -1)
        certified = prediction == y.to(prediction.device)
        nothing = torch.full(certified.shape, torch.nan)
        return Certificate(
            prediction, certified, certified.float(), nothing, self.threat, type(self).__name__, "probabilistic",
            1 - self.alpha,
        )  # fmt: skip

    def median(self, outputs: Outputs, texts: Sequence[str], *, batch_size: int = 64) -> Middle:
        """The median of n writings' values, between two order statistics; a value that is not finite widens the interval.

        Raises: CertifyError for an n that is too small for the confidence.
        """
        found = self.sampled(outputs, texts, self.n, batch_size)
        first, last = median_ranks(self.n, self.alpha / found.shape[2])
        lost = ~found.isfinite()
        low, high = (found.masked_fill(lost, end).sort(1).values for end in (-torch.inf, torch.inf))
        middle = found.masked_fill(lost, torch.nan).nanmedian(1).values
        return Middle(middle, low[:, first], high[:, last], 1 - self.alpha)

    def changed(
        self, outputs: Outputs, texts: Sequence[str], differs: Callable[[Tensor, Tensor], Tensor] = other_class, *,
        batch_size: int = 64,
    ) -> Changed:  # fmt: skip
        """How often a model that reads the text as it is changes its mind over a random writing of it.

        This speaks of drawn writings, not of the worst one: where `share` is 0 some writing may still change the prediction.
        A writing that the model cannot read counts as a change.
        """
        own = answers(outputs, list(texts), batch_size)
        found = self.sampled(outputs, texts, self.n, batch_size)
        lost = ~(found.isfinite().all(2) & own.isfinite().all(1)[:, None])
        count = (differs(own[:, None], found) | lost).sum(1)
        ends = [bound(count, self.n, self.alpha / 2) for bound in (lower_share, upper_share)]
        return Changed(count.double() / self.n, *ends, self.n, 1 - self.alpha)

    def sampled(self, outputs: Outputs, texts: Sequence[str], count: int, batch_size: int) -> Tensor:
        """Outputs for `count` writings of each text (B, count, T); equal writings are asked once."""
        if isinstance(texts, str) or not len(texts):
            raise CertifyError(f"expected at least one text in a list, got {texts!r}")
        rows = tqdm(texts, desc=type(self).__name__, delay=2)
        drawn = [self.threat.draws(text, count, self.seed) for text in rows]
        place = {text: i for i, text in enumerate(dict.fromkeys(text for row in drawn for text in row))}
        known = answers(outputs, list(place), batch_size)
        return known[torch.tensor([[place[text] for text in row] for row in drawn])]


def answers(outputs: Outputs, texts: list[str], batch_size: int) -> Tensor:
    """Outputs (n, T), of the texts in batches."""
    with torch.no_grad():
        found = [outputs(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
    if strange := [type(each).__name__ for each in found if not isinstance(each, Tensor)]:
        raise CertifyError(f"expected outputs as a tensor, got a {strange[0]}")
    whole = torch.cat(found).cpu()
    if whole.ndim != 2 or len(whole) != len(texts):
        raise CertifyError(f"expected outputs ({len(texts)}, T), got {tuple(whole.shape)}")
    return whole
