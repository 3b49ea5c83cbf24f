"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.certificate import Certificate, Certifier
from certify.crown import CROWN, IBP, AlphaCROWN
from certify.errors import CertifyError
from certify.first_order import FirstOrderSmoothing
from certify.graph import trace
from certify.smoothing import Smoothing

__all__ = [
    "CROWN",
    "IBP",
    "AlphaCROWN",
    "Certificate",
    "Certifier",
    "CertifyError",
    "FirstOrderSmoothing",
    "Smoothing",
    "trace",
]
