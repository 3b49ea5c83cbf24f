"""Tokens as discrete substitutes: which may stand where, and what a model of embeddings says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from adversarial.attacks.asking import Flip, reached_at, score_of
from adversarial.goals import Goal
from adversarial.probe import inspected, logits_of

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Substitutions:
    """Token rows that differ from `start` in at most `most` places, with tokens of `allowed[l]` in place l.

    An empty set, or one with the start's own token only, freezes a place (padding, start and end tokens).

    Raises: ValueError when there is not one set for each place.
    """

    start: Tokens
    allowed: tuple[Tokens, ...]
    most: int | None = None

    def __post_init__(self) -> None:
        if len(self.allowed) != len(self.start):
            raise ValueError(f"expected a set for each of {len(self.start)} places, got {len(self.allowed)}")

    @classmethod
    def over(
        cls, start: Sequence[int], vocabulary: Sequence[int], places: Sequence[bool] | None = None,
        most: int | None = None,
    ) -> Substitutions:  # fmt: skip
        """Any token of `vocabulary` in the places that are marked, by default in all."""
        own = tuple(int(token) for token in start)
        marked = [True] * len(own) if places is None else [bool(place) for place in places]
        words = tuple(int(token) for token in vocabulary)
        return cls(own, tuple(words if place else () for place in marked), most)

    @classmethod
    def of_each(cls, ids: Tensor, vocabulary: Sequence[int], most: int | None = None) -> list[Substitutions]:
        """One for each row of ids (B, L), in which -1 marks places without a token (padding, a prompt): they stay so."""
        return [cls.over(row, vocabulary, [token >= 0 for token in row], most) for row in ids.tolist()]

    def changed(self, candidate: Tokens) -> int:
        return sum(new != old for new, old in zip(candidate, self.start, strict=True))

    def may(self, candidate: Tokens) -> list[int]:
        """Places where another token may be put."""
        full = self.most is not None and self.changed(candidate) >= self.most
        return [
            place for place, words in enumerate(self.allowed)
            if any(word != candidate[place] for word in words) and not (full and candidate[place] == self.start[place])
        ]  # fmt: skip

    def neighbours(self, candidate: Tokens, rng: Random) -> list[Tokens]:
        return [
            put(candidate, place, word)
            for place in self.may(candidate)
            for word in self.allowed[place]
            if word != candidate[place]
        ]

    def mutated(self, candidate: Tokens, rng: Random) -> Tokens:
        places = self.may(candidate)
        if not places:
            return candidate
        place = rng.choice(places)
        return put(candidate, place, rng.choice([word for word in self.allowed[place] if word != candidate[place]]))

    def crossed(self, first: Tokens, second: Tokens, rng: Random) -> Tokens:
        """Each token from either parent; where that are too many changes, random ones are taken back."""
        child = [rng.choice(pair) for pair in zip(first, second, strict=True)]
        different = [place for place, token in enumerate(child) if token != self.start[place]]
        over = 0 if self.most is None else max(len(different) - self.most, 0)
        for place in rng.sample(different, over):
            child[place] = self.start[place]
        return tuple(child)

    def flips(self, candidate: Tokens, table: Tensor, count: int) -> list[Flip]:
        """The `count` allowed flips with the largest entry in a table (L, V), largest first."""
        places = self.may(candidate)
        pairs = [(p, w) for p in places for w in self.allowed[p] if w != candidate[p]]
        if not pairs:
            return []
        where = torch.tensor(pairs, device=table.device)
        gains, order = table[where[:, 0], where[:, 1]].topk(min(count, len(pairs)))
        return [(gain, put(candidate, *pairs[one])) for gain, one in zip(gains.tolist(), order.tolist(), strict=True)]


def put(candidate: Tokens, place: int, token: int) -> Tokens:
    return (*candidate[:place], token, *candidate[place + 1 :])


class TokenScore:
    r"""Scores of token rows under a module that reads embeddings (b, L, D) and returns logits, for `DiscreteSearch`.

    `swaps` adds the first-order estimate $\nabla_{e_l}^T (E_v - E_{x_l})$ of every substitution. `reached` is the score above
    which the goal is.

    With `inputs` the module reads the attention mask as one more column, (b, L, D + 1), as that of a reprogrammed model's
    `continuous` view does: rows of any length, padded to L. Each candidate is read with its own start's mask, and a place
    with a token of -1 as it stands in `inputs`.

        tokens = view.tokens
        score = TokenScore(view.module, tokens.table, Untargeted(y), view.inputs)
        spaces = Substitutions.of_each(tokens.ids, list(tokens.words), most=2)
        Beam()(score, [space.start for space in spaces], spaces)

    Shapes: table (V, D), goal of B rows, inputs (B, L, D + 1).

    Raises: ValueError for a token where the mask is 0, and for one of -1 without `inputs`.
    """

    def __init__(self, model: nn.Module, table: Tensor, goal: Goal, inputs: Tensor | None = None):
        self.model, self.table, self.goal = model, table.detach(), goal
        self.inputs = None if inputs is None else inputs.detach()
        self.reached = reached_at(goal)

    def embedded(self, candidates: list[Tokens], rows: list[int]) -> tuple[Tensor, Tensor]:
        """Ids (b, L) and what the module reads."""
        ids = torch.tensor(candidates, device=self.table.device)
        stands, written = ids >= 0, self.table[ids.clamp_min(0)]
        if self.inputs is None:
            if not bool(stands.all()):
                raise ValueError("expected tokens of 0 or more, got -1; pass inputs= with the attention mask")
            return ids, written
        own = self.inputs[torch.tensor(rows, device=ids.device)]
        wrong = (stands & (own[..., -1] == 0)).nonzero().tolist()
        if wrong:
            raise ValueError(f"expected -1 where the attention mask is 0, got a token in place {wrong[0][1]}")
        written = torch.where(stands[..., None], written, own[..., :-1])
        return ids, torch.cat([written, own[..., -1:]], 2)

    def scores(self, embeddings: Tensor, rows: list[int]) -> Tensor:
        with inspected(self.model, embeddings):
            outputs = logits_of(self.model(embeddings), len(rows))
        goal = self.goal[torch.tensor(rows, device=outputs.device)]
        goal.check(outputs.detach())
        return score_of(outputs, goal)

    @torch.no_grad()
    def __call__(self, candidates: list[Tokens], rows: list[int]) -> Tensor:
        return self.scores(self.embedded(candidates, rows)[1], rows)

    def swaps(self, candidates: list[Tokens], rows: list[int]) -> tuple[Tensor, Tensor]:
        ids, embeddings = self.embedded(candidates, rows)
        embeddings.requires_grad_()
        with torch.enable_grad():
            scores = self.scores(embeddings, rows)
            (gradient,) = torch.autograd.grad(scores.sum(), embeddings)
        gain = gradient[..., : self.table.shape[1]] @ self.table.T
        own = gain.gather(2, ids.clamp_min(0)[..., None])
        return scores.detach(), (gain - own).masked_fill((ids < 0)[..., None], -torch.inf)
