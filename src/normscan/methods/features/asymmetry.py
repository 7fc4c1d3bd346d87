"""Brains whose halves differ in another way than those of healthy ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method
from normscan.registry import register
from normscan.scores.regions import mirrored_supervoxels, outside, region_histograms


@dataclass(frozen=True)
class Regions:
    """How a brain is parted and what is learnt of each part.

    Attributes:
        count: supervoxels in each half, about.
        compactness: of them.
        bins: of the histogram of a region's asymmetries.
        nu: share of the healthy that a region's machine may leave outside.
        least: voxels of a region that is judged.
    """

    count: int
    compactness: float
    bins: int
    nu: float
    least: int


class Asymmetry(Method):
    """A one-class machine for each region of each new brain; see ``brain_asymmetry``."""

    controls: Tensor
    bias: Tensor

    def __init__(self, dims: int, axis: int, regions: Regions) -> None:
        super().__init__()
        if not 0 <= axis < dims:
            raise ArgumentError(f"axis={axis}: there are {dims} of them. Use 0 to {dims - 1}.")
        self.axis, self.regions = axis, regions
        self.register_buffer("controls", torch.zeros(0, *[1] * dims))
        self.register_buffer("bias", torch.zeros([1] * dims))

    def mirrored_axis_first(self, x: Tensor) -> Tensor:
        """Images (B, C, *spatial) as means over the channels (B, *spatial), mirrored axis first."""
        return x.mean(1).movedim(1 + self.axis, 1)

    def differences(self, image: Tensor) -> Tensor:
        """|x - mirrored x|, (B, *spatial), the mirrored axis first."""
        x = self.mirrored_axis_first(image)
        return (x - x.flip(1)).abs()

    def fit(self, batches: Iterable[Batch]) -> None:
        found = [self.differences(batch.image).float() for batch in batches]
        if not found:
            raise ArgumentError("brain_asymmetry needs at least one training image.")
        differences = torch.cat(found)
        self.bias = differences.mean(0)
        self.controls = (differences - self.bias).clamp_min(0)

    def need(self, samples: int) -> str:
        return f"the asymmetries of all {samples:,} training scans are stored with the detector"

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        differences = (self.differences(batch.image) - self.bias).clamp_min(0)
        images = self.mirrored_axis_first(batch.image)
        insides = self.mirrored_axis_first(batch.foreground.to(images)) > 0
        found = [self._regions(*one) for one in zip(images, insides, differences, strict=True)]
        return Maps(map=torch.stack(found).movedim(1, 1 + self.axis)[:, None].to(batch.image))

    def _regions(self, image: Tensor, inside: Tensor, difference: Tensor) -> Tensor:
        """How far each region of an image (*spatial) is outside of the healthy, below 0 inside.

        What belongs to no region is as healthy as the healthiest of them.
        """
        given, own = self.regions, difference.double().cpu().numpy()
        top = float(own.max())
        controls = self.controls.double().cpu().numpy()
        if top <= 0 or len(controls) < 2:
            return torch.from_numpy(np.zeros(own.shape))
        labels = mirrored_supervoxels(
            image.double().cpu().numpy(), inside.cpu().numpy(), given.count, given.compactness
        )
        histograms = region_histograms(
            np.concatenate([own[None], controls]), labels, given.bins, top
        )
        every, sizes = np.unique(labels[labels > 0], return_counts=True)
        scores = np.full(labels.max() + 1, np.nan)
        for label, size, histogram in zip(every, sizes, histograms, strict=True):
            if size >= given.least:
                scores[label] = outside(histogram[1:], histogram[0], given.nu)
        low = 0.0 if np.isnan(scores).all() else np.nanmin(scores)
        return torch.from_numpy(np.nan_to_num(scores, nan=low)[labels])


@register(
    "brain_asymmetry",
    paper="Martins 2019",
    dims=(2, 3),
    presets={"laptop": {"size": 64, "regions": 60}},
    reduction="max",
    tiny={"size": 32, "regions": 16, "bins": 32, "least": 5},
)
def brain_asymmetry(
    dims: int = 3,
    channels: int = 1,
    size: int = 128,
    axis: int = 0,
    regions: int = 200,
    compactness: float = 1.0,
    bins: int = 128,
    nu: float = 0.1,
    least: int = 20,
) -> Method:
    """Regions whose left-right difference is unlike that of healthy brains there.

    Martins, Telea and Falcao, SPIE Medical Imaging 2019, and their later work on whole hemispheres
    (SAAD, 2020), on T1-weighted brains registered to a symmetric template: the absolute difference of
    a brain and its mirror image, less the mean difference of the healthy ones, is what is asymmetric.
    Supervoxels of the two-band image of both halves are made for each new brain, so that each has its
    mirror image, and the histogram of each one's asymmetries (128 bins up to the brain's largest) is
    judged by a linear one-class machine that learns those of all healthy brains in that region: there
    is a machine for each region of each new brain. The map is how far a region lies outside, negative
    inside.

    Departures:
        supervoxels: SLIC's, of one half beside its mirror image; the later work's library floods from
            seeds where asymmetries are large (ISF, 5 iterations), beside 50 on a grid.
        features: histograms, as in the later work; the first article codes boxes by an autoencoder.
        machine: linear with nu 0.1, ours; the library's default is a Gaussian kernel with 0.5.
        registration, matching of histograms: by the preprocessing; a plain frame only takes the middle
            of the foreground for the plane of symmetry.
        two dimensions: ours, the same on slices.
        image score: the largest region's.

    Args:
        size: pixels along each axis.
        axis: spatial axis from left to right, 0 for the first.
        regions: supervoxels in each half, about.
        compactness: of the supervoxels, larger for rounder ones.
        bins: of the histograms.
        nu: share of the healthy that may lie outside.
        least: voxels of a region that is judged, both sides counted.
    """
    return Asymmetry(dims, axis, Regions(regions, compactness, bins, nu, least))
