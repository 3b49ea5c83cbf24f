"""The exact distance from an input of a small ReLU network to the nearest one of another class."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from torch import Tensor, nn

ORDER = {"l2": 2, "linf": np.inf, "l1": 1}


class Program:
    """The nearest point at which a class overtakes the label's, within a box around the input, as a mixed integer program.

    Variables: steps δ, then hidden units h and their switches a for each layer, then the distance t, with sizes of δ before
    it for l1.
    """

    def __init__(self, model: nn.Sequential, x: Tensor, y: int, other: int, norm: str, reach: float):
        layers = [(m.weight.double().numpy(), m.bias.double().numpy()) for m in model if isinstance(m, nn.Linear)]
        self.n, self.norm, self.rows, self.lows = len(x), norm, [], []
        units = sum(len(b) for _, b in layers[:-1])
        self.size = self.n + 2 * units + (self.n if norm == "l1" else 0) + 1
        self.bounds = np.tile([0.0, np.inf], (self.size, 1))
        self.bounds[: self.n] = [-reach, reach]
        self.integer = np.zeros(self.size)
        before, at, start = np.arange(self.n), x.double().numpy(), self.n
        low, high = at - reach, at + reach
        for weight, bias in layers[:-1]:
            h, a = start + np.arange(len(bias)), start + len(bias) + np.arange(len(bias))
            start += 2 * len(bias)
            self.integer[a], self.bounds[a] = 1, [0, 1]
            middle, radius = weight @ ((low + high) / 2) + bias, np.abs(weight) @ ((high - low) / 2) + 1e-9
            shift = bias + (weight @ at if before[0] == 0 else 0)
            for i, (least, most) in enumerate(zip(middle - radius, middle + radius, strict=True)):
                self.above({h[i]: 1, **dict(zip(before, -weight[i], strict=True))}, shift[i])
                self.above({h[i]: -1, a[i]: least, **dict(zip(before, weight[i], strict=True))}, least - shift[i])
                self.above({h[i]: -1, a[i]: max(most, 0)}, 0)
            low, high, before = np.maximum(middle - radius, 0), np.maximum(middle + radius, 0), h
        weight, bias = layers[-1]
        self.above(dict(zip(before, weight[other] - weight[y], strict=True)), bias[y] - bias[other])
        if norm != "l2":
            self.measured(start)

    def above(self, row: dict[int, float], low: float) -> None:
        """Σ row · variables is at least this."""
        found = np.zeros(self.size)
        found[list(row)] = list(row.values())
        self.rows.append(found)
        self.lows.append(low)

    def measured(self, start: int) -> None:
        """t is at least the norm of the steps."""
        t = self.size - 1
        for i, sign in product(range(self.n), (1, -1)):
            self.above({t if self.norm == "linf" else start + i: 1, i: sign}, 0)
        if self.norm == "l1":
            self.above({t: 1, **{start + i: -1 for i in range(self.n)}}, 0)

    def distance(self) -> float:
        """The smallest; infinity where there is no such point in the box."""
        generator = np.random.default_rng(0)
        if self.norm == "l2":
            for u in generator.normal(size=(40, self.n)):
                self.tangent(u)
        for _ in range(60):
            steps, bound = self.solved()
            if steps is None:
                return math.inf
            size = float(np.linalg.norm(steps, ORDER[self.norm]))
            if self.norm != "l2" or size <= bound * 1.001:
                return size
            self.tangent(steps)
        raise RuntimeError(f"expected a gap below 0.1 % after 60 tangents, got {size / bound - 1:.2%}")

    def tangent(self, u: np.ndarray) -> None:
        self.above({self.size - 1: 1, **dict(enumerate(-u / np.linalg.norm(u)))}, 0)

    def solved(self) -> tuple[np.ndarray | None, float]:
        from scipy.optimize import Bounds, LinearConstraint, milp

        cost = np.zeros(self.size)
        cost[-1] = 1
        limits = LinearConstraint(np.array(self.rows), lb=np.array(self.lows))
        found = milp(
            cost,
            constraints=limits,
            bounds=Bounds(*self.bounds.T),
            integrality=self.integer,
            options={"mip_rel_gap": 1e-6},
        )
        return (None, math.inf) if found.x is None else (found.x[: self.n], float(found.fun))
