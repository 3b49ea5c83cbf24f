"""Programs for token sources: a target vocabulary of its own, written in the source's embeddings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reprogram.config import configurable
from reprogram.errors import DataError
from reprogram.programs.base import SourceCodec, first_binding
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record, as_text, shorten

SMILES_TOKEN = re.compile(r"\[[^\[\]]+\]|Br|Cl|%\d{2}|.", re.DOTALL)
SMILES_BASE = (
    *"CcNnOoSsPpFIBb()=#-+/\\.123456789", "Cl", "Br", "[nH]", "[N+]", "[O-]", "[C@H]", "[C@@H]", "[C@]", "[C@@]", "[n+]",
    "[NH+]", "[Si]", "[S+]", "[nH+]", "[Na+]", "[Cl-]",
)  # fmt: skip
SPLITTERS = {"smiles": SMILES_TOKEN.findall, "characters": list, "words": str.split}


def vocabulary(inputs: Iterable[str], *, split: str = "smiles", base: Sequence[str] = SMILES_BASE) -> list[str]:
    """Target tokens: the common SMILES tokens plus whatever the training inputs hold, in a fixed order."""
    found = {token for text in inputs for token in SPLITTERS[split](text)}
    return [*base, *sorted(found - set(base))]


class TargetTokens(nn.Module):
    """Shared by the programs below: target text -> ids of an own vocabulary -> rows of `table()` between the source's
    special tokens. Id 0 is the unknown token."""

    def __init__(self, tokens: Sequence[str], split: str, max_length: int | None):
        super().__init__()
        if len(set(tokens)) != len(tokens) or not tokens:
            raise DataError(
                f"expected a non-empty list of distinct tokens, got {len(tokens)} with {len(set(tokens))} distinct"
            )
        if split not in SPLITTERS:
            raise DataError(f"expected split to be one of {sorted(SPLITTERS)}, got '{split}'")
        self.tokens, self.split, self.max_length = tuple(tokens), split, max_length
        self.ids = {token: i + 1 for i, token in enumerate(self.tokens)}

    def bind(self, source: Source) -> None:
        if source.takes != "tokens" or source.embedding is None:
            raise ValueError(
                f"expected a source with a token embedding table, got '{source.name}' ({source.takes}); use minilm, chemnet, …"
            )
        codec, table = source.codec, source.embedding.detach()
        room = codec.max_length - len(codec.before) - len(codec.after)
        self.limit = room if self.max_length is None else min(self.max_length, room)
        self.register_buffer("before", table[list(codec.before)], persistent=False)
        self.register_buffer("after", table[list(codec.after)], persistent=False)
        if first_binding(self, source):
            self.start(table, [codec.vocabulary.get(token) for token in self.tokens])

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        records = []
        for row, text in enumerate(inputs):
            pieces = SPLITTERS[self.split](as_text(text, row))
            if not 0 < len(pieces) <= self.limit:
                raise DataError(
                    f"expected 1 to {self.limit} tokens, got {len(pieces)} for {shorten(str(text))} in row {row}; drop it or choose another source"
                )
            records.append({"target_ids": torch.tensor([self.ids.get(p, 0) for p in pieces])})
        return records

    def collate(self, records: Sequence[Record]) -> Batch:
        ids = nn.utils.rnn.pad_sequence([r["target_ids"] for r in records], batch_first=True, padding_value=-1)
        return {"target_ids": ids}

    def length(self, record: Record) -> int:
        return len(record["target_ids"])

    def places(self, batch: Batch) -> Tensor:
        """Ids (B, L) of the target tokens where `forward` writes them, -1 where none stands."""
        return nn.functional.pad(batch["target_ids"], (len(self.before), len(self.after)), value=-1)

    def written(self, ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of the ids."""
        return self.table()[ids.clamp_min(0)]

    def forward(self, batch: Batch) -> Batch:
        ids = batch["target_ids"]  # (B, L), -1 where padded
        rows = self.written(ids) * (ids >= 0)[..., None]
        size, width = len(ids), rows.shape[-1]
        before, after = self.before.expand(size, -1, -1), self.after
        closing = rows.new_zeros(size, len(after), width)
        embeds = torch.cat([before, rows, closing], dim=1)
        mask = torch.cat(
            [ids.new_ones(size, len(self.before)), (ids >= 0).long(), ids.new_zeros(size, len(after))], dim=1
        )
        ends = len(self.before) + (ids >= 0).sum(1)
        for k in range(len(after)):  # the closing tokens stand right after each row's own last token
            slot = (ends + k)[:, None] == torch.arange(embeds.shape[1], device=ids.device)
            embeds = torch.where(slot[..., None], after[k], embeds)
            mask = torch.where(slot, 1, mask)
        return {"inputs_embeds": embeds, "attention_mask": mask}


@configurable
class FreeEmbeddings(TargetTokens):
    """One free embedding per target token, started from the source's row of the same token or else a random row.

    Shapes: table (V_T + 1, D). Trainable: (V_T + 1) D.
    """

    def __init__(self, tokens: Sequence[str], *, split: str = "smiles", max_length: int | None = None, seed: int = 0):
        super().__init__(tokens, split, max_length)
        self.seed = seed

    def start(self, table: Tensor, same: list[int | None]) -> None:
        self.rows = nn.Parameter(starting_rows(table, same, self.seed))

    def table(self) -> Tensor:
        return self.rows


@configurable
class Dictionary(TargetTokens):
    r"""Target embeddings as combinations of source embeddings, $V_T = \Theta V_S$; sparse rows make it R2DL's dictionary.

    `sparsity=k` starts each row by orthogonal matching pursuit (scikit-learn) of the starting embeddings and keeps only
    the k largest coefficients of every row after each step; `sparsity=None` is the dense dictionary of ReprogBERT, started
    from least squares (the exact start). `atoms` source rows, drawn once with `seed`, are the dictionary.

    Shapes: codes (V_T + 1, atoms), dictionary (atoms, D) -> table (V_T + 1, D).
    Reference: Vinod, Chen & Das, "Reprogramming Language Models for Molecular Representation Learning", 2020,
    arXiv:2012.03460; dense form: Melnyk et al., "Reprogramming Pretrained Language Models for Antibody Sequence
    Infilling", ICML 2023, arXiv:2210.07144.
    Differs from the paper: Adam on the codes with hard thresholding instead of alternating K-SVD; source atoms fixed.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        sparsity: int | None = 16,
        atoms: int = 2000,
        split: str = "smiles",
        max_length: int | None = None,
        seed: int = 0,
    ):
        super().__init__(tokens, split, max_length)
        if sparsity is not None and sparsity < 1:
            raise DataError(f"expected sparsity of at least 1 or none, got {sparsity}")
        self.sparsity, self.atoms, self.seed = sparsity, atoms, seed

    def start(self, table: Tensor, same: list[int | None]) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        known = torch.tensor([i for i in same if i is not None], dtype=torch.long).unique()
        others = torch.randperm(len(table), generator=generator)
        others = others[~torch.isin(others, known)][: max(0, self.atoms - len(known))]
        chosen = torch.cat([known, others]).sort().values
        self.register_buffer("dictionary", table[chosen], persistent=False)
        wanted = starting_rows(table, same, self.seed).double().cpu().numpy()
        basis = self.dictionary.double().cpu().numpy()
        if self.sparsity is None:
            codes = np.linalg.lstsq(basis.T, wanted.T, rcond=None)[0].T
        else:
            from sklearn.linear_model import orthogonal_mp

            norms = np.linalg.norm(basis, axis=1).clip(1e-12)
            count = min(self.sparsity, *basis.shape)
            with warnings.catch_warnings():  # a row that is a dictionary atom is matched by one coefficient: no fault
                warnings.filterwarnings("ignore", message="Orthogonal matching pursuit ended prematurely")
                codes = orthogonal_mp((basis / norms[:, None]).T, wanted.T, n_nonzero_coefs=count).T / norms
        self.codes = nn.Parameter(torch.from_numpy(np.ascontiguousarray(codes)).float())
        self.project()

    def table(self) -> Tensor:
        return self.codes @ self.dictionary

    @torch.no_grad()
    def project(self) -> None:
        """Keep the `sparsity` largest coefficients of each row: the constraint the paper puts on Θ."""
        if self.sparsity is None or self.sparsity >= self.codes.shape[1]:
            return
        keep = torch.zeros_like(self.codes, dtype=torch.bool)
        keep.scatter_(1, self.codes.abs().topk(self.sparsity, dim=1).indices, True)
        self.codes.masked_fill_(~keep, 0.0)


@configurable
class SoftPrompt(SourceCodec):
    """Learned vectors in front of the source's own tokens, started from random rows of its table.

    Shapes: prompt (P, D); the source then reads P + L embeddings. Trainable: P D.
    Reference: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021, arXiv:2104.08691.
    """

    def __init__(self, *, prompt_length: int = 8, seed: int = 0):
        super().__init__()
        self.prompt_length, self.seed = prompt_length, seed

    def bind(self, source: Source) -> None:
        if source.takes != "tokens" or source.embedding is None:
            raise ValueError(f"expected a source with a token embedding table, got '{source.name}' ({source.takes})")
        new = getattr(self, "bound_to", None) is None
        super().bind(source)
        self.register_buffer("embedding", source.embedding.detach(), persistent=False)
        if new:
            self.prompt = nn.Parameter(starting_rows(self.embedding, [None] * (self.prompt_length - 1), self.seed))

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        records, limit = super().encode(inputs), self.codec.max_length - self.prompt_length
        for row, record in enumerate(records):
            if self.length(record) > limit:
                raise DataError(
                    f"expected at most {limit} tokens beside a prompt of {self.prompt_length}, got {self.length(record)} "
                    f"for {shorten(str(inputs[row]))} in row {row}; drop it or shorten the prompt"
                )
        return records

    def forward(self, batch: Batch) -> Batch:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        prompt = self.prompt.expand(len(ids), -1, -1)
        return {
            "inputs_embeds": torch.cat([prompt, self.embedding[ids]], dim=1),
            "attention_mask": torch.cat([mask.new_ones(prompt.shape[:2]), mask], dim=1),
        }


def starting_rows(table: Tensor, same: Sequence[int | None], seed: int) -> Tensor:
    """(1 + len(same), D): row 0 the mean row for unknown tokens, then the source's own row or else a random row."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(table), (len(same),), generator=generator)
    chosen = torch.tensor([int(d) if s is None else s for s, d in zip(same, drawn, strict=True)], dtype=torch.long)
    return torch.cat([table.mean(0, keepdim=True), table[chosen]]).clone()


@configurable
class Rewriter(TargetTokens):
    r"""Each target token becomes a source token, chosen by its neighbourhood: $P_t = \mathrm{softmax}(\text{conv}_5(x)_t / \tau)$.

    A convolution of width 5 over one-hot target tokens scores `words` of the source's tokens. In training a
    Gumbel-softmax draws one at temperature τ; the answer is the most likely one, so the source only ever reads tokens it
    knows.

    Shapes: ids (B, L) -> inputs_embeds (B, L, D). Trainable: 5 (V_T + 1) `hidden` + `hidden` `words`, and offsets.
    Reference: Neekhara et al., "Adversarial Reprogramming of Text Classification Neural Networks", EMNLP 2019,
    arXiv:1809.01829. Differs from the paper: a narrow layer between, and `words` source rows drawn once instead of all.
    """

    def __init__(
        self, tokens: Sequence[str], *, split: str = "smiles", words: int = 2000, hidden: int = 32, temperature: float = 1.0,
        max_length: int | None = None, seed: int = 0,
    ):  # fmt: skip
        super().__init__(tokens, split, max_length)
        if temperature <= 0:
            raise DataError(f"expected a temperature above 0, got {temperature}")
        self.words, self.hidden, self.temperature, self.seed = words, hidden, temperature, seed

    def bind(self, source: Source) -> None:
        super().bind(source)
        table = source.embedding.detach()
        drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(self.seed))[: self.words]
        self.register_buffer("dictionary", table[drawn.sort().values], persistent=False)

    def start(self, table: Tensor, same: list[int | None]) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.seed)
            self.window = nn.Conv1d(len(self.tokens) + 1, self.hidden, 5, padding=2)
            self.choice = nn.Linear(self.hidden, min(self.words, len(table)))

    def written(self, ids: Tensor) -> Tensor:
        seen = nn.functional.one_hot(ids.clamp_min(0), len(self.tokens) + 1).to(self.dictionary) * (ids >= 0)[..., None]
        scores = self.choice(self.window(seen.transpose(1, 2)).relu().transpose(1, 2))
        if self.training:
            chosen = nn.functional.gumbel_softmax(scores, tau=self.temperature, hard=True)
        else:
            chosen = nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores)
        return chosen @ self.dictionary
