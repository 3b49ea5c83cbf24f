"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.ablation import Ablation
from certify.branch import BetaCROWN
from certify.cascade import Cascade
from certify.certificate import Certificate, Certifier
from certify.clever import CLEVER
from certify.cnncert import CNNCert
from certify.crown import CROWN, IBP, SDPCROWN, AlphaCROWN
from certify.envelope import NonUniformBox, PolyhedralEnvelope
from certify.errors import CertifyError
from certify.first_order import FirstOrderSmoothing
from certify.graph import trace
from certify.implicit import NEMON, ImplicitLipschitz, MixedMonotone
from certify.lipschitz import Lipschitz
from certify.polytope import WongKolter
from certify.radius import radius_of
from certify.resolvable import Gain, HeatBlur, Roll
from certify.rewriting import RewriteSmoothing, Writings
from certify.semantic import Semantic
from certify.smoothing import Smoothing
from certify.splitting import InputSplit
from certify.substitution import SAFER, Enumeration, Synonyms
from certify.tss import TSS

__all__ = [
    "CLEVER",
    "CROWN",
    "IBP",
    "NEMON",
    "SAFER",
    "SDPCROWN",
    "TSS",
    "Ablation",
    "AlphaCROWN",
    "BetaCROWN",
    "CNNCert",
    "Cascade",
    "Certificate",
    "Certifier",
    "CertifyError",
    "Enumeration",
    "FirstOrderSmoothing",
    "Gain",
    "HeatBlur",
    "ImplicitLipschitz",
    "InputSplit",
    "Lipschitz",
    "MixedMonotone",
    "NonUniformBox",
    "PolyhedralEnvelope",
    "RewriteSmoothing",
    "Roll",
    "Semantic",
    "Smoothing",
    "Synonyms",
    "WongKolter",
    "Writings",
    "radius_of",
    "trace",
]
