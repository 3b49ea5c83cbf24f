"""A frozen encoder–decoder as a space to search molecules in: to code and back, and drawing neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from reprogram.errors import DataError
from reprogram.sources.annalog import tokenize
from reprogram.sources.decoding import beam, sample
from tasks.labels import short


@dataclass(frozen=True)
class Codes:
    """Points of a space: `values` (G, M, D) with `mask` (G, M), 1 where a molecule has a token; M is 1 for vectors."""

    values: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> Codes:
        return Codes(self.values[rows], self.mask[rows])

    def like(self, points: Tensor) -> Codes:
        """Other values (n, …) for the tokens of this one point."""
        return Codes(points.view(-1, *self.values.shape[1:]), self.mask.expand(len(points), -1))

    def perturbed(self, copies: int, noise: tuple[float, float], generator: torch.Generator | None = None) -> Codes:
        """`copies` of every point, point by point, each with Gaussian noise of a width drawn between both numbers.

        Widths are in standard deviations of the codes (`scale`).
        """
        values, mask = self.values.repeat_interleave(copies, 0), self.mask.repeat_interleave(copies, 0)
        low, high = noise
        width = low + (high - low) * torch.rand(len(values), 1, 1, generator=generator)
        return Codes(values + width * self.scale * torch.randn(values.shape, generator=generator), mask)

    @property
    def scale(self) -> float:
        """Standard deviation of the values that stand for a token: the unit of a perturbation."""
        return float(self.values[self.mask.bool()].std())


class Space(Protocol):
    """What a search needs of an encoder–decoder.

    `refuses` says why a SMILES cannot be encoded, None where it can. `decode` writes one SMILES per point, the likeliest
    (with `beams`, the likeliest sequence found by a beam search of that width). `neighbours` draws `copies` molecules near
    each point, the farther the higher the `temperature`; they come point by point.
    """

    name: str

    def refuses(self, smiles: str) -> str | None: ...
    def encode(self, smiles: Sequence[str]) -> Codes: ...
    def decode(self, codes: Codes, *, beams: int = 1) -> list[str]: ...
    def neighbours(
        self, codes: Codes, copies: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> list[str]: ...


class AnnalogSpace:
    """ANNalog's encoder memory and its decoder; neighbours are drawn token by token from the decoder.

    Reference: Dai et al., "ANNalog", ChemRxiv 2025, doi:10.26434/chemrxiv-2025-9c1v6.
    """

    name = "annalog"

    def __init__(self, source: Any = None):
        from reprogram.sources import load

        source = load("annalog") if source is None else source
        self.network, self.codec = source.network.model.eval(), source.codec
        vocabulary = self.codec.vocabulary
        self.start, self.end = vocabulary["<sos>"], vocabulary["<eos>"]
        self.words = {index: token for token, index in vocabulary.items()}

    def refuses(self, smiles: str) -> str | None:
        """The token that is not in the vocabulary, or too many tokens."""
        tokens = tokenize(smiles)
        if strange := [token for token in tokens if token not in self.codec.vocabulary]:
            return f"the decoder does not know {short(strange[0])}"
        room = self.codec.max_length - 2
        return f"it has {len(tokens)} tokens, the decoder writes {room}" if len(tokens) > room else None

    @torch.no_grad()
    def encode(self, smiles: Sequence[str]) -> Codes:
        batch = self.codec.collate(self.codec.encode(list(smiles)))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return Codes(self.network.encode(self.network.encoder.tokens(ids), mask), mask)

    def decode(self, codes: Codes, *, beams: int = 1) -> list[str]:
        if beams > 1:
            best = beam(self.network, codes.values, codes.mask, start=self.start, end=self.end, width=beams)[:, 0]
            return self.written(best)
        return self.written(
            sample(self.network, codes.values, codes.mask, start=self.start, end=self.end, temperature=0.0)
        )

    def neighbours(
        self, codes: Codes, copies: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> list[str]:
        ids = sample(
            self.network, codes.values, codes.mask, start=self.start, end=self.end, copies=copies,
            temperature=temperature, generator=generator,
        )  # fmt: skip
        return self.written(ids)

    def written(self, ids: Tensor) -> list[str]:
        """Token ids (B, T) as SMILES."""
        found = []
        for row in ids.tolist():
            stop = row.index(self.end) if self.end in row else len(row)
            found.append("".join(self.words[i] for i in row[:stop]))
        return found


class HubSpace:
    """Any sequence-to-sequence model of `transformers` that reads and writes SMILES.

    `name` is a local folder or a hub id in the local cache; nothing is downloaded.
    """

    def __init__(self, name: str, *, max_length: int = 128):
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
            self.model = AutoModelForSeq2SeqLM.from_pretrained(name, local_files_only=True).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise DataError(f"expected a sequence-to-sequence model in {short(name)}, got none ({error})") from error
        self.name, self.max_length = name, max_length

    def refuses(self, smiles: str) -> str | None:
        ids = self.tokenizer(smiles)["input_ids"]
        if len(ids) > self.max_length:
            return f"it has {len(ids)} tokens, more than {self.max_length}"
        unknown = self.tokenizer.unk_token_id
        return f"the tokenizer does not know all of {short(smiles)}" if unknown is not None and unknown in ids else None

    @torch.no_grad()
    def encode(self, smiles: Sequence[str]) -> Codes:
        batch = self.tokenizer(list(smiles), return_tensors="pt", padding=True)
        state = self.model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return Codes(state.last_hidden_state, batch["attention_mask"])

    def decode(self, codes: Codes, *, beams: int = 1) -> list[str]:
        return self.generated(codes, num_beams=beams, do_sample=False)

    def neighbours(
        self, codes: Codes, copies: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> list[str]:
        # transformers draws from the global generator only: it is set aside for the while
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            return self.generated(codes, do_sample=True, temperature=temperature, num_return_sequences=copies)

    @torch.no_grad()
    def generated(self, codes: Codes, **options: Any) -> list[str]:
        from transformers.modeling_outputs import BaseModelOutput

        ids = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=codes.values), attention_mask=codes.mask,
            max_length=self.max_length, **options,
        )  # fmt: skip
        return [text.replace(" ", "") for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class PairSpace:
    """A user's `(encode, decode)`: SMILES to vectors (n, D), and vectors to SMILES. Neighbours are Gaussian around a point.

    `spread` is the standard deviation of that cloud at temperature 1, in standard deviations of the codes.
    """

    def __init__(
        self, encode: Callable[[list[str]], Any], decode: Callable[[np.ndarray], Sequence[str]], *, spread: float = 0.5,
        name: str = "pair",
    ):  # fmt: skip
        self._encode, self._decode, self.spread, self.name = encode, decode, spread, name

    def refuses(self, smiles: str) -> str | None:
        try:
            self.encode([smiles])
        except (ValueError, KeyError) as error:
            return str(error) or type(error).__name__
        return None

    def encode(self, smiles: Sequence[str]) -> Codes:
        values = torch.as_tensor(np.asarray(self._encode(list(smiles)), dtype=np.float32))
        if values.ndim != 2 or len(values) != len(smiles) or not bool(values.isfinite().all()):
            raise DataError(
                f"expected finite vectors (n, D) from the encoder, got {tuple(values.shape)} for {len(smiles)} SMILES"
            )
        return Codes(values[:, None], torch.ones(len(values), 1, dtype=torch.long))

    def decode(self, codes: Codes, *, beams: int = 1) -> list[str]:
        found = [str(text) for text in self._decode(codes.values[:, 0].numpy())]
        if len(found) != len(codes):
            raise DataError(f"expected {len(codes)} SMILES from the decoder, got {len(found)}")
        return found

    def neighbours(
        self, codes: Codes, copies: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> list[str]:
        points = codes.values.repeat_interleave(copies, 0)
        scale = self.spread * temperature * codes.scale
        noise = torch.randn(points.shape, generator=generator)
        return self.decode(Codes(points + scale * noise, codes.mask.repeat_interleave(copies, 0)))


def space(what: Any = "annalog") -> Space:
    """A space by name, folder or hub id; a pair of functions; or a space itself."""
    if isinstance(what, str):
        return AnnalogSpace() if what == "annalog" else HubSpace(what)
    if isinstance(what, tuple) and len(what) == 2:
        return PairSpace(*what, name=" ".join(["pair", *(getattr(f, "__qualname__", type(f).__name__) for f in what)]))
    if all(hasattr(what, name) for name in ("encode", "decode", "neighbours", "refuses")):
        return what
    raise DataError(f"expected annalog, a folder, a hub id or (encode, decode), got {short(what)}")


def entry(found: Space, smiles: str) -> tuple[str | None, str]:
    """The form of a molecule that the space can read, and what was changed or why there is none.

    As it is; without stereochemistry; without charges that hydrogens can take; without both.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.MolStandardize import rdMolStandardize

    if (reason := found.refuses(smiles)) is None:
        return smiles, ""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        neutral = rdMolStandardize.Uncharger().uncharge(mol)
        forms = (
            (Chem.MolToSmiles(mol, isomericSmiles=False), "without stereochemistry"),
            (Chem.MolToSmiles(neutral), "neutralised"),
            (Chem.MolToSmiles(neutral, isomericSmiles=False), "neutralised, without stereochemistry"),
        )
    for form, change in forms:
        if found.refuses(form) is None:
            return form, change
    return None, reason
