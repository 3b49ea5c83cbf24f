"""The error a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """The user's input cannot be used: one sentence saying what was expected, what was found and what to do.

    The command line shows the sentence and exits with code 2; a programmer catches it as a ValueError.
    """
