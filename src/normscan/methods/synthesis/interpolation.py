"""Foreign patches laid over healthy images: FPI, PII and AutoSeg."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.synthesis.common import (
    Segmenter,
    class_entropy,
    cross_entropy,
    standardised,
)
from normscan.methods.synthesis.planes import ThreePlanes
from normscan.networks.discriminative import BatchNormUNet
from normscan.networks.wide import WideResidual
from normscan.registry import register
from normscan.synthesis import tasks
from normscan.synthesis.corruption import Corrupted

_SHORT: dict[str, Any] = {"size": 32, "steps": 100, "batch_size": 16, "lr": 3e-3}
_TINY = {**_SHORT, "width": 4, "levels": 2, "momentum": 0.1, "batch_size": 8, "lr": 1e-2}
_LAPTOP: dict[str, Any] = {"size": 64, "width": 8, "steps": 600, "batch_size": 16}
_WIDE_LAPTOP = {**_LAPTOP, "momentum": 0.1}
# What the releases read: whole slices in their own range.
_AS_READ: dict[str, Any] = {"scaling": "minmax", "crop": "none"}


@register(
    "fpi",
    paper="Tan 2020",
    presets={
        "abdomen": {"size": 512, "levels": 5, "classes": 5, "core": 0.8},
        "laptop": _LAPTOP,
    },
    reduction="mean",
    preprocess=_AS_READ,
    tiny={**_TINY, "core": 0.8},
    options=schedule(lr=1e-3, batch_size=32, epochs=50),
)
def foreign_patch_interpolation(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 16,
    levels: int = 4,
    momentum: float = 0.01,
    core: float = 0.5,
    classes: int | None = None,
    **training: Unpack[Schedule],
) -> Method:
    """Foreign patch interpolation (FPI): a network regresses how foreign each pixel is.

    Tan et al., MELBA 2022 (arXiv 2011.04197), winner of both tasks of MOOD 2020. In every training
    slice a square becomes (1 - a) x + a s, where s is the slice of another subject at the same
    height and a is uniform from 0.05 to 0.95; a wide residual encoder-decoder without skips learns
    a there and 0 elsewhere. The half-width is 5 to 20 % of the side, the centre in the central half
    of each axis (80 % for the abdomen); Adam 1e-3, batches of 32, 50 epochs. ``preset=abdomen`` has
    one more level, and five classes of a instead of its regression. Images from 0 to 1.

    Departures:
        donors: the batch's slice of another subject that is nearest in height, with a square for
            each; the release takes all slices from one pair of subjects, and both partners of a
            swap share square and label.
        weight decay: none, as what the release's training step really minimises; 5e-4 is declared
            on its layers.
        labelled pixels: with classes those that changed by more than 1e-3; the release compares
            host and donor after cutting both to multiples of 1e-3.
        image score: the mean of the map; the release smooths the slices' means and averages the
            highest quarter of them.
        third axis: none, as in the article and the release, which cut volumes into slices.

    Args:
        width: channels of the first convolution; the widest has 16 times as many.
        levels: how often the network halves its grid.
        momentum: share of a batch in the running statistics of the norms; more for short runs.
        core: central share of each axis that holds the centres.
        classes: of a, the unchanged one included; None for regression.
    """
    network = WideResidual(dims, channels, classes or 1, width, levels, momentum)
    corrupt = tasks.fpi(core, classes, 1e-3 if classes else 0.0)
    loss = class_entropy if classes else cross_entropy
    return Segmenter(network, corrupt, lambda net: [phase(net, training, "segment")], loss)


@register(
    "pii",
    paper="Tan 2021",
    presets={"laptop": _WIDE_LAPTOP},
    reduction="mean",
    preprocess=_AS_READ,
    tiny=_TINY,
    options=schedule(lr=1e-3, batch_size=32, epochs=50),
)
def poisson_image_interpolation(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 16,
    levels: int = 4,
    momentum: float = 0.01,
    **training: Unpack[Schedule],
) -> Method:
    """Poisson image interpolation (PII): foreign patches without an edge.

    Tan et al., MICCAI 2021 (arXiv 2107.02622): as FPI with centres in the central 80 %, but inside
    the square Poisson's equation is solved for the stronger one, at each pair of neighbours, of
    (1 - a) times the host's difference and a times the donor's. Clipped to the host's range. The
    label is a where the image changed by more than 1e-3. Each image is brought to mean 0 and
    deviation 1.

    Departures:
        donors: as in ``fpi``; the release draws pairs of radiographs.
        solver: exact sine transforms of whole batches; a sparse solve a patch in the release, with
            the same equations.
        kept weights: the last, or with ``steps`` the best of the validation loss on these patches;
            the release keeps the best of one on FPI's.
        labelled pixels: changes above 1e-3; the release compares values cut to multiples of it.
        third axis: none, as in the article.

    Args:
        width: channels of the first convolution; the widest has 16 times as many.
        levels: how often the network halves its grid.
        momentum: share of a batch in the running statistics of the norms; more for short runs.
    """
    network = WideResidual(dims, channels, 1, width, levels, momentum)
    return Segmenter(
        network, tasks.pii(), lambda net: [phase(net, training, "segment")], prepare=standardised
    )


class TriSliceSegmenter(Segmenter):
    """A segmenter of a slice that sees its neighbours as channels, the slice itself in the middle."""

    context = 1

    def planted(self, batch: Batch) -> Corrupted:
        whole = replace(batch, image=_joined(batch))
        made = super().planted(whole)
        # The neighbours change with the slice, which alone is labelled.
        third = whole.image.shape[1] // 3
        middle = slice(third, 2 * third)
        apart = (made.image - whole.image)[:, middle].abs().amax(1, keepdim=True) > 0
        return made._replace(label=made.label * apart)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        return super().maps(replace(batch, image=_joined(batch)))


def _joined(batch: Batch) -> Tensor:
    """The slice between its neighbours, (B, 3 C, H, W); repeated where nobody gave them."""
    if batch.context is None:
        return batch.image.repeat(1, 3, 1, 1)
    return batch.context.transpose(1, 2).flatten(1, 2)


@register(
    "autoseg",
    paper="Meissen 2021",
    dims=(2, 3),
    presets={
        "code": {"epochs": 5},
        "abdomen": {"polygon": (0.2, 0.6), "core": 0.8},
        "radiograph": {
            "polygon": (0.05, 0.7), "core": 0.8, "neighbours": False, "lr": 1e-3, "batch_size": 64,
            "epochs": 10,
        },
        "laptop": {**_LAPTOP, "lr": 1e-3},
    },
    reduction="top_10_percent",
    preprocess=_AS_READ,
    tiny={**_SHORT, "depth": 3, "width": 8, "polygon": (0.3, 0.8)},
    options=schedule(lr=1e-4, weight_decay=2.5e-4, batch_size=8, epochs=2),
)  # fmt: skip
def autoseg(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 32,
    depth: int = 4,
    polygon: tuple[float, float] = (0.1, 0.5),
    core: float | None = None,
    neighbours: bool = True,
    **training: Unpack[Schedule],
) -> Method:
    """AutoSeg: foreign patches with smooth irregular outlines, learnt by a U-Net.

    Meissen et al., MOOD 2021 (arXiv 2201.09579): as FPI, but the patch is a polygon of ten vertices
    whose radii are random, joined by a cubic spline and scaled to 10 to 50 % of the side along each
    axis (20 to 60 % in the abdomen, 5 to 70 % in radiographs), round a pixel of the foreground
    (abdomen: in the central 80 %). A U-Net of 32 to 512 channels sees a slice between its neighbours
    and learns the share a of the foreign slice in the middle one. AdamW 1e-4, decay 2.5e-4, batches
    of 8; 2 epochs, of which the submitted weights had 5 (``code``). Presets ``abdomen`` and
    ``radiograph``. Images from 0 to 1.

    Volumes are cut along all three axes, one network learns all of these slices, and the map is the
    mean of the three planes; the score is the mean of the highest tenth of the axial slices' means.
    In two dimensions it is the detector's axis alone.

    Departures:
        slices: of volumes one place a batch, for donors of the same place; all mixed in the release.
        place: the polygon lies round the drawn pixel; the release exchanges row and column.
        donors: the batch's image of another subject that is nearest in height; the release takes the
            same height, at times of the same scan.
        image score: of a slice the mean of the map's highest 10 %; the release has no slices alone.

    Args:
        width: channels of the U-Net's first level; each level doubles them.
        depth: how often the U-Net halves its grid.
        polygon: least and largest size of a patch, shares of each axis.
        core: central share of each axis that holds the centres; None for a pixel of the foreground.
        neighbours: show the network the slices on both sides.
    """
    network = BatchNormUNet((3 if neighbours else 1) * channels, 1, width, depth)
    kind = TriSliceSegmenter if neighbours else Segmenter
    if dims == 3:
        # A pass over volumes takes a slice of each; one over all slices is so many times as long.
        training["epochs"] *= 3 * size
    segmenter = kind(
        network,
        tasks.autoseg(polygon, core),
        lambda net: [phase(net, training, "segment", optimizer=torch.optim.AdamW)],
    )
    return segmenter if dims == 2 else ThreePlanes(segmenter, int(neighbours))
