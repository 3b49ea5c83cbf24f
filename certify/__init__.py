"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.certificate import Certificate, Certifier
from certify.clever import CLEVER
from certify.crown import CROWN, IBP, AlphaCROWN
from certify.errors import CertifyError
from certify.graph import trace
from certify.lipschitz import Lipschitz

__all__ = [
    "CLEVER",
    "CROWN",
    "IBP",
    "AlphaCROWN",
    "Certificate",
    "Certifier",
    "CertifyError",
    "Lipschitz",
    "trace",
]
