"""Features from the middle of a network whose layers stand in a row, such as VGG."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError, nearest
from normscan.networks.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    _from_state,
    import_timm,
)
from normscan.networks.taps import Reader


class _Row(nn.Module):
    """The first layers of ``features``, under the names that they have in the whole network."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]


class RowBackbone(Backbone):
    """A frozen network cut behind any layer of its row ``features``, not only behind a stage.

    Args:
        name: timm name with its weight tag, for example ``vgg19.tv_in1k``.
        tap: the last layer, such as ``features.22``, relu4_2 of VGG19.
        weights: as for ``Backbone``.

    Raises:
        ArgumentError: unknown network or layer.
        WeightsError: weights that aren't there or don't fit.
    """

    def __init__(self, name: str, tap: str, weights: str = "hub") -> None:
        nn.Module.__init__(self)
        self.taps, self.reader, self.prefix = (tap,), Reader("stages"), 0
        self.inputs, self.scaling, self.batch_norm, self.trainable = 3, "imagenet", "frozen", False
        layers = _layers(name.partition(".")[0], tap)
        self.channels = [m.out_channels for m in layers if isinstance(m, nn.Conv2d)][-1:]
        self.strides = [2 ** sum(isinstance(m, nn.MaxPool2d) for m in layers)]
        self.network = _Row(layers)
        if not _from_state.get() and weights != "random":
            self._load(name, weights)
        for key, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(key, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)


def _layers(stem: str, tap: str) -> list[nn.Module]:
    timm = import_timm()
    if not timm.is_model(stem):
        raise ArgumentError(f"timm has no network '{stem}'.{nearest(stem, timm.list_models())}")
    with torch.device("meta"):  # The classifier of VGG alone would take 500 MB.
        row = getattr(timm.create_model(stem), "features", None)
    known = list(row) if isinstance(row, nn.Sequential) else []
    layers = known[: int(tap.partition(".")[2]) + 1]
    if not tap.endswith(f".{len(layers) - 1}"):
        names = f"features.0 to features.{len(known) - 1}" if known else "no row of features"
        raise ArgumentError(f"{stem} has no layer '{tap}'; it has {names}.")
    for layer in layers:
        layer.to_empty(device="cpu")
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.reset_parameters()
    return layers


def feature_layer(name: str, tap: str, weights: str = "hub") -> Backbone:
    """A frozen network with one tap: a stage, or any layer of a row such as ``features.22``.

    Args:
        name: timm name with its weight tag.
        tap: stage or layer.
        weights: as for ``Backbone``.
    """
    if re.fullmatch(r"features\.\d+", tap):
        return RowBackbone(name, tap, weights)
    return Backbone(name, (tap,), weights)
