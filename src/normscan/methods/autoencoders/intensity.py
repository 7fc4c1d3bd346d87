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


class EqualizedIntensity(Method):
    """Histogram equalisation inside the foreground; the result is the map."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def maps(self, batch: Batch) -> Maps:
        grey = batch.image.mean(dim=1, keepdim=True)
        # The article's mask is x > 0; the foreground may hold zeros inside.
        mask = batch.foreground & (grey > 0)
        result = torch.zeros_like(grey)
        for i in range(len(batch)):
            if mask[i].any():
                result[i][mask[i]] = equalize(grey[i][mask[i]], self.bins)
        return Maps(map=result)


@register(
    "hist_threshold_baseline",
    paper="Meissen 2021",
    regime="zero-shot",
    dims=(2, 3),
    presets={"laptop": {}},
    smallest_component=20,
    tiny={"size": 32},
)
def histogram_baseline(
    dims: int | None = None, channels: int = 1, size: int = 128, bins: int = 256
) -> Method:
    """Histogram-equalised intensity as anomaly map; nothing is trained.

    Made for FLAIR, where most lesions are bright: the baseline that learnt methods must beat.
    Meissen, Kaissis, Rueckert, BrainLes 2021. A volume is equalised as a whole. Equalised
    intensities have nearly the same mean in every scan, so the image score, the mean over the
    foreground, says little: the article scores voxels only. The released code casts to integers
    before equalising; here the 256 bins see the full depth. The article's component filter, 20
    voxels, acts on the segmentation.

    Args:
        dims: spatial axes that are equalised together; those of the scan by default.
        channels: of the image; averaged.
        size: pixels along each axis.
        bins: of the histogram.
    """
    return EqualizedIntensity(bins)
