"""Convolutions whose response itself is the map of anomalies."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.features.common import FILLED, PICTURE
from normscan.methods.features.one_class import ContrastNormalisation
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.supervised.common import ill
from normscan.networks.backbones import Backbone
from normscan.networks.receptive import enlarged, field_of
from normscan.objectives.optimizers import nesterov
from normscan.registry import register

VGG, CUT, FROZEN = "vgg11_bn.tv_in1k", "features.20", 15
SMALL = "small"
LEAST = 1e-31


def pseudo_huber(response: Tensor) -> Tensor:
    """sqrt(r^2 + 1) - 1, which is 0 for healthy places."""
    return (response.square() + 1).sqrt() - 1


def unlikely(mean: Tensor) -> Tensor:
    """-log(1 - exp(-mean)): small where a mean (B,) is large."""
    return -(1 - torch.exp(-mean) + LEAST).log()


def by_image(cells: Tensor, anomalous: Tensor) -> Tensor:
    """The loss (B,) of responses (B, 1, h, w) for labels (B,) of images."""
    mean = cells.flatten(1).mean(1)
    return torch.where(anomalous, unlikely(mean), mean)


def by_pixel(large: Tensor, lesion: Tensor) -> Tensor:
    """The loss (B,) of responses (B, 1, H, W) for lesions; both means are over all pixels."""
    inside = (large * lesion).flatten(1).mean(1)
    loss = (large * ~lesion).flatten(1).mean(1)
    return torch.where(lesion.flatten(1).any(1), loss + unlikely(inside), loss)


class SmallNetwork(nn.Sequential):
    """Five convolutions at 1/8 of the pixels, to be trained from the start.

    Args:
        channels: of the image.
        width: of the first convolution; the last have 16 times as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        plan = [(5, 1, True), (5, 4, True), (3, 8, False), (3, 16, True)]
        before = channels
        for kernel, times, pools in plan:
            self.append(nn.Conv2d(before, width * times, kernel, padding=kernel // 2))
            self.append(nn.BatchNorm2d(width * times, eps=1e-4))
            self.append(nn.LeakyReLU())
            if pools:
                self.append(nn.MaxPool2d(3, 2, 1))
            before = width * times
        self.append(nn.Conv2d(before, before, 3, padding=1))


class FullyConvolutional(Method):
    """A descriptor whose responses are small where an image is healthy; see ``fcdd``.

    Args:
        features: image to features.
        layers: of these, in their order.
        width: channels of the features.
        deviation: of the Gaussian that a cell becomes, in pixels.
        training: the shared arguments.
    """

    def __init__(
        self, features: nn.Module, layers: list[nn.Module], width: int, deviation: float,
        training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalise, self.features = ContrastNormalisation(), features
        self.head = nn.Conv2d(width, 1, 1)
        self._field, self._deviation, self._training = field_of(layers), deviation, training

    def phases(self) -> list[Phase]:
        found = phase(
            [self.features, self.head], self._training, "describe", "healthy+anomalous",
            keep="last", optimizer=nesterov, rhythm=lambda step, steps: 0.985 ** (200 * step // steps),
        )  # fmt: skip
        return [replace(found, balanced=True, validate_every=0)]

    def cells(self, image: Tensor, collect: bool = False) -> Tensor:
        """Responses (B, 1, h, w) on the network's own grid."""
        features = self.features(self.normalise(image, collect))
        if isinstance(features, dict):
            (features,) = features.values()
        return pseudo_huber(self.head(features))

    def large(self, cells: Tensor, size: torch.Size) -> Tensor:
        """Responses on the grid of the image."""
        return enlarged(cells, self._field, (size[-2], size[-1]), self._deviation)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        cells, anomalous = self.cells(batch.image, collect=torch.is_grad_enabled()), ill(batch)
        drawn = torch.zeros_like(anomalous)
        if batch.lesion is not None:
            drawn = batch.lesion.flatten(1).any(1)
        # Where nobody drew the lesion the label of the image is all there is.
        told = anomalous & ~drawn
        found = cells.new_zeros(len(cells))
        if drawn.any() and batch.lesion is not None:
            large = self.large(cells[~told], batch.image.shape)
            found = found.index_put((~told,), by_pixel(large, batch.lesion[~told].bool()))
            found = found.index_put((told,), by_image(cells[told], anomalous[told]))
        else:
            found = by_image(cells, anomalous)
        return {"description": found.mean()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        cells = self.cells(batch.image)
        return Maps(self.large(cells, batch.image.shape), cells.flatten(1).mean(1))


@register(
    "fcdd",
    paper="Liznerski 2021",
    regime="few-anomalies",
    preprocess=PICTURE,
    presets={
        "laptop": {
            "backbone": SMALL, "weights": "random", "size": 128, "deviation": 8.0,
            "lr": 1e-2, "batch_size": 16, "steps": 400, "preprocess": FILLED,
        },
    },
    tiny={
        "backbone": SMALL, "weights": "random", "width": 4, "size": 48, "deviation": 3.0,
        "lr": 2e-2, "batch_size": 8, "steps": 150, "preprocess": FILLED,
    },
    options=schedule(lr=1e-3, beta1=0.9, weight_decay=1e-4, batch_size=128, epochs=2000),
)  # fmt: skip
def fcdd(
    dims: int = 2,
    channels: int = 1,
    size: int = 224,
    backbone: str = VGG,
    weights: str = "hub",
    width: int = 8,
    deviation: float = 12.0,
    **training: Unpack[Schedule],
) -> Method:
    """Fully convolutional data description: the response of a network is its own explanation.

    Liznerski et al., ICLR 2021, with a few labelled anomalies and their masks: the first six
    convolutions of a VGG-11 with batch norms, of which the first four keep their ImageNet weights,
    and a 1x1 convolution give one response r for every 8 pixels; A = sqrt(r^2 + 1) - 1. Every cell
    becomes a Gaussian of 12 pixels over its receptive field. The loss is the mean of A off the
    lesion, plus -log(1 - exp(-mean of A in it)), both means over all pixels; where no lesion is
    drawn, A or -log(1 - exp(-A)) of the image's mean. Images have global contrast normalisation.
    Batches of 128, half anomalous; SGD with Nesterov's momentum 0.9, rate 1e-3, decay 1e-4; 200
    epochs of ten passes, the rate times 0.985 after each. The score is the mean of A on the
    network's own grid.

    Departures:
        range: what is normalised goes from the training images' extremes, collected while training,
            to 0..1; the release has a table for each class, for each channel.
        augmentation: none; the release crops, jitters colours a little and adds noise.
        synthetic anomalies: none; without labelled anomalies the release draws confetti.

    Args:
        size: pixels along each axis, a multiple of 8.
        backbone: timm name of a VGG-11 with batch norms and the tag of its weights, or ``small``, the
            release's five convolutions, to be trained from the start.
        weights: of the VGG: ``hub``, ``random``, or the path of a state dict.
        width: channels of the first convolution of the small network.
        deviation: of the Gaussian that a cell becomes, in pixels.
        lr: learning rate of SGD.
        beta1: momentum.
        weight_decay: of SGD.
    """
    if size % 8:
        raise ArgumentError(
            f"size={size}: fcdd sees 8 pixels in a cell. Use {8 * (size // 8 or 1)}."
        )
    if backbone == SMALL:
        small = SmallNetwork(channels, width)
        return FullyConvolutional(small, [*small], 16 * width, deviation, training)
    if not backbone.startswith("vgg11_bn"):
        raise ArgumentError(f"backbone='{backbone}': fcdd is built on {VGG} or on '{SMALL}'.")
    vgg = Backbone(
        backbone,
        (CUT,),
        weights,
        channels=channels,
        trainable=True,
        batch_norm="train",
        scaling="none",
    )
    layers = list(vgg.network.get_submodule("features").children())
    for layer in layers[:FROZEN]:
        layer.requires_grad_(False)
    return FullyConvolutional(vgg, layers, vgg.channels[0], deviation, training)
