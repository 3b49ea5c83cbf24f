"""The errors a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """The user's input cannot be used: one sentence saying what was expected, what was found and what to do.

    The command line shows the sentence and exits with code 2; a programmer catches it as a ValueError.
    """


class BudgetError(DataError):
    """A query was refused because it would exceed the budget. Nothing was sent."""


class Unanswered(ConnectionError):
    """A call to a black box that brought no answer. `billed` says whether the box may have done the work; `after` is how
    many seconds it asked to be left alone."""

    def __init__(self, reason: str, *, billed: bool = True, after: float | None = None):
        super().__init__(reason)
        self.billed, self.after = billed, after
