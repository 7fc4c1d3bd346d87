"""Autoencoders on 64 pixels with a code of a few numbers: the family of Mao 2020 and Cai 2025."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.plain import (
    LAPTOP_POSTPROCESS,
    OWN_RANGE,
    ConstrainedReconstruction,
    mean_squared,
)
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import Reconstruction, squared
from normscan.methods.schedule import Schedule, phase, with_training
from normscan.networks.autoencoder import Code, CompactAutoencoder, Head
from normscan.networks.backbones import Backbone
from normscan.networks.memory import Memory, MemoryAutoencoder, attention_entropy
from normscan.objectives.losses import heteroscedastic
from normscan.objectives.perceptual import RelativePerceptual
from normscan.objectives.similarity import ssim_map, ssim_residual
from normscan.registry import register
from normscan.scores.residuals import normalised_squared

# The whole picture over the range of its file, brought to a square without regard to its proportions.
PICTURE: dict[str, Any] = {"crop": "none", "fit": "stretch", "scaling": "file"}
LAPTOP: dict[str, Any] = {
    "hidden": 256,
    "steps": 600,
    "lr": 1e-3,
    "batch_size": 16,
    "postprocess": LAPTOP_POSTPROCESS,
    "preprocess": {**OWN_RANGE, "scaling": "median"},
}
TINY: dict[str, Any] = {
    "size": 32,
    "hidden": 64,
    "steps": 200,
    "lr": 3e-3,
    "batch_size": 16,
    "preprocess": {**OWN_RANGE, "scaling": "auto"},
}


class Compact(Schedule):
    """The arguments that the family shares, those of ``schedule`` among them."""

    size: int
    latent: int
    width: int
    hidden: int


COMPACT = with_training(
    Compact,
    {"size": 64, "latent": 16, "width": 16, "hidden": 1024},
    {
        "size": "pixels along each axis, a power of two times 4.",
        "latent": "numbers in the code.",
        "width": "channels of the first convolution; the widest has four times as many.",
        "hidden": "width of the hidden linear layers.",
    },
    lr=1e-3,
    batch_size=64,
    epochs=250,
)


def compact_network(
    dims: int, channels: int, options: Compact, *, heads: int = 1, head: Head = "dense",
    outputs: int | None = None,
) -> CompactAutoencoder:  # fmt: skip
    """Return the family's network, with what one of its methods changes."""
    return CompactAutoencoder(
        dims, channels, options["size"], Code(options["latent"], heads, head),
        width=options["width"], hidden=options["hidden"], outputs=outputs,
    )  # fmt: skip


def latent_elbow(errors: Mapping[int, float]) -> int:
    """Choose the length of the code at the elbow of the healthy reconstruction error.

    The smallest code that still restores healthy images is the best one (Cai et al. 2024); their
    benchmark finds it with test labels, this needs none. Over the logarithm of the length, the
    elbow is the point farthest below the straight line from the shortest to the longest code
    (Satopaa et al. 2011); without one it is the shortest.

    Args:
        errors: mean reconstruction error of healthy validation images by length of the code.

    Raises:
        ArgumentError: fewer than three lengths, or one below 1.

    Example:
        >>> latent_elbow({1: 9.0, 2: 5.0, 4: 1.2, 8: 1.1, 16: 1.0})
        4
    """
    lengths = sorted(errors)
    if len(lengths) < 3 or lengths[0] < 1:
        raise ArgumentError(
            f"an elbow takes the errors of at least three lengths from 1 on, not of {lengths}."
        )
    first, last = lengths[0], lengths[-1]

    def below(n: int) -> float:
        share = math.log(n / first) / math.log(last / first)
        return errors[first] + share * (errors[last] - errors[first]) - errors[n]

    return max(lengths, key=below)


@register(
    "ae4ad",
    paper="Cai 2024",
    dims=(2, 3),
    presets={"laptop": LAPTOP},
    reduction="mean",
    preprocess=PICTURE,
    tiny=TINY,
    options=COMPACT,
)
def small_latent_autoencoder(
    dims: int = 2, channels: int = 1, **options: Unpack[Compact]
) -> Method:
    """Autoencoder with as short a code as healthy images allow.

    Cai, Chen and Cheng, MICCAI 2024: the code should carry as little as possible while healthy
    images are still restored, so its length is the method; the rest is a plain autoencoder of
    pictures in -1..1 with the mean squared error, Adam 1e-3, batches of 64, 250 epochs (600 on
    Brain Tumor), and the squared residual as the map. Their Table 1 tries 1 to 128 numbers; 4 are
    best on chest X-rays (RSNA, VinDr-CXR), 32 on Brain Tumor, 16 on the images and 8 on the pixels
    of BraTS. The default 16 is the common point of their studies.
    ``normscan.methods.autoencoders.compact.latent_elbow`` chooses a length from healthy validation
    errors alone. Values of 0..255 become -1..1; of files of other depths the training scans say what
    the range is.

    Departures:
        third axis: ours.
    """
    network = compact_network(dims, channels, options)
    return Reconstruction(network, mean_squared, squared, options, centred=True)


@register(
    "ae_spatial_compact",
    paper="Cai 2025",
    dims=(2, 3),
    presets={"laptop": {**LAPTOP, "latent": 4}},
    reduction="mean",
    preprocess=PICTURE,
    tiny={**TINY, "latent": 2},
    options=COMPACT,
)
def compact_spatial_autoencoder(
    dims: int = 2, channels: int = 1, **options: Unpack[Compact]
) -> Method:
    """Autoencoder with a spatial code of a few channels.

    Cai et al., Medical Image Analysis 2025: ``ae4ad`` whose linear layers are convolutions of one
    pixel, with a code of 4 x 4 x 16 numbers, and worse than the dense code in their study.
    ``laptop`` takes 4 channels, 64 numbers.

    Departures:
        all those of ``ae4ad``.

    Args:
        latent: channels of the code.
    """
    network = compact_network(dims, channels, options, head="spatial")
    return Reconstruction(network, mean_squared, squared, options, centred=True)


class CompactConstrained(ConstrainedReconstruction):
    """The second pass moves the running statistics, as in the release."""

    def second_code(self, restored: Tensor) -> Tensor:
        (again,) = self.network.encode(restored)
        # The release decodes the second code, too; all that stays of it is what the first norm saw.
        self.network.decoder[:2](again.detach())
        return again


@register(
    "constrained_ae_compact",
    paper="Chen 2018; Cai 2025",
    dims=(2, 3),
    presets={"laptop": LAPTOP},
    reduction="mean",
    preprocess=PICTURE,
    tiny=TINY,
    options=COMPACT,
)
def compact_constrained_autoencoder(
    dims: int = 2, channels: int = 1, code_weight: float = 1.0, **options: Unpack[Compact]
) -> Method:
    """Autoencoder whose restoration has the code of the image, with a code of a few numbers.

    The idea of Chen and Konukoglu, MIDL 2018, without its adversary, as in Cai et al., Medical
    Image Analysis 2025: ``ae4ad`` plus the mean squared distance of the codes of image and
    restoration, with gradients through both. The restoration passes through the same network in
    training, so that the running statistics of the batch norms, which serve at test, are half of
    images and half of restorations.

    Departures:
        all those of ``ae4ad``.

    Args:
        code_weight: weight of the distance of the codes.
    """
    network = compact_network(dims, channels, options)
    return CompactConstrained(
        network, mean_squared, squared, options, centred=True, code_weight=code_weight
    )


class MemoryReconstruction(Reconstruction):
    """Restores from a memory of healthy codes; see ``memory_autoencoder``."""

    network: MemoryAutoencoder

    def __init__(
        self, network: MemoryAutoencoder, training: Schedule, entropy_weight: float
    ) -> None:
        super().__init__(network, mean_squared, squared, training, centred=True)
        self.entropy_weight = entropy_weight

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        restored, attention = self.network.restore(batch.image)
        entropy = self.entropy_weight * attention_entropy(attention)
        return {**mean_squared(restored, batch), "entropy": entropy}


@register(
    "memae",
    paper="Gong 2019; Cai 2025",
    dims=(2, 3),
    presets={"laptop": LAPTOP},
    reduction="mean",
    preprocess=PICTURE,
    tiny=TINY,
    options=COMPACT,
)
def memory_autoencoder(
    dims: int = 2,
    channels: int = 1,
    slots: int = 25,
    shrink: float = 0.0025,
    entropy_weight: float = 2e-4,
    **options: Unpack[Compact],
) -> Method:
    """Autoencoder that restores from a memory of healthy codes.

    Gong et al., ICCV 2019, as used on medical images by Cai et al., Medical Image Analysis 2025:
    the code of ``ae4ad`` is replaced by a mixture of 25 learned vectors, whose weights are a
    softmax of dot products, cut below 0.0025; 2e-4 times the entropy of the weights makes the
    mixture sparse. An even weight is 0.04, so the cut rarely bites. The original for photographs
    and video (spatial codes, 2000 slots) is not offered.

    Departures:
        all those of ``ae4ad``.
        addressing: dot products as in both releases; Gong's article divides them by both lengths.

    Args:
        slots: vectors in the memory.
        shrink: weight below which a vector isn't used; 0 as in Cai et al. 2022.
        entropy_weight: weight of the entropy of the mixture.
    """
    coder = compact_network(dims, channels, options)
    network = MemoryAutoencoder(coder, Memory(slots, options["latent"], shrink))
    return MemoryReconstruction(network, options, entropy_weight)


def _unit(centred: Tensor, clamp: bool = False) -> Tensor:
    """-1..1 to 0..1."""
    unit = (centred + 1) / 2
    return unit.clamp(0, 1) if clamp else unit


_CLAMPED = {"clamp": "always"}


@register(
    "ae_ssim",
    paper="Bergmann 2019; Cai 2025",
    dims=(2, 3),
    presets={
        "code": _CLAMPED,
        "medianomaly": _CLAMPED,
        "laptop": {**LAPTOP, "preprocess": {**LAPTOP["preprocess"], "limit": 1.0}},
    },
    reduction="mean",
    preprocess={**PICTURE, "limit": 1.0},
    # The toy is to be judged by how far the map stands out, which SSIM evens out by design.
    tiny={
        **TINY,
        "window": 5,
        "data_range": 10.0,
        "preprocess": {**TINY["preprocess"], "limit": 1.0},
    },
    options=COMPACT,
)
def ssim_autoencoder(
    dims: int = 2,
    channels: int = 1,
    window: int = 11,
    data_range: float = 1.0,
    clamp: Literal["test", "always"] = "test",
    **options: Unpack[Compact],
) -> Method:
    """Autoencoder trained and scored with structural similarity.

    Bergmann et al., VISAPP 2019, as in Cai et al., Medical Image Analysis 2025: ``ae4ad`` whose
    loss is 1 - SSIM (Gaussian window of 11 pixels, deviation 1.5) of image and restoration in 0..1,
    and so is the map, whose inner part, where the window fits, is stretched over the image. The
    image score is the mean of the stretched map. Nothing above 1 can be restored, so all presets
    cut the scan there.

    Departures:
        all those of ``ae4ad``.
        clamp: nothing is clamped in training, since a restoration outside 0..1 that is clamped gets
            no gradient; the release clamps there, too (``code``).

    Args:
        size: pixels along each axis, a power of two times 4, not below ``window``.
        window: side of the window of SSIM in pixels, odd.
        data_range: of the images by which SSIM judges what is faint; 1 for values in 0..1.
        clamp: whether image and restoration are cut to 0..1 at ``test`` only or ``always``.
    """
    similarity: Any = {"window": window, "data_range": data_range}

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        x, restored = (_unit(t, clamp == "always") for t in (batch.image, restored))
        return {"ssim": 1 - ssim_map(x, restored, **similarity).mean()}

    def residual(x: Tensor, restored: Tensor) -> Tensor:
        return ssim_residual(_unit(x, True), _unit(restored, True), **similarity)

    network = compact_network(dims, channels, options)
    return Reconstruction(network, loss, residual, options, centred=True)


_VARIANCE = {"spread": "variance"}
_SMALL_BACKBONE = {"backbone": "resnet18.tv_in1k", "tap": "layer2"}


@register(
    "ae_perceptual",
    paper="Shvetsova 2021; Cai 2025",
    presets={
        "code": _VARIANCE,
        "medianomaly": _VARIANCE,
        "laptop": {**LAPTOP, **_SMALL_BACKBONE},
    },
    reduction="mean",
    preprocess=PICTURE,
    tiny={**TINY, **_SMALL_BACKBONE, "tap": "act1", "weights": "random", "steps": 100},
    options=COMPACT,
)
def perceptual_autoencoder(
    dims: int = 2,
    channels: int = 1,
    backbone: str = "vgg19.tv_in1k",
    tap: str = "features.22",
    weights: str = "hub",
    spread: Literal["std", "variance"] = "std",
    statistics: str | None = None,
    **options: Unpack[Compact],
) -> Method:
    """Autoencoder trained and scored with the relative perceptual L1 distance.

    Shvetsova et al., IEEE Access 2021, as in Cai et al., Medical Image Analysis 2025: ``ae4ad``
    whose loss and map are the absolute difference of the standardised features of image and
    restoration in relu4_2 of VGG19, over the mean absolute feature of the image. ``laptop`` takes
    the second stage of a ResNet-18, a small network.

    Departures:
        statistics: of the training images, averaged while it trains, with a floor for channels
            that they hardly excite; of ImageNet in the articles, from a file that both releases
            hold and ``statistics`` takes.
        spread: the features are divided by their deviation, as the article says; both releases
            divide by the variance (``code``).

    Args:
        dims: spatial axes, 2.
        channels: of the image, 1 or 3; grey is repeated.
        backbone: timm name with the tag of its weights.
        tap: stage, or layer of a network in a row, whose features are compared.
        spread: what features are divided by, ``std`` or ``variance``.
        statistics: path of the release's file of ImageNet means and variances, whose relu4_2 is
            read; None for those of the training images.
    """
    distance = RelativePerceptual(Backbone(backbone, (tap,), weights), spread, statistics)

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"perceptual": distance(_unit(batch.image), _unit(restored)).mean()}

    def residual(x: Tensor, restored: Tensor) -> Tensor:
        return distance.residual(_unit(x), _unit(restored))

    def phases(network: nn.Module) -> list[Phase]:
        # The statistics have no parameters; as part of the player they know that it trains.
        return [phase([network, distance.statistics], options)]

    network = compact_network(dims, channels, options)
    method = Reconstruction(network, loss, residual, phases, centred=True)
    method.add_module("distance", distance)
    return method


def split_uncertainty(output: Tensor) -> tuple[Tensor, Tensor]:
    """Restoration and log variance, (B, C, *spatial) each, of (B, 2 C, *spatial) output.

    The log variance is cut to -10..10, so that its exponential stays finite in half precision.
    """
    restored, log_variance = output.chunk(2, dim=1)
    return restored, log_variance.clamp(-10, 10)


class UncertaintyReconstruction(Reconstruction):
    """Restoration with its own variance; see ``uncertainty_autoencoder``."""

    def __init__(self, network: nn.Module, training: Schedule) -> None:
        super().__init__(network, _likelihood, squared, training, centred=True)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = self.scaled(batch).image
        restored, log_variance = split_uncertainty(self.network(x))
        return Maps(
            map=normalised_squared(x, restored, log_variance),
            reconstruction=self.shown(restored),
            uncertainty=log_variance.exp().mean(dim=1, keepdim=True),
        )


def _likelihood(output: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"likelihood": heteroscedastic(batch.image, *split_uncertainty(output)).mean()}


@register(
    "ae_u",
    paper="Mao 2020",
    dims=(2, 3),
    presets={"medianomaly": {"hidden": 1024, "lr": 1e-3, "beta1": 0.9}, "laptop": LAPTOP},
    reduction="mean",
    preprocess=PICTURE,
    tiny=TINY,
    options=COMPACT(hidden=2048, lr=5e-4, beta1=0.5),
)
def uncertainty_autoencoder(dims: int = 2, channels: int = 1, **options: Unpack[Compact]) -> Method:
    """Autoencoder that predicts how far each pixel may be off.

    Mao et al., MICCAI 2020: the network restores a picture in -1..1 and the log variance s of its
    error, trained by exp(-s) (x - x^)^2 + s with Adam 5e-4, beta1 0.5, batches of 64, 250 epochs;
    the map is the squared residual over the variance, so that edges, where healthy images are hard
    to restore, count less. The uncertainty that is returned is the variance. ``medianomaly`` has
    the width and the schedule of Cai et al. 2025.

    Departures:
        all those of ``ae4ad``.
        log variance: cut to -10..10, without bounds in both releases.
    """
    network = compact_network(dims, channels, options, outputs=2 * channels)
    return UncertaintyReconstruction(network, options)
