"""A random forest as an output map: grown by scikit-learn, kept and evaluated as plain tensors, so nothing is pickled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reprogram.config import configurable
from reprogram.mapping import Columns, Kind, blocks, select, spread

BUFFERS = {
    "feature": torch.int16,
    "threshold": torch.float32,
    "left": torch.int16,
    "right": torch.int16,
}
MOST = torch.iinfo(torch.int16).max
BYTES, TREES = 2_000_000, 50  # a whole forest readout, and the number of trees that many labels do not go below

# a tree grown from no label: no prediction, which a stack leaves out
NOTHING = {name: torch.zeros(1) for name in BUFFERS} | {"value": torch.full((1, 1), torch.nan)}


@configurable
class ForestMap(nn.Module):
    r"""Random forest readout: the mean over trees of the value in the leaf a row falls into.

    Values are regressed; classes and labels return log-odds of the mean leaf probability. Rows with a missing label are
    left out for that label only. So that the stored map stays within two megabytes, `leaves` bounds each tree and many
    labels or classes get fewer trees, then smaller ones.

    Shapes: features (B, S) -> (B, T); one forest per label, or one for all classes. No gradient reaches the features.
    Reference: Breiman, "Random forests", Machine Learning 2001; settings of the baseline: 200 trees with a third of the
    features per split for values, 300 trees with their square root for classes.
    """

    def __init__(
        self,
        width: int,
        outputs: int = 1,
        *,
        kind: Kind = "regression",
        columns: Columns = None,
        leaves: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        self.kind, self.outputs, self.leaves, self.seed = kind, outputs, leaves, seed
        self.columns = blocks(columns, width)
        if sum(stop - start for start, stop in self.columns) > MOST:
            raise ValueError(f"expected at most {MOST} columns for a forest, got more; name fewer with columns=")
        # values in the user's units keep their digits; of probabilities three are plenty
        self.buffers_of = BUFFERS | {"value": torch.float32 if kind == "regression" else torch.float16}
        for name, dtype in self.buffers_of.items():
            self.register_buffer(name, torch.zeros(0, dtype=dtype))
        self.register_buffer("scale", torch.ones(outputs))

    def _load_from_state_dict(self, state_dict, prefix, *args):  # as large as the forest that was grown
        for name in self.buffers_of:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def prepare(self, features: Tensor, y: Tensor) -> None:
        if self.kind == "regression":
            self.scale.copy_(spread(y))

    @torch.no_grad()
    def refit(self, features: Tensor, y: Tensor) -> ForestMap:
        x = select(features, self.columns).cpu().numpy()
        targets = y[:, None] if self.kind == "classification" else y
        forests = [self.grow(x, column.cpu().numpy()) for column in targets.T]
        nodes = max(len(tree["feature"]) for forest in forests for tree in forest)
        for name, dtype in self.buffers_of.items():
            padded = [
                [nn.functional.pad(t[name], [0, 0] * (t[name].ndim - 1) + [0, nodes - len(t[name])]) for t in f]
                for f in forests
            ]
            stacked = torch.stack([torch.stack(forest) for forest in padded])
            setattr(self, name, stacked.to(dtype=dtype, device=features.device))
        return self

    def size(self) -> tuple[int, int]:
        """Trees and leaves of each that fit into BYTES."""
        classes = self.outputs - 1 if self.kind == "classification" else 1
        node = 10 + (4 if self.kind == "regression" else 2 * classes)
        forests = 1 if self.kind == "classification" else self.outputs
        total = BYTES // (2 * node * forests)  # a tree has about two nodes a leaf
        trees = min(200 if self.kind == "regression" else 300, max(TREES, total // self.leaves))
        return trees, min(self.leaves, max(2, total // trees))

    def grow(self, x, column) -> list[dict[str, Tensor]]:
        """The trees of one forest as tensors; leaves point at themselves."""
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        known, (trees, leaves) = column == column, self.size()
        if not known.any():
            return [NOTHING] * trees
        options = {"n_estimators": trees, "max_leaf_nodes": leaves, "random_state": self.seed}
        if self.kind == "regression":
            model = RandomForestRegressor(max_features=1 / 3, **options).fit(x[known], column[known])
        else:
            model = RandomForestClassifier(**options).fit(x[known], column[known].astype(int))
        classes = [0] if self.kind == "regression" else [int(c) for c in model.classes_]
        return [self.tensors(estimator.tree_, classes) for estimator in model.estimators_]

    def tensors(self, tree, classes: list[int]) -> dict[str, Tensor]:
        own = torch.arange(tree.node_count)
        left, right = torch.from_numpy(tree.children_left.copy()), torch.from_numpy(tree.children_right.copy())
        value = torch.from_numpy(tree.value[:, 0].copy())
        if self.kind != "regression":
            full = torch.zeros(len(own), self.outputs if self.kind == "classification" else 2, dtype=value.dtype)
            full[:, classes] = value / value.sum(1, keepdim=True)
            value = full[:, 1:]  # the first class has the rest
        return {
            "feature": torch.from_numpy(tree.feature.copy()).clamp_min(0), "threshold": round_down(tree.threshold),
            "left": torch.where(left < 0, own, left), "right": torch.where(right < 0, own, right), "value": value,
        }  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        x = select(features, self.columns)
        means = [self.mean_leaf(x, k) for k in range(len(self.feature))]
        mean = torch.cat(means, dim=1).to(features.dtype)
        if self.kind == "regression":
            return mean
        if self.kind == "classification":
            mean = torch.cat([1 - mean.sum(1, keepdim=True), mean], dim=1)
        least = 1e-3 if self.kind == "multilabel" else 2e-3 / self.outputs
        mean = mean.clamp(least, 1 - 1e-3)  # a forest that saw no counter-example is not certain
        return mean.log() if self.kind == "classification" else mean.logit()

    def mean_leaf(self, x: Tensor, k: int) -> Tensor:
        """All rows walk all trees of forest k together, one level a step, until nobody moves."""
        feature, threshold = self.feature[k].long(), self.threshold[k]
        left, right, value = self.left[k].long(), self.right[k].long(), self.value[k].float()
        trees = torch.arange(len(feature), device=x.device)[None]
        node = torch.zeros(len(x), len(feature), dtype=torch.long, device=x.device)
        for _ in range(len(feature[0]) + 1):
            goes_left = x.gather(1, feature[trees, node]) <= threshold[trees, node]
            step = torch.where(goes_left, left[trees, node], right[trees, node])
            if torch.equal(step, node):
                return value[trees, node].mean(1)
            node = step
        raise ValueError("expected trees without a circle, got a damaged forest; fit it again")


def round_down(threshold) -> Tensor:
    """Split points as float32 that send every float32 feature the way the float64 ones do."""
    exact = torch.from_numpy(threshold.copy())
    single = exact.float()
    return torch.where(single.double() > exact, torch.nextafter(single, torch.full_like(single, -torch.inf)), single)
