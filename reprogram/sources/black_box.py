"""Models that can only be asked: any callable from arrays to an array, with a count of what was asked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from reprogram.errors import DataError
from reprogram.sources.ledger import Ledger

T = TypeVar("T")


class BlackBox(nn.Module):
    r"""A callable as a network: arrays in, one array (B, width) out, no gradient; what is asked is counted and kept.

    Args:
        function: takes one array (B, …), or several by keyword where the source takes several, and returns (B, width). It
            may raise `Unanswered`, `OSError` or `TimeoutError`, and is then asked again.
        returns: what it answers: "probabilities", turned into logits by the logarithm, "logits" or "features".
        budget: queries (inputs, the unit in which a remote model is paid for) it may be asked in all.
        cache: True to remember answers in memory, a path to remember them and the counts in a file, False to forget.
            An input is never sent twice while it is remembered.
        price: cost of one query, in any currency.
        retries, wait: how often a call without an answer is repeated, after `wait`, 2 `wait`, 4 `wait`, … seconds.
        file: the model's file, whose SHA-256 stands for the weights in the digest of the source.

    Raises: BudgetError before the budget would be exceeded; DataError for an answer that is not (B, width) finite
    numbers, or none after all retries. What was answered before is kept.
    """

    def __init__(
        self, function: Callable[..., Any], *, returns: str = "probabilities", budget: int | None = None,
        cache: str | Path | bool = True, price: float = 0.0, retries: int = 4, wait: float = 0.5, file: Path | None = None,
    ):  # fmt: skip
        super().__init__()
        if returns not in ("probabilities", "logits", "features"):
            raise DataError(f"expected returns to be probabilities, logits or features, got {returns!r}")
        if budget is not None and budget < 1:
            raise DataError(f"expected a budget of at least one query, got {budget}")
        self.function, self.returns, self.retries, self.wait = function, returns, retries, wait
        self.remembers = cache is not False
        self.ledger = Ledger(None if isinstance(cache, bool) else cache, price=price, budget=budget)
        digest = hashlib.sha256(file.read_bytes()).digest() if file is not None else b""
        self.register_buffer("file", torch.tensor(list(digest), dtype=torch.uint8))

    @property
    def queries(self) -> int:
        """Inputs sent so far, this process or an earlier one."""
        return self.ledger.queries

    @torch.no_grad()
    def forward(self, **batch: Tensor) -> Tensor:
        device = next(iter(batch.values())).device
        arrays = {key: value.detach().cpu().numpy() for key, value in batch.items()}
        answer = self.recalled(arrays) if self.remembers else self.asked(arrays)
        values = torch.from_numpy(answer).to(device)
        return values.clamp_min(1e-12).log() if self.returns == "probabilities" else values

    def recalled(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Answers from the ledger where there are any; the rest is asked in one call, each different row once."""
        keys = row_keys(arrays)
        known = self.ledger.known(list(dict.fromkeys(keys)))
        new = {key: i for i, key in enumerate(keys) if key not in known}
        if new:
            answer = self.asked({name: value[list(new.values())] for name, value in arrays.items()})
            fresh = {key: row.tobytes() for key, row in zip(new, answer, strict=True)}
            self.ledger.remember(fresh)
            known |= fresh
        self.ledger.add("hits", len(keys) - len(new))
        return np.stack([np.frombuffer(known[key], dtype=np.float32) for key in keys])

    def asked(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """The box's answer (B, width), float32, after as many attempts as are allowed; every attempt is paid for."""
        rows = row_count(arrays)

        def ask() -> np.ndarray:
            values = next(iter(arrays.values()))
            answer = self.function(values) if len(arrays) == 1 else self.function(**arrays)
            return checked_answer(answer, rows, self.returns)

        return attempted(ask, self.ledger, rows, self.retries, self.wait, "the black box")


def attempted(ask: Callable[[], T], ledger: Ledger, number: int, retries: int, wait: float, who: str) -> T:
    """The answer of `ask`, repeated after `wait`, 2 `wait`, … seconds while there is none; every attempt costs `number`.

    Raises: BudgetError before the ledger's budget would be exceeded; DataError when no attempt brought an answer, also
    when the budget allows no other one.
    """
    for attempt in range(retries + 1):
        ledger.spend(number)
        try:
            return ask()
        except OSError as error:  # time-outs among them
            ledger.add("failures", 1)
            if not getattr(error, "billed", True):
                ledger.give_back(number)
            if attempt == retries or number > ledger.left:
                raise DataError(
                    f"expected an answer from {who}, got none in {attempt + 1} calls ({error}); what it answered before "
                    "is kept, so run again to go on"
                ) from error
            time.sleep(max(wait * 2**attempt, getattr(error, "after", None) or 0.0))
    raise AssertionError("unreachable")


def row_count(arrays: Mapping[str, np.ndarray]) -> int:
    """Inputs in a batch; a graph batch counts its molecules."""
    return len(arrays["count"] if "count" in arrays else next(iter(arrays.values())))


def row_keys(arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    """SHA-256 of each row over all arrays."""
    rows = []
    for i in range(row_count(arrays)):
        total = hashlib.sha256()
        for name in sorted(arrays):
            row = np.ascontiguousarray(arrays[name][i])
            total.update(f"{name} {row.dtype} {row.shape}".encode())
            total.update(row.tobytes())
        rows.append(total.digest())
    return rows


def checked_answer(answer: Any, rows: int, returns: str) -> np.ndarray:
    """(rows, width) finite float32 numbers, not below 0 where they are probabilities."""
    try:
        values = np.asarray(answer, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"expected numbers from the black box, got {str(answer)[:60]!r}; check what it serves"
        ) from error
    if values.ndim != 2 or len(values) != rows:
        raise DataError(
            f"expected an answer of shape ({rows}, width) from the black box, got {values.shape}; check what it serves"
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise DataError(f"expected finite numbers from the black box, got NaN or infinity for row {row} of {rows}")
    if returns == "probabilities" and (values.min() < 0 or values.max() > 1.001):
        raise DataError(
            f"expected probabilities from the black box, got numbers from {values.min():g} to {values.max():g}; "
            "say what it returns: logits or features"
        )
    return np.ascontiguousarray(values)


class OnnxRun:
    """Run an ONNX file on the CPU; `names` maps our keywords to the graph's inputs, `floats` are cast to float32."""

    def __init__(self, path: Path, names: Mapping[str, str], *, floats: Sequence[str] = ()):
        self.path, self.names, self.floats, self._session = path, dict(names), tuple(floats), None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_session": None
        }  # a session cannot be copied or pickled; it is opened again when needed

    def __call__(self, **arrays: np.ndarray) -> np.ndarray:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        feeds = {
            self.names[key]: value.astype(np.float32) if key in self.floats else value for key, value in arrays.items()
        }
        return self._session.run(None, feeds)[0]
