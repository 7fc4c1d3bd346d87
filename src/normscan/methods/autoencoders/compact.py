"""Autoencoders on 64 pixels with a code of a few numbers: the family of Mao 2020 and Cai 2025."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Unpack, get_type_hints

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.plain import (
    LAPTOP_POSTPROCESS,
    ConstrainedReconstruction,
    mean_squared,
)
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import Reconstruction, squared
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.autoencoder import CompactAutoencoder, Head
from normscan.networks.backbones import Backbone
from normscan.networks.memory import Memory, MemoryAutoencoder, attention_entropy
from normscan.objectives.losses import heteroscedastic
from normscan.objectives.perceptual import RelativePerceptual
from normscan.objectives.similarity import ssim_map, ssim_residual
from normscan.registry import register
from normscan.scores.residuals import normalised_squared
from normscan.signatures import Options


class Compact(Schedule):
    """What these methods share: the network's arguments and those of ``schedule``."""

    size: int
    latent: int
    width: int
    hidden: int


_TRAINING = schedule(lr=1e-3, batch_size=64, epochs=250)
COMPACT = Options(
    get_type_hints(Compact),
    {"size": 64, "latent": 16, "width": 16, "hidden": 1024, **_TRAINING.defaults},
    {
        "size": "pixels along each axis, a power of two times 4.",
        "latent": "numbers in the code.",
        "width": "channels of the first convolution.",
        "hidden": "width of the hidden linear layers.",
        **_TRAINING.descriptions,
    },
)
LAPTOP = {
    "hidden": 256,
    "steps": 600,
    "lr": 1e-3,
    "batch_size": 16,
    "postprocess": LAPTOP_POSTPROCESS,
    "preprocess": {"scaling": "median"},
}
# What is cut to 0..1 can't be restored above 1.
UNIT = {"limit": 1.0}
TINY = {"size": 32, "hidden": 64, "steps": 200, "lr": 3e-3, "batch_size": 16}


def compact_network(
    dims: int, channels: int, family: Compact, heads: int = 1, head: Head = "dense",
    outputs: int | None = None,
) -> CompactAutoencoder:  # fmt: skip
    """Return the family's encoder and decoder for its shared arguments."""
    return CompactAutoencoder(
        dims, channels, family["size"], family["latent"], heads, family["width"],
        family["hidden"], head, outputs,
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
    tiny=TINY,
    options=COMPACT,
)
def small_latent_autoencoder(
    dims: int = 2,
    channels: int = 1,
    **family: Unpack[Compact],
) -> Method:
    """Autoencoder with as short a code as healthy images allow.

    Cai, Chen and Cheng, MICCAI 2024: the code should carry as little as possible while healthy
    images are still restored, so its length is the method; the rest is a plain autoencoder with the
    squared error. Their Table 1 tries 1 to 128 numbers; 4 are best on chest X-rays (RSNA, VinDr-CXR),
    32 on Brain Tumor, 16 on the images and 8 on the pixels of BraTS. The default 16 is the common
    point of their studies. ``normscan.methods.autoencoders.compact.latent_elbow`` chooses a length
    from healthy validation errors alone.
    """
    network = compact_network(dims, channels, family)
    return Reconstruction(network, mean_squared, squared, family, centred=True)


@register(
    "ae_spatial_compact",
    paper="Cai 2025",
    dims=(2, 3),
    presets={"laptop": {**LAPTOP, "latent": 4}},
    reduction="mean",
    tiny={**TINY, "latent": 2},
    options=COMPACT,
)
def compact_spatial_autoencoder(
    dims: int = 2, channels: int = 1, **family: Unpack[Compact]
) -> Method:
    """Autoencoder with a spatial code of 4 x 4 positions.

    The spatial form of Cai et al., Medical Image Analysis 2025: the linear layers of ``ae4ad`` are
    1x1 convolutions without bias, so the code has 4 x 4 x 16 numbers; the squared error. The form
    of Baur et al. 2021 is ``ae_spatial``. ``laptop`` has 4 x 4 x 4 numbers.

    Args:
        latent: channels of the code.
    """
    network = compact_network(dims, channels, family, head="spatial")
    return Reconstruction(network, mean_squared, squared, family, centred=True)


class SecondPass(ConstrainedReconstruction):
    """A restoration passes the network as an image does, and moves its running statistics."""

    network: CompactAutoencoder

    def again(self, restored: Tensor) -> Tensor:
        (code,) = self.network.encode(restored)
        with torch.no_grad():
            self.network.expand(code)
        return code


@register(
    "constrained_ae_compact",
    paper="Chen 2018; Cai 2025",
    dims=(2, 3),
    presets={"laptop": LAPTOP},
    reduction="mean",
    tiny=TINY,
    options=COMPACT,
)
def compact_constrained_autoencoder(
    dims: int = 2, channels: int = 1, code_weight: float = 1.0, **family: Unpack[Compact]
) -> Method:
    """Autoencoder with a short code, which the restoration must share.

    The constrained form of Cai et al., Medical Image Analysis 2025: the network and the squared
    error of ``ae4ad`` plus the mean squared distance of the codes of image and restoration, with
    gradients through both. The restoration is encoded as the release does: up to the decoder's
    hidden layer, moving all running statistics on the way. The form of Baur et al. 2021 is
    ``constrained_ae``.

    Args:
        code_weight: weight of the distance of the codes.
    """
    network = compact_network(dims, channels, family)
    return SecondPass(network, squared, family, code_weight, centred=True)


class MemoryReconstruction(Reconstruction):
    """Restores from a memory of healthy codes; see ``memory_autoencoder``."""

    network: MemoryAutoencoder

    def __init__(self, network: MemoryAutoencoder, entropy_weight: float, training: Schedule):
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
    tiny=TINY,
    options=COMPACT,
)
def memory_autoencoder(
    dims: int = 2,
    channels: int = 1,
    slots: int = 25,
    shrink: float = 0.0025,
    entropy_weight: float = 2e-4,
    **family: Unpack[Compact],
) -> Method:
    """Autoencoder that restores from a memory of healthy codes.

    Gong et al., ICCV 2019, as used on medical images by Cai et al., Medical Image Analysis 2025:
    the code is replaced by a mixture of learned vectors, whose weights are a softmax of dot
    products, cut below ``shrink``; an entropy term makes the mixture sparse. With 25 slots an even
    weight is 0.04, so the cut rarely bites. The original for photographs and video (spatial codes,
    cosine addressing, 2000 slots) is not offered.

    Args:
        slots: vectors in the memory.
        shrink: weight below which a vector isn't used; 0 as in Cai et al. 2022.
        entropy_weight: weight of the entropy of the mixture.
    """
    coder = compact_network(dims, channels, family)
    network = MemoryAutoencoder(coder, Memory(slots, family["latent"], shrink))
    return MemoryReconstruction(network, entropy_weight, family)


def _unit(centred: Tensor, clamp: bool = False) -> Tensor:
    """-1..1 to 0..1."""
    unit = (centred + 1) / 2
    return unit.clamp(0, 1) if clamp else unit


@register(
    "ae_ssim",
    paper="Bergmann 2019; Cai 2025",
    dims=(2, 3),
    presets={"code": {"clamp": "always"}, "laptop": LAPTOP},
    preprocess=UNIT,
    reduction="mean",
    # The toy is to be judged by how far the map stands out, which SSIM evens out by design.
    tiny={**TINY, "window": 5, "data_range": 10.0},
    options=COMPACT,
)
def ssim_autoencoder(
    dims: int = 2,
    channels: int = 1,
    window: int = 11,
    data_range: float = 1.0,
    clamp: Literal["test", "always"] = "test",
    **family: Unpack[Compact],
) -> Method:
    """Autoencoder trained and scored with structural similarity.

    Bergmann et al., VISAPP 2019, with the network of Cai et al., Medical Image Analysis 2025: the
    loss is 1 - SSIM (Gaussian window of 11 pixels, deviation 1.5, range 1), and so is the map, whose
    inner part, where the window fits, is stretched over the image. The image score is the mean of
    the stretched map.

    Departures:
        clamp: the release cuts image and restoration to 0..1 in training too, where what is cut
            gets no gradient; ``code`` does so, ``paper`` cuts at test only.

    Args:
        size: pixels along each axis, a power of two times 4, not below ``window``.
        window: side of the window of SSIM in pixels, odd.
        data_range: of the images by which SSIM judges what is faint; 1 for values in 0..1.
        clamp: whether image and restoration are cut to 0..1 at ``test`` only or ``always``.
    """
    options: Any = {"window": window, "data_range": data_range}

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        x, restored = (_unit(t, clamp == "always") for t in (batch.image, restored))
        return {"ssim": 1 - ssim_map(x, restored, **options).mean()}

    def residual(x: Tensor, restored: Tensor) -> Tensor:
        return ssim_residual(_unit(x, True), _unit(restored, True), **options)

    network = compact_network(dims, channels, family)
    return Reconstruction(network, loss, residual, family, centred=True)


@register(
    "ae_perceptual",
    paper="Shvetsova 2021; Cai 2025",
    presets={
        "code": {"spread": "variance"},
        "laptop": {**LAPTOP, "backbone": "resnet18.tv_in1k", "tap": "layer2"},
    },
    reduction="mean",
    tiny={
        **TINY,
        "backbone": "resnet18.tv_in1k",
        "tap": "act1",
        "weights": "random",
        "steps": 100,
    },
    options=COMPACT,
)
def perceptual_autoencoder(
    dims: int = 2,
    channels: int = 1,
    backbone: str = "vgg19.tv_in1k",
    tap: str = "features.22",
    weights: str = "hub",
    spread: Literal["std", "variance"] = "std",
    **family: Unpack[Compact],
) -> Method:
    """Autoencoder trained and scored with the relative perceptual L1 distance.

    Shvetsova et al., IEEE Access 2021, with the network of Cai et al., Medical Image Analysis 2025:
    the absolute difference of the standardised features of image and restoration in relu4_2 of
    VGG19, over the mean absolute feature of the image, is loss and map. The articles standardise by
    statistics of ImageNet from a file; here they are those of the training images, averaged while
    it trains, and channels that these hardly excite get a floor. ``code`` divides by the variance
    where the article divides by the standard deviation, as both released codes do. ``laptop`` takes
    the second stage of a ResNet-18, a small network.

    Args:
        dims: spatial axes, 2.
        channels: of the image, 1 or 3; grey is repeated.
        backbone: timm name with the tag of its weights.
        tap: stage, or layer of a network in a row, whose features are compared.
        spread: what features are divided by, ``std`` or ``variance``.
    """
    distance = RelativePerceptual(Backbone(backbone, (tap,), weights), spread)

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"perceptual": distance(_unit(batch.image), _unit(restored)).mean()}

    def residual(x: Tensor, restored: Tensor) -> Tensor:
        return distance.residual(_unit(x), _unit(restored))

    def phases(network: nn.Module) -> list[Phase]:
        # The statistics have no parameters; as part of the player they know that it trains.
        return [phase([network, distance.statistics], family)]

    network = compact_network(dims, channels, family)
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
            reconstruction=_unit(restored),
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
    tiny=TINY,
    options=COMPACT(lr=5e-4, beta1=0.5, hidden=2048),
)
def uncertainty_autoencoder(
    dims: int = 2,
    channels: int = 1,
    **family: Unpack[Compact],
) -> Method:
    """Autoencoder that predicts how far each pixel may be off.

    Mao et al., MICCAI 2020: the network restores the image and the log variance s of its error,
    trained by exp(-s) (x - x^)^2 + s; the map is the squared residual over the variance, so that
    edges, where healthy images are hard to restore, count less. Cutting s to -10..10 is our choice.
    The uncertainty that is returned is the variance, for images in -1..1. ``medianomaly`` has the
    width and the schedule of Cai et al. 2025.
    """
    network = compact_network(dims, channels, family, outputs=2 * channels)
    return UncertaintyReconstruction(network, family)
