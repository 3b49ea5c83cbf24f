"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.branch import BetaCROWN
from certify.cascade import Cascade
from certify.certificate import Certificate, Certifier
from certify.crown import CROWN, IBP, SDPCROWN, AlphaCROWN
from certify.errors import CertifyError
from certify.graph import trace
from certify.splitting import InputSplit

__all__ = [
    "CROWN",
    "IBP",
    "SDPCROWN",
    "AlphaCROWN",
    "BetaCROWN",
    "Cascade",
    "Certificate",
    "Certifier",
    "CertifyError",
    "InputSplit",
    "trace",
]
