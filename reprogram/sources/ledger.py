"""What was asked of a black box, what it answered and what that cost: kept in a file, it outlives the process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reprogram.errors import BudgetError, DataError

TABLES = """
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counts VALUES ('queries', 0), ('hits', 0), ('failures', 0);
"""
MANY = 500  # keys per statement: SQLite allows a limited number of variables


class Ledger:
    """Queries, cost and answers of one black box.

    `queries` counts inputs sent, `hits` inputs answered from memory, `failures` calls that brought no answer; `cost` is
    queries times `price`. With a `file` (SQLite) all of it survives a restart and is shared by several processes. A query
    is written down before it is sent, so a killed process never spent more than the ledger says.

    Raises: BudgetError before `budget` queries would be exceeded; DataError for a file that is no ledger.
    """

    def __init__(self, file: str | Path | None = None, *, price: float = 0.0, budget: int | None = None):
        self.file = None if file is None else Path(file)
        self.price, self.budget = price, budget
        self._connection: sqlite3.Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        memory = None if self.file is not None or self._connection is None else bytes(self._connection.serialize())
        return self.__dict__ | {"_connection": None, "_memory": memory}

    @property
    def connection(self) -> sqlite3.Connection:
        """The open database."""
        if self._connection is None:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                opened = sqlite3.connect(self.file or ":memory:", timeout=60, isolation_level=None)
                if memory := self.__dict__.pop("_memory", None):
                    opened.deserialize(memory)
                opened.executescript(TABLES)
            except sqlite3.Error as error:
                raise DataError(
                    f"expected a ledger in {self.file}, got another file ({error}); choose a new one"
                ) from error
            self._connection = opened
        return self._connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, one process at a time."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def count(self, name: str) -> int:
        return int(self.connection.execute("SELECT value FROM counts WHERE name = ?", (name,)).fetchone()[0])

    def add(self, name: str, number: int) -> None:
        if number:
            self.connection.execute("UPDATE counts SET value = value + ? WHERE name = ?", (number, name))

    @property
    def queries(self) -> int:
        """Inputs sent so far."""
        return self.count("queries")

    @property
    def hits(self) -> int:
        """Inputs answered from memory."""
        return self.count("hits")

    @property
    def failures(self) -> int:
        """Calls without an answer."""
        return self.count("failures")

    @property
    def cost(self) -> float:
        """Queries times price."""
        return self.queries * self.price

    @property
    def left(self) -> float:
        """Queries that the budget still allows."""
        return float("inf") if self.budget is None else max(0, self.budget - self.queries)

    def spend(self, number: int) -> None:
        """Write `number` queries down before they are sent, or refuse them."""
        with self.transaction():
            if number > self.left:
                raise BudgetError(
                    f"expected room for {number} more queries, got {self.left:g} left of the budget of {self.budget}; "
                    "raise the budget or take smaller batches"
                )
            self.add("queries", number)

    def give_back(self, number: int) -> None:
        """Take back queries that provably never reached the box."""
        with self.transaction():
            self.add("queries", -number)

    def known(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Answers that were given before, by key."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), MANY):
            some = list(keys[start : start + MANY])
            marks = ", ".join("?" * len(some))
            found |= dict(self.connection.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", some))
        return found

    def remember(self, answers: dict[bytes, bytes]) -> None:
        """Keep answers for good."""
        with self.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers.items())

    def summary(self) -> dict[str, float]:
        """Counts and cost, ready for JSON."""
        return {"queries": self.queries, "hits": self.hits, "failures": self.failures, "cost": self.cost}

    def __repr__(self) -> str:
        facts = self.summary()
        limit = "" if self.budget is None else f" of {self.budget}"
        cost = f", cost {facts['cost']:g}" if self.price else ""
        return f"Ledger({facts['queries']}{limit} queries{cost}, {facts['hits']} from memory, {facts['failures']} failures)"
