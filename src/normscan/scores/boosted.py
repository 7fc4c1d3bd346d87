"""Boosted random forests of two classes, kept as arrays that hold every tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

LEAF = -1


@dataclass(frozen=True)
class Boosting:
    """How a forest is grown; the defaults are those of SegAD.

    Attributes:
        rounds: of boosting.
        trees: grown side by side in a round, whose mean is its step.
        depth: of a tree.
        rate: that a step is multiplied by.
        rows: share of the samples that a tree sees.
        columns: share of the features that a tree sees, and again that a split of it sees.
        l1: penalty of the size of a leaf's value.
        l2: penalty of its square.
        least: sum of second derivatives in a leaf.
        start: log odds before the first round, XGBoost's.
    """

    rounds: int = 10
    trees: int = 200
    depth: int = 5
    rate: float = 0.3
    rows: float = 0.6
    columns: float = 0.6
    l1: float = 1.0
    l2: float = 1.0
    least: float = 1.0
    start: float = 0.5


class Forest(nn.Module):
    """The sum of many trees' values, log odds of the second class.

    Buffers hold (trees, nodes): the feature that a node looks at (-1 in a leaf), its threshold, its
    children and its value.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(0, 1, dtype=torch.long))
        for name in ("threshold", "value"):
            self.register_buffer(name, torch.zeros(0, 1, dtype=torch.float64))

    def grow(self, x: np.ndarray, y: np.ndarray, weight: float, how: Boosting, seed: int) -> None:
        """Grow it anew by Newton's steps on the logistic loss.

        Args:
            x: (N, F) features.
            y: (N,) 0 or 1.
            weight: of the second class.
            how: it is grown.
            seed: of the draws.
        """
        from sklearn.tree import DecisionTreeRegressor

        x = np.asarray(x, np.float32)
        generator, margin = np.random.default_rng(seed), np.full(len(y), how.start)
        weights = np.where(y == 1, weight, 1.0)
        none = np.zeros(1, np.int64)
        grown = [{"feature": none + LEAF, "threshold": none.astype(float), "left": none}]
        grown[0] |= {"right": none, "value": np.array([how.start])}
        for _ in range(how.rounds):
            chance = 1 / (1 + np.exp(-margin))
            slope, bend = weights * (chance - y), weights * chance * (1 - chance)
            bend = np.maximum(bend, 1e-16)
            step = np.zeros(len(y))
            for _ in range(how.trees):
                seen = _share(len(y), how.rows, generator)
                columns = np.sort(_share(x.shape[1], how.columns, generator))
                tree = DecisionTreeRegressor(
                    max_depth=how.depth, max_features=how.columns,
                    min_weight_fraction_leaf=min(0.5, how.least / bend[seen].sum()),
                    random_state=int(generator.integers(2**31)),
                )  # fmt: skip
                part = x[np.ix_(seen, columns)]
                tree.fit(part, -slope[seen] / bend[seen], sample_weight=bend[seen])
                nodes = _nodes(tree, columns)
                at = tree.apply(part)
                sums = [np.bincount(at, v[seen], len(nodes["feature"])) for v in (slope, bend)]
                small = np.sign(sums[0]) * np.maximum(np.abs(sums[0]) - how.l1, 0)
                nodes["value"] = -how.rate / how.trees * small / (sums[1] + how.l2)
                grown.append(nodes)
                step += nodes["value"][tree.apply(x[:, columns])]
            margin += step
        self._keep(grown)

    def _keep(self, grown: list[dict[str, np.ndarray]]) -> None:
        most = max(len(nodes["feature"]) for nodes in grown)
        device = self.value.device
        for name in ("feature", "threshold", "left", "right", "value"):
            rows = [np.pad(nodes[name], (0, most - len(nodes[name]))) for nodes in grown]
            setattr(self, name, torch.from_numpy(np.stack(rows)).to(device))

    def forward(self, x: Tensor) -> Tensor:
        """Log odds (N,) of features (N, F); 0 before it is grown."""
        if not len(self.feature):
            return torch.zeros(len(x), device=x.device)
        # As scikit-learn compares them: features in single, thresholds in double precision.
        x = x.float().double()
        every = torch.arange(len(self.feature), device=x.device)
        node = torch.zeros(len(x), len(self.feature), dtype=torch.long, device=x.device)
        while True:
            feature = self.feature[every, node]
            leaf = feature == LEAF
            if bool(leaf.all()):
                return self.value[every, node].sum(1)
            below = x.gather(1, feature.clamp_min(0)) <= self.threshold[every, node]
            onward = torch.where(below, self.left[every, node], self.right[every, node])
            node = torch.where(leaf, node, onward)


def _share(count: int, share: float, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(count)[: max(1, round(share * count))]


def _nodes(tree: object, columns: np.ndarray) -> dict[str, np.ndarray]:
    """The nodes of a fitted tree as arrays, features counted among all of them."""
    inside = tree.tree_  # type: ignore[attr-defined]
    leaf = inside.children_left < 0
    return {
        "feature": np.where(leaf, LEAF, columns[inside.feature.clip(0)]).astype(np.int64),
        "threshold": inside.threshold.astype(np.float64),
        "left": inside.children_left.clip(0).astype(np.int64),
        "right": inside.children_right.clip(0).astype(np.int64),
    }
