r"""Texts in which words may be replaced by others: every replacement tried, or a vote over random ones.

`Substitutions` of `adversarial.attacks.tokens` says what an attack may put where in one text; here `Synonyms` says it for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor, nn

from adversarial.attacks.tokens import Substitutions, Tokens
from adversarial.streams import Streams, shifted
from certify.certificate import Certificate
from certify.checks import answers, check_labels
from certify.engine.tracing import check_still
from certify.errors import CertifyError
from certify.randomised.votes import BoundsOf, check_bounds, check_sampling, counted, shares


@dataclass(frozen=True)
class Synonyms:
    """Token rows in which at most `most` tokens w are replaced by one of words[w]; None for any number.

    Tokens without an entry (padding, special ones) stay.
    """

    words: Mapping[int, tuple[int, ...]]
    most: int | None = None

    def space(self, row: Tokens) -> Substitutions:
        """What an attack on this row searches."""
        allowed = tuple(tuple(w for w in self.words.get(token, ()) if w != token) for token in row)
        return Substitutions(tuple(row), allowed, self.most)

    def changes(self, row: Tokens) -> int:
        """The largest number of tokens that can be replaced."""
        free = sum(bool(words) for words in self.space(row).allowed)
        return free if self.most is None else min(free, self.most)

    def size(self, row: Tokens) -> int:
        """How many texts there are, the row itself among them."""
        counts = [1]  # with 0, 1, … replacements
        for words in self.space(row).allowed:
            if words:
                counts = [a + len(words) * b for a, b in zip([*counts, 0], [0, *counts], strict=True)]
        return sum(counts[: self.changes(row) + 1])

    def texts(self, row: Tokens, changes: int) -> Iterator[Tokens]:
        """All with exactly so many replacements."""
        allowed = self.space(row).allowed
        free = [place for place, words in enumerate(allowed) if words]
        for places in combinations(free, changes):
            for words in product(*(allowed[place] for place in places)):
                new = dict(zip(places, words, strict=True))
                yield tuple(new.get(place, token) for place, token in enumerate(row))


def rows_of(ids: Tensor) -> list[Tokens]:
    """Rows of token ids (B, L). Raises: CertifyError for anything else."""
    if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32) or not ids.numel() or int(ids.min()) < 0:
        raise CertifyError(f"expected token ids (B, L) from 0, got {tuple(ids.shape)} of {ids.dtype}")
    return [tuple(row) for row in ids.tolist()]


@dataclass(frozen=True)
class Enumeration:
    """Every text of the set is read: exact, for small sets. Radius is a number of replacements, margin the least of all texts.

    Args:
        threat: which words stand for which.
        limit: texts of one row at most; a row with more is refused.
    """

    threat: Synonyms
    limit: int = 100_000

    @torch.no_grad()
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for token ids x (B, L) with labels y (B,), of a model that reads ids.

        Raises: CertifyError for labels that are none, and for a row with more texts than `limit`.
        """
        check_labels(x, y)
        check_still(model)
        rows = rows_of(x)
        for number, row in enumerate(rows):
            if (size := self.threat.size(row)) > self.limit:
                raise CertifyError(
                    f"expected at most {self.limit} texts for a row, got {size} for row {number}; use SAFER, most= or a larger limit="
                )
        logits = answers(model, x, y, batch_size)
        found = [self.row(model, x[[i]], row, int(y[i]), batch_size) for i, row in enumerate(rows)]
        radius, margin = (torch.tensor(part, dtype=logits.dtype, device=x.device) for part in zip(*found, strict=True))
        reach = torch.tensor([self.threat.changes(row) for row in rows], device=x.device)
        certified = (logits.argmax(1) == y) & (margin > 0)
        radius = torch.where(certified, reach.to(radius), radius.clamp_min(0))
        return Certificate(
            logits.argmax(1), certified, radius, margin, self.threat, type(self).__name__, "deterministic"
        )  # fmt: skip

    def row(self, model: nn.Module, x: Tensor, row: Tokens, label: int, size: int) -> tuple[int, float]:
        """The most replacements that never change the label, -1 for none, and the least margin over all texts."""
        radius, least = -1, math.inf
        for changes in range(self.threat.changes(row) + 1):
            texts = torch.tensor(list(self.threat.texts(row, changes)), dtype=x.dtype, device=x.device)
            for some in texts.split(size):
                logits = model(some)
                others = logits.scatter(1, torch.full((len(some), 1), label, device=x.device), -math.inf).amax(1)
                margins = torch.where(logits.isfinite().all(1), logits[:, label] - others, -math.inf)
                least = min(least, float(margins.min()))
            if least > 0:
                radius = changes
        return radius, least


@dataclass(frozen=True)
class SAFER:
    r"""A vote over texts of which every token is replaced by a random one of its neighbours P_w (itself among them).

    A replacement of w by w' moves the draws of its place by $1 - |P_w \cap P_{w'}| / \max(|P_w|, |P_{w'}|)$ at most; with
    q_w the smallest overlap over words[w], r replacements move the share of every class by at most $1 - \prod q_w$ over the
    r tokens of smallest q_w. The radius is the largest r for which the share stays above one half, or with
    `bounds="both"` above that of all others.

    Args:
        threat: which words stand for which.
        neighbours: P_w without w itself; by default the threat's own words. Larger sets that overlap more certify more, and
            the model hears less. Where words fall into classes of equals, q_w is 1 and any number of replacements is covered.
        n0, n: draws that name the class, and that count it.
        alpha: probability of a wrong statement about one text.

    Reference: Ye, Gong & Liu, "SAFER: a structure-free approach for certified robustness to adversarial word
    substitutions", ACL 2020, arXiv:2005.14424.
    Differs from the paper: Clopper–Pearson bounds in the place of Hoeffding's, and overlaps of sets of unequal size.
    """

    threat: Synonyms
    neighbours: Mapping[int, tuple[int, ...]] | None = None
    n0: int = 100
    n: int = 5000
    alpha: float = 0.01
    bounds: BoundsOf = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.alpha, self.n0, self.n)
        check_bounds(self.bounds, self.n, self.alpha)

    @torch.no_grad()
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 64) -> Certificate:
        """Certificates for token ids x (B, L) with labels y (B,), of a model that reads ids; radius counts replacements.

        Raises: CertifyError for labels that are none.
        """
        check_labels(x, y)
        check_still(model)
        rows, streams = rows_of(x), Streams(x, self.seed)
        table, sizes = (part.to(x.device) for part in self.table(int(x.max())))

        def draw(some: Tensor, draws: int) -> Tensor:
            own = x[some].long()[:, None].expand(-1, draws, -1)
            bits = shifted(streams.bits(some, draws * x.shape[1]), 11).view_as(own)
            return table[own, bits % sizes[own]].flatten(0, 1).to(x.dtype)

        named = counted(model, y, draw, self.n0, batch_size).argmax(1)
        counts = counted(model, y, draw, self.n, batch_size)
        low, high = shares(counts, named, self.n, self.alpha, self.bounds)
        reach = torch.tensor([self.threat.changes(row) for row in rows], device=x.device)
        gaps = zip(rows, (low - high).tolist(), strict=True)
        radius = torch.tensor([self.radius(row, gap) for row, gap in gaps], device=x.device)
        prediction = torch.where(radius >= 0, named, -1)
        certified = (prediction == y) & (radius >= reach)
        radius = torch.where(prediction == y, torch.minimum(radius, reach), 0).double()
        return Certificate(
            prediction, certified, radius, torch.full_like(radius, torch.nan), self.threat, type(self).__name__,
            "probabilistic", 1 - self.alpha,
        )  # fmt: skip

    def near(self, token: int) -> frozenset[int]:
        """P_w."""
        words = self.threat.words if self.neighbours is None else self.neighbours
        return frozenset((token, *words.get(token, ())))

    def overlap(self, token: int) -> float:
        """q_w."""
        own = self.near(token)
        others = [self.near(word) for word in self.threat.words.get(token, ()) if word != token]
        return min((len(own & other) / max(len(own), len(other)) for other in others), default=1.0)

    def radius(self, row: Tokens, gap: float) -> int:
        """The most replacements, -1 where not even the class itself is sure."""
        if gap <= 0:
            return -1
        free = [self.overlap(token) for token, words in zip(row, self.threat.space(row).allowed, strict=True) if words]
        kept, found = 1.0, 0
        for number, overlap in enumerate(sorted(free), start=1):
            kept *= overlap
            if gap > 2 * (1 - kept) + 1e-12:  # the share of the class falls, that of another grows
                found = number
        return found

    def table(self, largest: int) -> tuple[Tensor, Tensor]:
        """Neighbours of every token (V, K), the first `sizes` (V,) of each row."""
        near = [sorted(self.near(token)) for token in range(largest + 1)]
        width = max(len(words) for words in near)
        return torch.tensor([words + words[:1] * (width - len(words)) for words in near]), torch.tensor(
            [len(words) for words in near]
        )
