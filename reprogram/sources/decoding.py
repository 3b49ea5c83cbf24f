"""ANNalog's decoder one token at a time: what was read is not read again, and finished rows leave the batch.

Legend: G encoded molecules with a memory (G, M, D), R sequences written for each, B = G R rows of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reprogram.sources.annalog import HEADS, LENGTH, Annalog, Block

WORTH = 0.75  # of the rows or fewer still open: then copying them together costs less than carrying the others along


def heads(x: Tensor) -> Tensor:
    """(G, L, D) -> (G, heads, L, D / heads)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Step:
    """One decoder block with the keys and values of the positions that it has seen; a memory is kept once for its R rows."""

    def __init__(self, block: Block, memory: Tensor, rows: int):
        own, cross = block.attention, block.cross
        assert cross is not None and block.cross_norm is not None
        self.block, self.cross, self.cross_norm = block, cross, block.cross_norm
        parts = (own.query, own.key, own.value)
        self.weight, self.bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        self.memory = [heads(cross.key(memory)).contiguous(), heads(cross.value(memory)).contiguous()]
        shape = (rows, HEADS, LENGTH, memory.shape[2] // HEADS)
        self.past = [memory.new_empty(shape), memory.new_empty(shape)]

    def __call__(self, x: Tensor, t: int, seen: Tensor | None) -> Tensor:
        """What the block makes of position t, (B, D) -> (B, D)."""
        block, rows = self.block, len(x)
        query, *new = F.linear(x, self.weight, self.bias).view(rows, 3, HEADS, -1).unbind(1)
        for past, value in zip(self.past, new, strict=True):
            past[:, :, t] = value
        found = F.scaled_dot_product_attention(query[:, :, None], *(past[:, :, : t + 1] for past in self.past))
        x = block.attention_norm(x + block.attention.out(found.flatten(1)))
        query = heads(self.cross.query(x).view(len(self.memory[0]), -1, x.shape[1]))
        found = F.scaled_dot_product_attention(query, *self.memory, attn_mask=seen)
        x = self.cross_norm(x + self.cross.out(found.transpose(1, 2).reshape_as(x)))
        return block.hidden_norm(x + block.hidden(x))

    def keep(self, groups: Tensor, rows: Tensor, t: int) -> None:
        """Only these memories and rows from now on; positions below t are copied."""
        for i, past in enumerate(self.past):
            self.past[i] = past.new_empty((len(rows), *past.shape[1:]))
            self.past[i][:, :, :t] = past[:, :, :t][rows]
        if len(groups) < len(self.memory[0]):
            self.memory = [part[groups] for part in self.memory]


class Decoder:
    """Next-token logits of R rows per memory, one position after the other; `mask` (G, M) is 1 where a memory has tokens."""

    def __init__(self, model: Annalog, memory: Tensor, mask: Tensor | None = None, *, copies: int = 1):
        self.stack, self.readout, self.t = model.decoder, model.readout, 0
        self.steps = [Step(block, memory, len(memory) * copies) for block in model.decoder.blocks]
        self.seen = None if mask is None or bool(mask.all()) else mask[:, None, None].bool()

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (B, V) of what follows `ids` (B,), the tokens of the position that is next."""
        x = self.stack.tokens.weight[ids] * self.stack.tokens.embedding_dim**0.5 + self.stack.positions.weight[self.t]
        for step in self.steps:
            x = step(x, self.t, self.seen)
        self.t += 1
        return self.readout(x)

    def keep(self, groups: Tensor, rows: Tensor) -> None:
        """Only these memories (G',) and rows (B',) from now on, the rows of one memory together and equally many each."""
        for step in self.steps:
            step.keep(groups, rows, self.t)
        self.seen = None if self.seen is None else self.seen[groups]


@torch.no_grad()
def sample(
    model: Annalog, memory: Tensor, mask: Tensor | None, *, start: int, end: int, copies: int = 1,
    temperature: float = 1.0, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """`copies` sequences of token ids per memory, (G R, T) filled with `end`; temperature 0 takes the likeliest token.

    A row's draws are its own, whatever its batch mates do: one uniform number per position finds its token.
    """
    decoder = Decoder(model, memory, mask, copies=copies)
    rows = torch.arange(len(memory) * copies, device=memory.device)
    ids = torch.full((len(rows), LENGTH), end, device=memory.device)
    last, going = torch.full_like(rows, start), torch.ones_like(rows, dtype=torch.bool)
    draws = torch.rand(len(rows), LENGTH, generator=generator).to(memory.device) if temperature > 0 else None
    for t in range(LENGTH):
        logits = decoder(last)
        last = logits.argmax(1) if draws is None else drawn(logits / temperature, draws[rows, t])
        last = torch.where(going, last, end)
        ids[rows, t], going = last, last != end
        if not going.any():
            break
        groups, kept = still(going.view(len(memory), -1))
        if len(kept) <= WORTH * len(rows):
            decoder.keep(groups, kept)
            memory, rows, last, going = memory[groups], rows[kept], last[kept], going[kept]
    return ids


def drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """The tokens (B,) that uniform numbers (B,) pick from the softmax of logits (B, V)."""
    total = logits.softmax(1).cumsum(1)
    return torch.searchsorted(total, draws[:, None] * total[:, -1:], right=True)[:, 0].clamp_max(logits.shape[1] - 1)


def still(going: Tensor) -> tuple[Tensor, Tensor]:
    """The memories with an open row, and for each as many of its rows, open ones first, as the one with most has open."""
    groups = going.any(1).nonzero()[:, 0]
    count = int(going.sum(1).max())
    first = going[groups].long().argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
    return groups, (groups[:, None] * going.shape[1] + first).flatten()


@torch.no_grad()
def beam(
    model: Annalog, memory: Tensor, mask: Tensor | None, *, start: int, end: int, width: int = 5
) -> Tensor:  # fmt: skip
    """The `width` likeliest sequences that a beam search finds per memory, best first: ids (G, width, T) filled with `end`.

    Scores are log-likelihoods, not divided by length; a finished sequence keeps its place until a better one takes it.
    """
    groups, device = len(memory), memory.device
    decoder = Decoder(model, memory, mask, copies=width)
    ids = torch.full((groups, width, LENGTH), end, device=device)
    scores = torch.full((groups, width), float("-inf"), device=device)
    scores[:, 0] = 0.0  # all beams start alike: only one of them may branch at first
    last = torch.full((groups * width,), start, device=device)
    done = torch.zeros(groups, width, dtype=torch.bool, device=device)
    offset = torch.arange(groups, device=device)[:, None] * width
    for t in range(LENGTH):
        logits = decoder(last).log_softmax(1).view(groups, width, -1)
        closed = torch.full_like(logits, float("-inf"))
        closed[..., end] = 0.0
        total = scores[..., None] + torch.where(done[..., None], closed, logits)
        scores, best = total.flatten(1).topk(width, dim=1)
        parents, tokens = best // logits.shape[2], best % logits.shape[2]
        ids = ids.gather(1, parents[..., None].expand_as(ids)).clone()
        ids[..., t] = tokens
        done = done.gather(1, parents) | (tokens == end)
        if done.all():
            break
        decoder.keep(torch.arange(groups, device=device), (offset + parents).flatten())
        last = tokens.flatten()
    return ids
