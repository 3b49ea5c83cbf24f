"""What certifiers say when a model or a threat is not theirs."""

from __future__ import annotations


class CertifyError(ValueError):
    """A model, an operation, a threat or a size for which a certifier has no sound bound."""
