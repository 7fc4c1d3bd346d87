"""Natural synthetic anomalies: patches of other images, moved, rescaled and made seamless."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Method
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.synthesis.common import Segmenter, cross_entropy, jolted
from normscan.networks.resnet import ResNetSegmenter
from normscan.registry import register
from normscan.synthesis import tasks
from normscan.synthesis.corruption import Corrupted


def cosine(last: float) -> Callable[[int, int], float]:
    """Learning-rate factor that falls from 1 to ``last`` as a cosine."""

    def factor(step: int, steps: int) -> float:
        return last + (1 - last) * (1 + math.cos(math.pi * step / max(1, steps))) / 2

    return factor


def _squares(output: Tensor, made: Corrupted) -> dict[str, Tensor]:
    return {"l2": F.mse_loss(output.relu(), made.label)}


@register(
    "nsa",
    paper="Schlüter 2022",
    presets={
        "laptop": {"size": 64, "width": 16, "pool": False, "steps": 500, "batch_size": 16},
    },
    reduction="mean",
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={"size": 32, "width": 16, "pool": False, "steps": 90, "batch_size": 12, "lr": 3e-3},
    options=schedule(lr=1e-3, batch_size=64, epochs=240),
)  # fmt: skip
def natural_synthetic_anomalies(
    dims: int = 2,
    channels: int = 1,
    size: int = 224,
    width: int = 64,
    pool: bool = True,
    label: Literal["logistic", "intensity", "binary"] = "logistic",
    gradients: Literal["mixed", "source"] = "mixed",
    patches: int = 3,
    **training: Unpack[Schedule],
) -> Method:
    """Natural synthetic anomalies (NSA): patches of other images, blended in by Poisson's equation.

    Schlüter et al., ECCV 2022 (arXiv 2109.15222), with its settings for chest radiographs: up to
    three boxes, each after the first with probability 0.5, of half-widths (0.05 + Gamma(2, 0.03)) of
    the side between 3 and 40 %, taken from another image, scaled by a normal factor within 0.7 and
    1.3 but to 40 % of the side at most (as in the release), put where more than 70 % of the box and
    of its anatomy meet anatomy, and blended with mixed gradients. The label is
    1 / (1 + exp(-(d - 4) / 2)) of the smoothed change d in grey values; a ResNet-18 encoder-decoder
    without skips learns it by cross-entropy. Training images are turned by up to 3 degrees and
    shifted. Adam, 1e-3 to 1e-6 as a cosine, batches of 64, 240 epochs. Images from 0 to 1, which
    stand for 0 to 255.

    Departures:
        blend: Poisson's equation in floating point, clipped to the host's range; OpenCV's clone of
            8 bits in the release, which changes fewer pixels of small images, and by less.
        anatomy: the detector's foreground; grey values above 20, median filtered, in the release.
        places: 40 tries for each patch in donor and host; 200 in the release.
        labels: an earlier patch keeps its own; in the release the box of a later one removes it.
        crop: the whole image at ``size`` with shifts of up to 3 of 224 pixels; the release crops
            224 of 230 pixels, tests on the middle 224 of 256 and sets the rest of its map to 0.
        third axis: none, as in the article.

    Args:
        width: channels of the first convolution, a multiple of 4.
        pool: halve the grid behind it, as ResNet does; off for small images.
        label: ``logistic``, ``intensity`` (the change itself, with squared errors and a ReLU), or
            ``binary``.
        gradients: ``mixed`` or those of the ``source``.
        patches: at most.
    """
    intensity = label == "intensity"
    network = ResNetSegmenter(channels, 1, width, pool)
    rhythm = cosine(1e-3)
    return Segmenter(
        network,
        tasks.nsa(label, gradients, patches),
        lambda net: [phase(net, training, "segment", rhythm=rhythm)],
        _squares if intensity else cross_entropy,
        augment=partial(jolted, turn=3.0, shift=3 / 224),
        activation=torch.relu if intensity else torch.sigmoid,
    )
