"""What is asked for a molecule's worth: RDKit's properties, a trained artefact, a user's function or command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from reprogram.errors import DataError, Unanswered
from tasks.labels import short
from tasks.molecules.properties import PROPERTIES, Property, guacamol

Scores = Callable[[list[str]], Sequence[float]]


class Oracle:
    """A number for each of a list of SMILES, asked with a time limit and checked.

    Args:
        function: takes a list of canonical SMILES and returns as many numbers. It may raise `OSError` or `TimeoutError`,
            and is then asked again by the objective it belongs to.
        name: column of its values.
        maximise: whether larger is better.
        timeout: seconds a call may take; None for no limit. A function that hangs is left behind in its thread.
        batch: most molecules per call.
        failing: whether NaN means that this molecule could not be measured; else NaN is an error.
        identity: what a ledger knows its values by, where two oracles of one name differ; the name by default.

    Raises: DataError when it raises, or returns another number of values, no numbers, or NaN.
    """

    def __init__(
        self, function: Scores, name: str, *, maximise: bool = True, timeout: float | None = None, batch: int = 256,
        failing: bool = False, identity: str | None = None,
    ):  # fmt: skip
        if timeout is not None and timeout <= 0:
            raise DataError(f"expected a time limit above 0 seconds for {name}, got {timeout}")
        self.function, self.name, self.maximise = function, name, maximise
        self.timeout, self.batch, self.failing = timeout, batch, failing
        self.identity = name if identity is None else identity

    def __call__(self, smiles: Sequence[str]) -> np.ndarray:
        """Values (n,) float64."""
        parts = [list(smiles[i : i + self.batch]) for i in range(0, len(smiles), self.batch)]
        return np.concatenate([self.checked(self.asked(part), part) for part in parts]) if parts else np.zeros(0)

    def asked(self, smiles: list[str]) -> Any:
        """The function's answer within the time limit."""
        if self.timeout is None:
            return self.protected(smiles)
        found: list[Any] = []

        def run() -> None:
            try:
                found.append((self.protected(smiles), None))
            except BaseException as error:
                found.append((None, error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.timeout)
        if not found:
            raise Unanswered(f"{self.name} took longer than {self.timeout:g} s for {len(smiles)} molecules")
        answer, error = found[0]
        if error is not None:
            raise error
        return answer

    def protected(self, smiles: list[str]) -> Any:
        try:
            return self.function(smiles)
        except (DataError, OSError):
            raise
        except Exception as error:
            raise DataError(
                f"expected values from the oracle {self.name}, got {type(error).__name__}: {str(error)[:200]} "
                f"(first molecule {smiles[0][:80]}); what it answered before is kept, so mend it and run again"
            ) from error

    def checked(self, answer: Any, smiles: list[str]) -> np.ndarray:
        try:
            values = np.asarray(answer, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:  # torch refuses a tensor that has a gradient
            raise DataError(f"expected numbers from the oracle {self.name}, got {str(answer)[:60]!r}") from error
        if len(values) != len(smiles):
            raise DataError(
                f"expected {len(smiles)} values from the oracle {self.name}, one per molecule, got {len(values)}"
            )
        bad = np.flatnonzero(~np.isfinite(values) & ~(np.isnan(values) & self.failing))
        if len(bad):
            raise DataError(
                f"expected finite numbers from the oracle {self.name}, got {values[bad[0]]} for {smiles[bad[0]][:80]}; "
                "mend it, or say failing=True (--failing) if NaN means that a molecule cannot be measured"
            )
        return values


def each(measure: Property) -> Scores:
    """A property of one molecule as a function of many."""

    def values(smiles: list[str]) -> list[float]:
        from rdkit import Chem

        return [measure(Chem.MolFromSmiles(text)) for text in smiles]

    return values


def command(line: str, *, timeout: float | None = None) -> Scores:
    """A program that reads SMILES, one a line, and writes a number a line; it starts anew for every call."""
    words = words_of(line)

    def values(smiles: list[str]) -> list[float]:
        try:
            code, answer, complaint = finished(words, "\n".join(smiles) + "\n", timeout)
        except subprocess.TimeoutExpired as error:
            raise Unanswered(f"the command took longer than {timeout:g} s") from error
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"expected a command that can be run, got {short(line)}: {error.strerror}") from error
        if code:
            last = (complaint.strip().splitlines() or ["no message"])[-1]
            raise Unanswered(f"the command ended with code {code}: {last[:200]}")
        try:
            return [float(word) for word in answer.split()]
        except ValueError as error:
            raise DataError(f"expected a number a line from {short(line)}, got {short(answer)}") from error

    return values


def finished(words: list[str], text: str, timeout: float | None) -> tuple[int, str, str]:
    """A program's exit code, output and errors; one that takes too long is ended with all that it started."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            answer, complaint = process.communicate(text, timeout)
        except BaseException:
            # a script's own programs would go on, and the next attempt start them a second time
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            raise
    return process.returncode, answer, complaint


def words_of(line: str) -> list[str]:
    """The words of a command line."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise DataError(f"expected a command that can be run, got {short(line)}: {error}") from None
    if not words:
        raise DataError("expected a command that can be run, got none; write command: and how it is called")
    return words


def oracle(
    what: str | Path | Oracle | Callable[..., Any], *, timeout: float | None = None, failing: bool = False
) -> Oracle:
    """An oracle by what a user wrote.

    `what` is a property or GuacaMol objective by name, "min:" before it to minimise; the folder of a trained artefact;
    "command:" and a command line, named by its last word before the options; or a function of a list of SMILES.

    Raises: DataError for anything else, with the names there are.
    """
    if isinstance(what, Oracle):
        return what
    if callable(what):
        name = getattr(what, "__name__", type(what).__name__)
        return Oracle(what, name, timeout=timeout, failing=failing)
    text = str(what)
    way, _, rest = text.partition(":")
    maximise, text = way != "min", rest if way in ("min", "max") and rest else text
    options: dict[str, Any] = {"maximise": maximise, "failing": failing}
    if text.startswith("command:"):
        line = text.removeprefix("command:")
        called = list(takewhile(lambda word: not word.startswith("-"), words_of(line))) or [line]
        return Oracle(command(line, timeout=timeout), Path(called[-1]).stem, identity=text, **options)
    if text in PROPERTIES:
        return Oracle(each(PROPERTIES[text]), text, **options)
    if text in guacamol():
        return Oracle(each(guacamol()[text]()), text, **options)
    if Path(text).is_dir():
        from tasks.molecules.artefact_oracle import artefact

        return artefact(text, maximise=maximise, timeout=timeout)
    names = ", ".join([*PROPERTIES, *guacamol()])
    raise DataError(
        f"expected an objective among {names}, an artefact's folder or command:..., got {short(text)}; see README"
    )
