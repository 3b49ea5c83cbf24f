"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.certificate import Certificate
from certify.crown import CROWN, IBP, AlphaCROWN, Certifier
from certify.errors import CertifyError

__all__ = ["CROWN", "IBP", "AlphaCROWN", "Certificate", "Certifier", "CertifyError"]
