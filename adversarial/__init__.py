"""Attacks on any module that returns logits, the sets they stay in, and how robust a model is under them.

    attack = adversarial.PGD(adversarial.Ball("linf", 8 / 255))
    x_adv = attack(model, x, y)              # clean inputs where it found nothing
    result = attack.run(model, x, y)         # success, distance and passes of every sample
    adversarial.evaluate(model, x, y, {"AutoAttack": adversarial.AutoAttack}, threat=ball, eps=(0.0, 0.01, 0.03)).plot()

Nothing here knows of reprogramming or of molecules.
"""

from adversarial.attacks.apgd import APGD
from adversarial.attacks.base import Attack
from adversarial.attacks.boundary import Boundary, RayS, SignFlip
from adversarial.attacks.carlini import EAD, CarliniWagner
from adversarial.attacks.combine import EOT, AutoAttack, Restarts, Worst
from adversarial.attacks.corruption import corrupt, corruption_errors
from adversarial.attacks.deepfool import DeepFool, SparseFool, SuperDeepFool
from adversarial.attacks.discrete import Beam, Genetic, Greedy, HotFlip
from adversarial.attacks.fab import FAB
from adversarial.attacks.gradient import BIM, FGSM, MIM, PGD
from adversarial.attacks.hopskipjump import GeoDA, HopSkipJump
from adversarial.attacks.jsma import JSMA
from adversarial.attacks.minimal import DDN, FMN
from adversarial.attacks.proximal import PDPGD, SigmaZero
from adversarial.attacks.score import NES, SPSA
from adversarial.attacks.semantic import GridSearch, WorstOf
from adversarial.attacks.signopt import SignOPT
from adversarial.attacks.simba import SimBA
from adversarial.attacks.square import Square
from adversarial.attacks.uap import UAP
from adversarial.attacks.universal import UniversalPatch, UniversalPerturbation
from adversarial.attacks.zoo import ZOO, AutoZOOM
from adversarial.contract import check_attack
from adversarial.evaluate import Robustness, evaluate
from adversarial.failure import Indicators, indicators
from adversarial.goals import GoalError, LargerError, MultiLabel, Targeted, Untargeted
from adversarial.lifting import lift
from adversarial.probe import Result
from adversarial.sets import (
    Blur,
    BrightnessContrast,
    Hue,
    Lightness,
    Occlusion,
    Patch,
    Saturation,
    Spatial,
    Together,
    Weights,
)  # fmt: skip
from adversarial.threat import Ball, Region, Threat, ThreatError

__all__ = [
    "APGD", "BIM", "DDN", "EAD", "EOT", "FAB", "FGSM", "FMN", "JSMA", "MIM", "NES", "PDPGD", "PGD", "SPSA", "UAP", "ZOO", "Attack", "AutoAttack", "AutoZOOM", "Ball",
    "Beam", "Blur", "Boundary", "BrightnessContrast", "CarliniWagner", "DeepFool", "Genetic", "GeoDA", "GoalError", "Greedy", "GridSearch",
    "HopSkipJump", "HotFlip", "Hue", "Indicators", "LargerError", "Lightness", "MultiLabel", "Occlusion", "Patch", "RayS", "Region",
    "Restarts", "Result", "Robustness", "Saturation", "SigmaZero", "SignFlip", "SignOPT", "SimBA", "SparseFool", "Spatial", "Square",
    "SuperDeepFool", "Targeted", "Threat", "ThreatError", "Together", "UniversalPatch", "UniversalPerturbation", "Untargeted",
    "Weights", "Worst", "WorstOf", "check_attack", "corrupt", "corruption_errors", "evaluate", "indicators", "lift",
]  # fmt: skip
