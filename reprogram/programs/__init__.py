"""Input programs: what is learned in front of a frozen source."""

from reprogram.programs.base import Identity, Program
from reprogram.programs.graphs import GraphDelta
from reprogram.programs.grids import TokenGrid
from reprogram.programs.images import Additive, Affine, Coordinator, Pad, Resize, SampleMask
from reprogram.programs.low_rank import LowRank, from_peft
from reprogram.programs.prefix import Prefix
from reprogram.programs.series import Patches, SeriesPad
from reprogram.programs.tables import FeatureCanvas, TableTokens, moments
from reprogram.programs.tokens import Dictionary, FreeEmbeddings, Rewriter, SoftPrompt, vocabulary

__all__ = [
    "Additive", "Affine", "Coordinator", "Dictionary", "FeatureCanvas", "FreeEmbeddings", "GraphDelta", "Identity", "LowRank", "Pad",
    "Patches", "Prefix", "Program", "Resize", "Rewriter", "SampleMask", "SeriesPad", "SoftPrompt", "TableTokens", "TokenGrid",
    "from_peft", "moments", "vocabulary",
]  # fmt: skip
