"""A saved model, labelled rows of a file, and the space in which they may be changed: what attacks and certificates ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adversarial.threat import Ball
from reprogram.errors import DataError
from reprogram.files import atomic_file
from reprogram.model import Reprogrammed
from tasks.inference import labels_of, read_like

REWRITES = "rewrites"
NORMS = ("linf", "l2", "l1")
PIXELS = (0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255)


@dataclass(frozen=True)
class Space:
    """A module of logits, its inputs x (B, …) with classes y (B,), the ball around them, and sizes for it; `where` says in
    words what is changed."""

    module: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball
    eps: tuple[float, ...]
    where: str


@dataclass(frozen=True)
class Labelled:
    """A model with inputs as its task has them and their labels y (n, …), none of them missing."""

    model: Reprogrammed
    inputs: list[Any]
    y: np.ndarray
    modality: str

    def threat(self, name: str | None) -> str:
        """The name of a threat that suits the inputs; by default rewrites for molecules, else linf. Raises: DataError."""
        molecules = self.modality == "molecules"
        known = (REWRITES, *NORMS) if molecules else NORMS
        name = name or known[0]
        if name not in known:
            raise DataError(f"expected a threat among {', '.join(known)} for {self.modality}, got {name}")
        return name

    def space(self, norm: str, eps: Sequence[float]) -> Space:
        """Where a norm's ball lies. Raises: DataError for a model without classes, and for no eps where none is usual."""
        kind, images = str(self.model.mapping.kind), self.modality == "images"
        if kind != "classification":
            raise DataError(f"expected a model of classes for the threat {norm}, got one of kind {kind}")
        if not eps and not images:
            raise DataError("expected eps, the sizes of the change, got none; give for example --eps 0.1 --eps 0.3")
        view = self.model.continuous(self.inputs)
        low, high = (0.0, 1.0) if images else (None, None)
        where = "of pixels in [0, 1], in front of the program" if images else "of the inputs, in front of the program"
        if self.model.source.takes == "tokens":
            where = "of the embeddings that the program writes: a ball around these is no set of texts or molecules"
        ball = Ball(norm, 1.0, low, high, view.free)  # type: ignore[arg-type]
        labels = torch.from_numpy(self.y).long().flatten().to(view.inputs.device)
        return Space(view.module, view.inputs, labels, ball, tuple(eps) or PIXELS, where)


@dataclass(frozen=True)
class Findings:
    """What was found of a model under a threat: Markdown, and the same as plain values. `main` is false in the other processes
    of several."""

    folder: Path
    text: str
    facts: dict[str, Any]
    main: bool = True

    def write(self, name: str) -> None:
        """Values into name.json of the folder, text into name.md."""
        with atomic_file(self.folder / f"{name}.json") as path:
            path.write_text(json.dumps(self.facts, indent=1) + "\n")
        with atomic_file(self.folder / f"{name}.md") as path:
            path.write_text(self.text + "\n")


def labelled(
    folder: str | Path, data: Any, *, rows: int, input: str | None, target: Sequence[str], accelerator: Any
) -> Labelled:  # fmt: skip
    """The artefact in `folder` and the first `rows` readable rows of `data` that have a label. Raises: DataError for none."""
    model = Reprogrammed.from_pretrained(folder).to(accelerator.device)
    about, kind = model.metadata.get("task", {}), str(model.mapping.kind)
    read = read_like(data, about, input)
    y = labels_of(read.table, list(target) or list(about.get("target") or []), kind, about)[read.positions]
    some = np.flatnonzero(~np.isnan(y).reshape(len(y), -1).any(1))[:rows]
    if not len(some):
        raise DataError("expected rows with labels, got none; choose the column with target")
    modality = str(about.get("modality") or read.table.modality or "molecules")
    return Labelled(model, [read.inputs[i] for i in some], y[some], modality)
