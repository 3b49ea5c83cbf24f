"""Robustness certificates for any module that returns logits: proofs and, named so, estimates over a threat set.

Nothing here knows of reprogramming or of molecules.
"""

from certify.ablation import Ablation
from certify.branch import BetaCROWN
from certify.cascade import Cascade
from certify.certificate import Certificate, Certifier
from certify.crown import CROWN, IBP, SDPCROWN, AlphaCROWN
from certify.errors import CertifyError
from certify.graph import trace
from certify.resolvable import Gain, HeatBlur, Roll
from certify.rewriting import RewriteSmoothing, Writings
from certify.semantic import Semantic
from certify.splitting import InputSplit
from certify.substitution import SAFER, Enumeration, Synonyms
from certify.tss import TSS

__all__ = [
    "CROWN",
    "IBP",
    "SAFER",
    "SDPCROWN",
    "TSS",
    "Ablation",
    "AlphaCROWN",
    "BetaCROWN",
    "Cascade",
    "Certificate",
    "Certifier",
    "CertifyError",
    "Enumeration",
    "Gain",
    "HeatBlur",
    "InputSplit",
    "RewriteSmoothing",
    "Roll",
    "Semantic",
    "Synonyms",
    "Writings",
    "trace",
]
