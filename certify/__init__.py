"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.auto import Choice, choose
from certify.certificate import Certificate, Certifier
from certify.contract import check_certifier
from certify.crown import CROWN, IBP, AlphaCROWN
from certify.errors import CertifyError
from certify.evaluate import CertifiedPoint, CertifiedRobustness, evaluate
from certify.graph import trace

__all__ = [
    "CROWN", "IBP", "AlphaCROWN", "Certificate", "CertifiedPoint", "CertifiedRobustness", "Certifier", "CertifyError", "Choice",
    "check_certifier", "choose", "evaluate", "trace",
]  # fmt: skip
