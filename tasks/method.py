"""One way to predict a task, whatever it is made of: what a method is, what it returns, what it may see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from reprogram.sources import Source
from tasks.learners import Problem
from tasks.task import Task

Group = Literal["reprogrammed", "probe", "control", "baseline"]
Cost = Literal["fast", "slow"]


@dataclass(frozen=True)
class Prediction:
    """Predictions of the test rows: values (n,), P(class 1) (n,), probabilities (n, C), or label probabilities (n, T).

    `trainable` counts the numbers learned in program and map, or by fine-tuning; None for methods that are no
    reprogrammed model. `model` is that model, to be saved.
    """

    values: np.ndarray
    trainable: int | None = None
    model: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Method:
    """A way to predict the test part of a task from its training part; `run(task, seed)` never reads a test target.

    `sources` are the frozen features it reads, which `compare` computes once for all methods. `cost` is "slow" for what
    takes minutes and is left out unless asked for.
    """

    name: str
    group: Group
    run: Callable[[Task, int], Prediction]
    cost: Cost = "fast"
    summary: str = ""
    sources: tuple[str | Source, ...] = ()


def problem_of(task: Task, seed: int) -> Problem:
    """The training part with its labels and the test part without."""
    inputs, y = task.part("train")
    rows = task.split["test"]
    outputs = {"regression": 1, "multilabel": task.targets.shape[-1]}.get(task.kind)
    if outputs is None:
        outputs = max(2, len(task.classes), int(y.max()) + 1)
    return Problem(task.kind, outputs, inputs, y, [task.inputs[i] for i in rows], seed)


def tidy(kind: str, values: np.ndarray) -> np.ndarray:
    """Two-class probabilities as P(class 1)."""
    return values[:, 1] if kind == "classification" and values.shape[1] == 2 else values
