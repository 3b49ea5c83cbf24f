"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

    certificate = certify.CROWN(adversarial.Ball("linf", 2 / 255))(model, x, y)
    certificate.certified, certificate.radius, certificate.summary()
    certify.evaluate(model, x, y, {"CROWN": certify.CROWN}, threat=ball, eps=(0.0, 0.01, 0.03)).plot()

Nothing here knows of reprogramming or of molecules.
"""

from certify.ablation import Ablation
from certify.auto import Choice, choose
from certify.branch import BetaCROWN
from certify.cascade import Cascade
from certify.certificate import Certificate, Certifier
from certify.clever import CLEVER
from certify.cnncert import CNNCert
from certify.contract import check_certifier
from certify.crown import CROWN, IBP, SDPCROWN, AlphaCROWN
from certify.envelope import NonUniformBox, PolyhedralEnvelope
from certify.errors import CertifyError
from certify.evaluate import CertifiedPoint, CertifiedRobustness, evaluate
from certify.first_order import FirstOrderSmoothing
from certify.graph import trace
from certify.implicit import NEMON, ImplicitLipschitz, MixedMonotone
from certify.lipschitz import Lipschitz
from certify.path_norm import path_norm, path_norm_prox
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
    "CertifiedPoint",
    "CertifiedRobustness",
    "Certifier",
    "CertifyError",
    "Choice",
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
    "check_certifier",
    "choose",
    "evaluate",
    "path_norm",
    "path_norm_prox",
    "radius_of",
    "trace",
]
