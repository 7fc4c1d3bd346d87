"""What the feature systems share: a backbone and its arguments, its input, and two rates at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_type_hints

from torch import nn

from normscan.methods.base import Phase, Player
from normscan.methods.schedule import Schedule
from normscan.networks.backbones import Backbone
from normscan.objectives.optimizers import adamw_with
from normscan.signatures import Options

RESNET18, WIDE_RESNET50 = "resnet18.tv_in1k", "wide_resnet50_2.tv_in1k"
# 32 to 256 channels in bottlenecks: a trained copy of it takes seconds.
TEST_RESNET = "test_resnet.r160_in1k"
STAGES = ("layer1", "layer2", "layer3")


class Tapped(TypedDict):
    """The arguments of ``tapped``, for ``**options: Unpack[Tapped]`` in a signature."""

    size: int
    backbone: str
    taps: tuple[str, ...]
    weights: str


tapped = Options(
    get_type_hints(Tapped),
    {"size": 256, "backbone": WIDE_RESNET50, "taps": STAGES, "weights": "hub"},
    {
        "dims": "spatial axes, 2.",
        "size": "pixels along each axis.",
        "backbone": "timm name with the tag of its weights.",
        "taps": "stages whose features are used, the finest first.",
        "weights": "``hub``, ``pip:efficientnet-lite0`` or ``pip:vgg16`` from an installed package, "
        "``random``, or the path of a state dict.",
    },
)


def backbone_of(options: Tapped, channels: int, **more: Any) -> Backbone:
    """Return the backbone that the shared arguments ask for; ``more`` are further ones of it."""
    return Backbone(
        options["backbone"], options["taps"], options["weights"], channels=channels, **more
    )


# The whole picture as the releases take it, over the range of its file.
PICTURE: dict[str, Any] = {"scaling": "file", "crop": "none", "fit": "stretch"}


def middle(kept: int, resized: int) -> dict[str, Any]:
    """The picture whose shorter edge is resized to so many pixels, of which the middle is kept."""
    return {"scaling": "file", "crop": kept / resized, "fit": "cover"}


# On few pixels the foreground fills the grid.
FILLED: dict[str, Any] = {"crop": "foreground", "fit": "pad"}
LAPTOP: dict[str, Any] = {"backbone": RESNET18, "size": 128, "preprocess": FILLED}


def lite0(laptop: Mapping[str, Any], taps: tuple[str, ...]) -> dict[str, Any]:
    """The preset ``lite0``: that for a laptop, on an EfficientNet-Lite0 that pip brings.

    It is a preset of its own and never a fallback: a result must not depend on which package is
    installed and whether a network was there.

    Args:
        laptop: that preset.
        taps: stages of Lite0 with the strides of the ResNet's.
    """
    chosen = {"backbone": "tf_efficientnet_lite0", "weights": "pip:efficientnet-lite0"}
    return {**laptop, **chosen, "taps": taps}


# Of strides 2, 4, 8 and 16, as act1 and layer1 to layer3 of a ResNet.
LITE0_STAGES = ("blocks.0", "blocks.1", "blocks.2", "blocks.4")

TINY: dict[str, Any] = {
    "backbone": RESNET18,
    "weights": "random",
    "size": 64,
    "taps": ("layer1", "layer2"),
    "preprocess": FILLED,
}
# A Gaussian of 4 pixels on 224 and more; the toy's images have 64.
SMOOTH = ("smooth=4",)
TINY_SMOOTH: dict[str, Any] = {**TINY, "postprocess": ("smooth=1",)}


class Trained(Tapped, Schedule):
    """The arguments of ``tapped`` and of ``schedule``."""


class TwoRates(TypedDict):
    """The arguments of ``two_rates``, for ``**training: Unpack[TwoRates]`` in a signature."""

    lr: float
    encoder_lr: float
    weight_decay: float
    clip: float | None
    batch_size: int
    steps: int
    batch_norm: Literal["frozen", "train"]


class TwoRated(Tapped, TwoRates):
    """The arguments of ``tapped`` and of ``two_rates``."""


two_rates = Options(
    get_type_hints(TwoRates),
    {
        "lr": 5e-4,
        "encoder_lr": 5e-5,
        "weight_decay": 1e-4,
        "clip": 1.0,
        "batch_size": 32,
        "steps": 4000,
        "batch_norm": "train",
    },
    {
        "lr": "learning rate of AdamW for all but the encoder.",
        "encoder_lr": "learning rate of AdamW for the encoder.",
        "weight_decay": "of AdamW.",
        "clip": "largest norm of the gradient; None for no clipping.",
        "batch_size": "images in an update.",
        "steps": "number of updates.",
        "batch_norm": "of the learning encoder: ``train``, or ``frozen``, which normalises with the "
        "statistics of its weights (for weights whose batch norms are folded it must).",
    },
)


def two_rate_phase(encoder: nn.Module, others: Sequence[nn.Module], training: TwoRates) -> Phase:
    """One phase in which AdamW trains an encoder slowly and the rest fast, for one loss.

    The weights of the last step are kept: choosing a step takes test labels in the released codes.

    Args:
        encoder: learns with ``encoder_lr``.
        others: learn with ``lr``.
        training: the shared arguments.
    """
    optimizer = adamw_with(encoder, lr=training["encoder_lr"])
    player = Player(
        "network",
        [encoder, *others],
        lambda p: optimizer(p, lr=training["lr"], weight_decay=training["weight_decay"]),
        clip=training["clip"],
    )
    steps = training["steps"]
    return Phase(
        "distil",
        [player],
        steps=steps,
        batch_size=training["batch_size"],
        validate_every=max(1, steps // 10),
    )
