"""An anomaly score and how far it can be trusted."""

from __future__ import annotations

from typing import TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.features.common import FILLED, RESNET18, Tapped, backbone_of, tapped
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.signatures import Options


def head(channels: int, width: int, hidden: int) -> nn.ModuleDict:
    """A convolution, batch norm and ReLU, and what follows their mean: two layers to one number."""
    return nn.ModuleDict(
        {
            "features": nn.Sequential(
                nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
                nn.ReLU(),
            ),
            "score": nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)),
        }
    )  # fmt: skip


def scored(module: nn.ModuleDict, features: Tensor) -> Tensor:
    """The number (B,) that a head gives to feature maps."""
    found: Tensor = module["score"](module["features"](features).mean((2, 3)))
    return found[:, 0]


class TwoStages(TypedDict):
    """The arguments of ``two_stages``, for ``**training: Unpack[TwoStages]`` in a signature."""

    lr: float
    batch_size: int
    epochs: int
    steps: int | None
    confidence_epochs: int
    confidence_steps: int | None


class Confident(Tapped, TwoStages):
    """The arguments of ``tapped`` and of ``two_stages``."""


two_stages = Options(
    get_type_hints(TwoStages),
    {
        "lr": 1e-4, "batch_size": 32, "epochs": 50, "steps": None, "confidence_epochs": 20,
        "confidence_steps": None,
    },
    {
        "lr": "learning rate of Adam.",
        "batch_size": "images in an update, half of them anomalous.",
        "epochs": "passes over all images for the score.",
        "steps": "number of updates of the score instead.",
        "confidence_epochs": "passes over all images for the confidence.",
        "confidence_steps": "number of updates of the confidence instead.",
    },
)  # fmt: skip


class ConfidenceAware(Method):
    """A score that anomalies push over a margin, and its confidence; see ``caad``."""

    needs_grad = True

    def __init__(
        self, backbone: Backbone, width: int, hidden: int, margin: float, training: Confident
    ) -> None:
        super().__init__()
        channels = backbone.channels[-1]
        self.backbone, self.margin = backbone, margin
        self.anomaly = head(channels, width, hidden)
        self.confidence = head(channels, width, hidden)
        self.training_options = training

    def phases(self) -> list[Phase]:
        given, optimizer = self.training_options, adam(self.training_options["lr"])
        both, size = "healthy+labelled", given["batch_size"]
        score = Player("score", [self.backbone, self.anomaly], optimizer)
        trust = Player("confidence", [self.confidence], optimizer)
        return [
            Phase("score", [score], given["steps"], given["epochs"], size, part=both, balanced=True),
            Phase(
                "confidence", [trust], given["confidence_steps"], given["confidence_epochs"], size,
                part=both, balanced=True,
            ),
        ]  # fmt: skip

    def features(self, image: Tensor) -> Tensor:
        """The last feature map."""
        return list(self.backbone(image).values())[-1]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.label is not None
        anomalous = batch.label == 1
        if phase == "score":
            score = scored(self.anomaly, self.features(batch.image))
            return {
                "healthy": torch.where(anomalous, 0, score.abs()).mean(),
                "anomalous": torch.where(anomalous, (self.margin - score).clamp_min(0), 0).mean(),
            }
        with torch.no_grad():
            features = self.features(batch.image)
            right = (scored(self.anomaly, features) > self.margin / 2) == anomalous
        sure = scored(self.confidence, features)
        return {"confidence": F.binary_cross_entropy_with_logits(sure, right.to(sure))}

    def maps(self, batch: Batch) -> Maps:
        with torch.no_grad():
            features = self.features(batch.image)
            doubt = 1 - scored(self.confidence, features).sigmoid()
        with torch.enable_grad():
            seen = self.anomaly["features"](features).detach().requires_grad_()
            score = self.anomaly["score"](seen.mean((2, 3)))[:, 0]
            (slope,) = torch.autograd.grad(score.sum(), seen)
        # Grad-CAM: behind the mean the gradient is the same at all places.
        shown = (slope.mean((2, 3), keepdim=True) * seen.detach()).sum(1, keepdim=True)
        return Maps(
            map=shown.clamp_min(0), score=torch.maximum(score.detach() / self.margin, doubt)
        )  # fmt: skip


@register(
    "caad",
    paper="Zhang 2021",
    regime="image-labels",
    dims=(2,),
    presets={
        "laptop": {
            "size": 128, "backbone": RESNET18, "taps": ("layer3",), "width": 64, "steps": 200,
            "confidence_steps": 100, "batch_size": 16, "preprocess": FILLED,
        },
    },
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch"},
    tiny={
        "size": 64, "backbone": RESNET18, "taps": ("layer1",), "weights": "random", "width": 16,
        "hidden": 16, "margin": 1.0, "steps": 50, "confidence_steps": 20, "lr": 2e-3,
        "batch_size": 8, "preprocess": FILLED,
    },
    options=tapped(size=512, backbone="tf_efficientnet_b0.in1k", taps=("last",)) | two_stages,
)  # fmt: skip
def caad(
    dims: int = 2,
    channels: int = 1,
    width: int = 256,
    hidden: int = 100,
    margin: float = 5.0,
    **options: Unpack[Confident],
) -> Method:
    """An anomaly score with a confidence, from images with labels (CAAD).

    Zhang et al., IEEE TMI 2021, on chest radiographs: 5,977 of viral pneumonia as anomalies beside
    37,393 others, and the new COVID-19 to be found. EfficientNet-B0 and an anomaly module learn a
    score that is 0 for the healthy and a margin or more for anomalies; then, with these frozen, a
    confidence module learns whether the score's decision is right. An image is positive where its
    score is high or its confidence low; Grad-CAM shows where. On COVID-19 that was never trained with
    the article reports an AUROC of 83.6.

    Departures:
        everything but the two modules: no code was released, and of the article the abstract was
            known. Margin, decision at half of it, 512 pixels, widths of the convolutions and the
            training's numbers are ours.
        score: the larger of score over margin and lack of confidence; the article's two thresholds
            give no single number.
        augmentation: none.

    Args:
        size: pixels along each axis.
        taps: the stage whose map both modules get; ``last`` is the one that the classifier pools.
        width: channels of each module's convolution.
        hidden: units of its layer behind the mean.
        margin: of anomalous scores.
    """
    backbone = backbone_of(options, channels, trainable=True, batch_norm="train")
    return ConfidenceAware(backbone, width, hidden, margin, options)
