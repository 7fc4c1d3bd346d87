"""Intensity itself as the anomaly map."""

from __future__ import annotations

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method
from normscan.registry import register


def equalize(values: Tensor, bins: int) -> Tensor:
    """Map values to their place in the distribution, by a histogram of ``bins`` bins.

    The cumulative histogram is interpolated linearly between the bins' centres, as in
    ``skimage.exposure.equalize_hist``.

    Args:
        values: (n,) values of the foreground.
        bins: number of bins between the smallest and the largest value.

    Returns:
        (n,) in [0, 1].
    """
    low, high = values.min(), values.max()
    if high <= low:
        return torch.zeros_like(values)
    wide = values.double()
    counts = torch.histc(wide, bins, float(low), float(high))
    cumulative = counts.cumsum(0) / len(values)
    place = ((wide - low) / (high - low) * bins - 0.5).clamp(0, bins - 1)
    below = place.floor().long()
    above = (below + 1).clamp_max(bins - 1)
    share = place - below
    return (cumulative[below] * (1 - share) + cumulative[above] * share).to(values.dtype)


def share_below(values: Tensor) -> Tensor:
    """Share of values that are no larger: the equalisation of integers, with a bin for each.

    Args:
        values: (n,) whole numbers.

    Returns:
        (n,) in (0, 1].
    """
    ranks = torch.searchsorted(values.sort().values, values.contiguous(), right=True)
    return ranks.to(values.dtype) / len(values)


class EqualizedIntensity(Method):
    """Histogram equalisation inside the foreground; the result is the map."""

    def __init__(self, bins: int, integers: bool) -> None:
        super().__init__()
        self.bins, self.integers = bins, integers

    def maps(self, batch: Batch) -> Maps:
        grey = batch.image.mean(dim=1, keepdim=True)
        # The article's mask is x > 0; the foreground may hold zeros inside.
        mask = batch.foreground & (grey > 0)
        result = torch.zeros_like(grey)
        for i in range(len(batch)):
            if mask[i].any():
                values = grey[i][mask[i]]
                if self.integers:
                    result[i][mask[i]] = share_below(values.trunc())
                else:
                    result[i][mask[i]] = equalize(values, self.bins)
        return Maps(map=result)


@register(
    "hist_threshold_baseline",
    paper="Meissen 2021",
    regime="zero-shot",
    dims=(2, 3),
    presets={
        "code": {"integers": True, "preprocess": {"scaling": "none"}},
        "laptop": {"preprocess": {"crop": "foreground"}},
    },
    smallest_component=20,
    preprocess={"crop": "none"},
    tiny={"size": 32},
)
def histogram_baseline(
    dims: int | None = None,
    channels: int = 1,
    size: int = 128,
    bins: int = 256,
    integers: bool = False,
) -> Method:
    """Histogram-equalised intensity as anomaly map; nothing is trained.

    Meissen, Kaissis, Rueckert, BrainLes 2021: made for FLAIR, where most lesions are bright; the
    baseline that learnt methods must beat. A volume is equalised as a whole, by 256 bins of its
    values above 0; components of the segmentation with 20 voxels or fewer are dropped.

    Departures:
        depth: 256 bins, as the article says; the release casts the stored values to integers, for
            which scikit-image makes a bin for each value (``code``).
        resampling: linear; nearest neighbour in the release, and only after a crop to a square.
        score: the mean over the foreground, which says little, since equalised intensities have
            nearly the same mean in every scan; the article scores voxels only.
        several channels: averaged; the article has one.

    Args:
        dims: spatial axes that are equalised together; those of the scan by default.
        channels: of the image; averaged.
        size: pixels along each axis.
        bins: of the histogram.
        integers: drop the fraction of the values and make a bin for each instead.
    """
    return EqualizedIntensity(bins, integers)
