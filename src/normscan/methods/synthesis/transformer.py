"""Artificial anomalies found by a U-Net whose deepest features pass through a transformer."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Method
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.synthesis.common import Segmenter
from normscan.networks.discriminative import BatchNormUNet
from normscan.networks.tokens import TokenMixer
from normscan.objectives.segmentation import soft_dice
from normscan.registry import register
from normscan.synthesis import tasks
from normscan.synthesis.corruption import Corrupted, Mixture


def entropy_and_dice(output: Tensor, made: Corrupted) -> dict[str, Tensor]:
    """Binary cross-entropy and 1 - Dice of the changed pixels."""
    probability = output.sigmoid()
    return {
        "bce": F.binary_cross_entropy_with_logits(output, made.region.to(output)),
        "dice": soft_dice(probability, made.region, torch.ones_like(probability)),
    }


@register(
    "unet_vit_mood",
    paper="Park 2021",
    presets={
        "laptop": {
            "size": 64, "width": 8, "depth": 3, "dim": 64, "layers": 4, "heads": 4, "lr": 1e-3,
            "steps": 500, "batch_size": 16,
        },
    },
    reduction="mean",
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={
        "size": 32, "width": 8, "depth": 3, "dim": 32, "layers": 2, "heads": 4, "lr": 3e-3,
        "steps": 64, "batch_size": 12,
    },
    options=schedule(lr=1e-4, batch_size=16, epochs=50),
)  # fmt: skip
def unet_vit_mood(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 32,
    depth: int = 4,
    dim: int = 768,
    layers: int = 12,
    heads: int = 12,
    **training: Unpack[Schedule],
) -> Method:
    """A U-Net with a vision transformer at its bottom learns artificial local anomalies.

    Park, Balint and Hwang, "Self-Supervised Medical Out-of-Distribution Using U-Net Vision
    Transformers", MOOD 2021 (LNCS 13166): a network segments anomalies that were planted into
    healthy scans, and its deepest features are the tokens of a vision transformer. More than this,
    which the title says, isn't known here: there is no released code, and no figure of the article
    was at hand. So this is FPI's training with a TransUNet in place of its network, no more. Images
    from 0 to 1.

    Departures:
        network: our choice. A U-Net of 32 to 512 channels with batch norms; at 1/16 of the side 12
            layers of width 768 with 12 heads (ViT-Base, as in TransUNet), from scratch.
        anomalies: our choice, one of four kinds an image: FPI's square of another subject, a smooth
            change of intensity, tissue pulled in or pushed out.
        training: our choice. Cross-entropy and Dice of what changed, Adam 1e-4, batches of 16, 50
            passes over slices of 256.
        image score: our choice, the mean of the map as in ``fpi``.

    Args:
        width: channels of the U-Net's first level; each level doubles them.
        depth: how often the U-Net halves its grid.
        dim: numbers in a token, a multiple of ``heads``.
        layers: of the transformer.
        heads: of its attention.
    """
    middle = TokenMixer(width * 2**depth, -(-size // 2**depth), dim, layers, heads)
    five = tasks.five_tasks()
    kinds = [five[name] for name in ("intensity", "sink", "source")]
    return Segmenter(
        BatchNormUNet(channels, 1, width, depth, middle),
        Mixture((tasks.fpi(0.8), *kinds)),
        lambda net: [phase(net, training, "segment")],
        entropy_and_dice,
    )
