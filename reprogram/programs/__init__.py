"""Input programs: what is learned in front of a frozen source."""

from reprogram.programs.base import Identity, Program
from reprogram.programs.graphs import GraphDelta
from reprogram.programs.tokens import Dictionary, FreeEmbeddings, SoftPrompt, vocabulary

__all__ = ["Dictionary", "FreeEmbeddings", "GraphDelta", "Identity", "Program", "SoftPrompt", "vocabulary"]
