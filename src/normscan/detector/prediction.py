"""From a prepared scan to its stitched map: whole, slice by slice, or patch by patch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method
from normscan.preprocess import Prepared
from normscan.rng import Rng, derive_seed
from normscan.training.data import split_slices

OVERLAP = 0.5


@dataclass
class Stitched:
    """A method's results on the working grid of a scan.

    Attributes:
        map: (*grid) or None.
        reconstruction: (C, *grid) or None.
        uncertainty: (*grid) or None.
        scores: image scores of the slices or patches, if the method gives them.
    """

    map: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """A piece of a prepared scan: where it lies and where in the subject that is."""

    place: tuple[slice | int, ...]
    position: float
    key: int


class Predictor:
    """Runs a method over prepared scans.

    Args:
        method: in evaluation mode, on its device.
        slices: cut volumes into slices.
        patch: side of the patches that volumes and images are cut into; None for whole ones.
        batch_size: samples at a time.
        seed: every sample's randomness comes from it and from the sample's place in the scan, so
            that neither order nor batch size matters.
    """

    def __init__(
        self, method: Method, slices: bool, patch: int | None, batch_size: int, seed: int
    ) -> None:
        self.method = method
        self.slices = slices
        self.patch = patch
        self.batch_size = batch_size
        self.seed = seed
        self.device = next(
            (t.device for t in itertools.chain(method.parameters(), method.buffers())),
            torch.device("cpu"),
        )

    def __call__(self, prepared: Prepared, columns: Mapping[str, Any] | None = None) -> Stitched:
        """Predict a scan; ``columns`` is what the cohort says of it."""
        samples = self._samples(prepared)
        sums: dict[str, np.ndarray] = {}
        weights = np.zeros(prepared.grid.shape, np.float32)
        scores: list[float] = []
        for start in range(0, len(samples), self.batch_size):
            part = samples[start : start + self.batch_size]
            batch = self._batch(prepared, part)
            batch.columns = [dict(columns or {}) for _ in part]
            maps = self._run(batch)
            if maps.score is not None:
                scores += maps.score.double().cpu().tolist()
            self._add(part, maps, sums, weights, prepared)
        for name, total in sums.items():
            sums[name] = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
        result = Stitched(scores=scores, reconstruction=sums.get("reconstruction"))
        result.map = sums["map"][0] if "map" in sums else None
        result.uncertainty = sums["uncertainty"][0] if "uncertainty" in sums else None
        return result

    def _samples(self, prepared: Prepared) -> list[Sample]:
        if self.slices:
            places = split_slices(prepared)
            whole = (slice(None), slice(None))
            return [Sample((*whole, k), position, k) for k, position in places]
        if self.patch is None:
            return [Sample((slice(None),) * len(prepared.grid.shape), 0.5, 0)]
        corners = list(self._corners(prepared.grid.shape, self.patch))
        last = max(1, len(corners) - 1)
        return [
            Sample(tuple(slice(c, c + self.patch) for c in corner), i / last, i)
            for i, corner in enumerate(corners)
        ]

    @staticmethod
    def _corners(shape: tuple[int, ...], patch: int) -> Iterator[tuple[int, ...]]:
        """Corners of windows that overlap by at least half and cover the grid."""
        axes = []
        for n in shape:
            count = (
                max(1, int(np.ceil((n - patch) / (patch * (1 - OVERLAP)))) + 1) if n > patch else 1
            )
            axes.append(np.linspace(0, max(0, n - patch), count).round().astype(int).tolist())
        return itertools.product(*axes)

    def _batch(self, prepared: Prepared, samples: list[Sample]) -> Batch:
        images = np.stack([prepared.image[(slice(None), *s.place)] for s in samples])
        masks = np.stack([prepared.foreground[s.place] for s in samples])
        return Batch(
            image=torch.from_numpy(np.ascontiguousarray(images)),
            foreground=torch.from_numpy(np.ascontiguousarray(masks))[:, None],
            rng=Rng([derive_seed(self.seed, "predict", s.key) for s in samples]),
            position=torch.tensor([s.position for s in samples], dtype=torch.float32),
        ).to(self.device)

    def _run(self, batch: Batch) -> Maps:
        with torch.set_grad_enabled(self.method.needs_grad):
            return self.method.maps(batch)

    def _add(
        self,
        samples: list[Sample],
        maps: Maps,
        sums: dict[str, np.ndarray],
        weights: np.ndarray,
        prepared: Prepared,
    ) -> None:
        """Add weighted results to the sums; the weight falls towards the edges of a patch."""
        named = {"map": maps.map, "reconstruction": maps.reconstruction}
        named["uncertainty"] = maps.uncertainty
        size = tuple(np.array(prepared.image[(slice(None), *samples[0].place)].shape[1:]))
        window = self._window(size) if self.patch else np.ones(size, np.float32)
        for name, tensor in named.items():
            if tensor is None:
                continue
            values = self._resized(tensor.detach().float(), size).cpu().numpy()
            if name not in sums:
                sums[name] = np.zeros((values.shape[1], *weights.shape), np.float32)
            for sample, value in zip(samples, values, strict=True):
                sums[name][(slice(None), *sample.place)] += window * value
        for sample in samples:
            weights[sample.place] += window

    @staticmethod
    def _resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
        """Enlarge a map from the method's own grid, linearly."""
        if tuple(values.shape[2:]) == size:
            return values
        mode = "bilinear" if len(size) == 2 else "trilinear"
        return torch.nn.functional.interpolate(values, size, mode=mode, align_corners=False)

    @staticmethod
    def _window(size: tuple[int, ...]) -> np.ndarray:
        window = np.ones((1,) * len(size), np.float32)
        for axis, n in enumerate(size):
            x = (np.arange(n) - (n - 1) / 2) / (n / 4)
            shape = [1] * len(size)
            shape[axis] = n
            window = window * np.exp(-0.5 * x**2).reshape(shape).astype(np.float32)
        return np.maximum(window, 1e-3)
