"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

    certificate = certify.CROWN(adversarial.Ball("linf", 2 / 255))(model, x, y)
    certificate.certified, certificate.radius, certificate.summary()
    certify.evaluate(model, x, y, {"CROWN": certify.CROWN}, threat=ball, eps=(0.0, 0.01, 0.03)).plot()

Nothing here knows of reprogramming or of molecules.
"""

from certify.auto import Choice, choose
from certify.certificate import Certificate, Certifier
from certify.contract import check_certifier
from certify.engine.operator_norm import conv_norm, operator_norm
from certify.engine.tracing import trace
from certify.errors import CertifyError
from certify.evaluate import CertifiedPoint, CertifiedRobustness, evaluate
from certify.linear.branch import BetaCROWN
from certify.linear.cascade import Cascade
from certify.linear.cnncert import CNNCert
from certify.linear.crown import CROWN, IBP, SDPCROWN, AlphaCROWN
from certify.linear.envelope import NonUniformBox, PolyhedralEnvelope
from certify.linear.polytope import WongKolter
from certify.linear.splitting import InputSplit
from certify.lipschitz.clever import CLEVER
from certify.lipschitz.implicit import NEMON, ImplicitLipschitz, MixedMonotone
from certify.lipschitz.lipschitz import Lipschitz
from certify.lipschitz.path_norm import path_norm, path_norm_prox
from certify.radius import radius_of
from certify.randomised.ablation import Ablation
from certify.randomised.first_order import FirstOrderSmoothing
from certify.randomised.resolvable import Gain, HeatBlur, Roll
from certify.randomised.rewriting import RewriteSmoothing, Writings
from certify.randomised.smoothing import Smoothing
from certify.randomised.substitution import SAFER, Enumeration, Synonyms
from certify.randomised.tss import TSS
from certify.semantic.semantic import Semantic
from certify.semantic.tssdr import TSSDR

__all__ = [
    "CLEVER",
    "CROWN",
    "IBP",
    "NEMON",
    "SAFER",
    "SDPCROWN",
    "TSS",
    "TSSDR",
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
    "conv_norm",
    "evaluate",
    "operator_norm",
    "path_norm",
    "path_norm_prox",
    "radius_of",
    "trace",
]
