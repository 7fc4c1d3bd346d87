"""The pixel-level decision by false components: how many a healthy scan may be expected to have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.maps import Singles, checked_map

# False components kept of one map; where a map has more, the threshold lies far above.
MOST = 200


class ComponentThreshold:
    """The lowest threshold from which on healthy scans have at most N components on average.

    The components of a map above a threshold merge as it falls, so that their number rises and falls
    again: at a very low one the whole scan is one component. What counts is the largest number at the
    threshold *or any above it*, which only rises as the threshold falls. Each subject weighs the same,
    and within it each of its scans.

    Components touch at a face, an edge or a corner. Those of so many voxels or fewer that the
    segmentation drops don't count; holes are not filled for that. A smooth map may have a single
    component at any threshold: the rule stands beside one that bounds the share of pixels.

    Args:
        wanted: N, mean number of false components in a healthy scan.
        images: what ``add`` kept of each map: the thresholds below which it has one component, two,
            and so on.
    """

    def __init__(self, wanted: float = 1.0, images: Iterable[Singles] = ()) -> None:
        if not 0 < wanted < MOST:
            raise ArgumentError(
                f"the number of false components is {wanted}; it must lie between 0 and {MOST}."
            )
        self.wanted = float(wanted)
        self.images: list[Singles] = list(images)

    def __len__(self) -> int:
        return len(self.images)

    def add(self, map: npt.ArrayLike, smallest: int = 0) -> None:
        """Add the map of a healthy scan.

        Args:
            map: anomaly map (H, W) or (D, H, W).
            smallest: components of so many voxels or fewer don't count.

        Raises:
            ArgumentError: NaN.
        """
        values, _ = checked_map(map, None)
        self.images.append(component_levels(values, smallest))

    def threshold(self, subjects: Sequence[Hashable] | None = None) -> float:
        """Return the threshold, -inf where no threshold gives more components than wanted.

        Args:
            subjects: of the maps; None where each is of its own.

        Raises:
            ArgumentError: no map was added, or other lengths.
        """
        levels, weights = self._weighed(subjects)
        order = np.argsort(-levels, kind="stable")
        # A component is there strictly below its level, so at its level it doesn't count yet.
        above = np.cumsum(weights[order])
        beyond = np.flatnonzero(above > self.wanted + 1e-9)
        if not beyond.size:
            return float("-inf")
        return float(levels[order][beyond[0]])

    def expected(self, threshold: float, subjects: Sequence[Hashable] | None = None) -> float:
        """Return the mean number of components at a threshold, or at that above it with the most."""
        levels, weights = self._weighed(subjects)
        return float(weights[levels > np.float32(threshold)].sum())

    def _weighed(self, subjects: Sequence[Hashable] | None) -> tuple[Singles, npt.NDArray[Any]]:
        if not self.images:
            raise ArgumentError("A threshold by components needs at least one healthy map.")
        owners: Sequence[Hashable] = range(len(self.images)) if subjects is None else subjects
        if len(owners) != len(self.images):
            raise ArgumentError(f"{len(self.images)} maps came with {len(owners)} subjects.")
        scans = Counter(owners)
        weights = [1 / (len(scans) * scans[owner]) for owner in owners]
        sizes = [len(levels) for levels in self.images]
        levels = np.concatenate(self.images)
        return levels, np.repeat(weights, sizes)


def component_levels(map: Singles, smallest: int = 0) -> Singles:
    """Return the highest thresholds at which a map has more than 0, 1, 2, ... components.

    The k-th value (k from 0) is the supremum of the thresholds t at which the voxels above t form
    more than k connected components of over ``smallest`` voxels: each component is a node of the
    map's tree of nested components (the max-tree of Salembier et al., IEEE TIP 1998), there from
    below the node's level down to its parent's.

    Args:
        map: (*spatial) without NaN.
        smallest: components of so many voxels or fewer don't count.

    Returns:
        (K,) descending, at most ``MOST``.
    """
    from skimage.morphology import max_tree

    levels, ranks = np.unique(map, return_inverse=True)
    ranks = ranks.reshape(map.shape).astype(np.int64)
    parent, order = max_tree(ranks, connectivity=map.ndim)
    up, sizes = parent.ravel().tolist(), [1] * map.size
    root = int(order[0])
    for voxel in reversed(order.tolist()):  # children before their parents
        if voxel != root:
            sizes[up[voxel]] += sizes[voxel]
    flat, above = ranks.ravel(), parent.ravel()
    # A voxel stands for its component where its parent lies lower.
    nodes = np.flatnonzero((flat[above] < flat) & (np.array(sizes) > smallest))
    # As the threshold falls, a node comes below its level and goes at that of its parent.
    born, gone = flat[nodes], flat[above[nodes]]
    change = np.bincount(born, minlength=len(levels)) - np.bincount(gone, minlength=len(levels))
    count = np.cumsum(change[::-1])[::-1]  # just below each level
    most = np.maximum.accumulate(count[::-1])
    at = np.searchsorted(most, np.arange(1, min(int(most[-1]), MOST) + 1), side="left")
    return np.asarray(levels[::-1][at], np.float32)
