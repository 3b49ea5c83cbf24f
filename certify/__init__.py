"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.certificate import Certificate, Certifier
from certify.cnncert import CNNCert
from certify.crown import CROWN, IBP, AlphaCROWN
from certify.envelope import NonUniformBox, PolyhedralEnvelope
from certify.errors import CertifyError
from certify.graph import trace
from certify.implicit import NEMON, ImplicitLipschitz, MixedMonotone
from certify.polytope import WongKolter
from certify.radius import radius_of

__all__ = [
    "CROWN",
    "IBP",
    "NEMON",
    "AlphaCROWN",
    "CNNCert",
    "Certificate",
    "Certifier",
    "CertifyError",
    "ImplicitLipschitz",
    "MixedMonotone",
    "NonUniformBox",
    "PolyhedralEnvelope",
    "WongKolter",
    "radius_of",
    "trace",
]
