"""Bridges from healthy features to prototypes, with a few labelled anomalies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.diffusion.engine import Training, diffusion_phase, training, training_of
from normscan.networks.backbones import Backbone
from normscan.networks.bridge import GaussianMixture, LightBridge
from normscan.objectives.deviation import highest_mean
from normscan.registry import register


@dataclass(frozen=True)
class Terms:
    """How the terms of the loss are weighed and what they look at.

    Attributes:
        bridge: weight of the bridge and of its prototypes.
        push: weight of the distance of anomalies from the prototypes.
        dispersion: weight of the similarity of healthy images.
        share: of an image's patches that count as one with an anomaly.
        patches: of the healthy images that the bridge learns from in an update.
    """

    bridge: float
    push: float
    dispersion: float
    share: float
    patches: int


class Prototypes(Method):
    """Carries patch features along a bridge to healthy prototypes and classifies how they move.

    Args:
        backbone: with one tap, learns.
        prototypes: mixture that healthy features end in.
        bridge: from features to it.
        terms: of the loss.
        fitting: the parts that learn to their phase.
    """

    started: Tensor

    def __init__(
        self, backbone: Backbone, prototypes: GaussianMixture, bridge: LightBridge, terms: Terms,
        fitting: Callable[[nn.Module], Phase],
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.prototypes, self.bridge = backbone, prototypes, bridge
        self.terms, self._fitting = terms, fitting
        self.head = nn.Linear(2 * bridge.centre.shape[1], 1)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def phases(self) -> list[Phase]:
        return [self._fitting(self)]

    def features(self, image: Tensor) -> Tensor:
        """Patch features on the unit sphere, (B, N, D)."""
        (found,) = self.backbone(image).values()
        return F.normalize(found.flatten(2).transpose(1, 2), dim=2)

    def scores(self, features: Tensor) -> Tensor:
        """How anomalous each patch is, from it and from how the bridge moves it, (B, N)."""
        moved = self.bridge.carried(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        result: Tensor = self.head(torch.cat([features, moved - features], dim=2))[..., 0]
        return result

    def start(self, healthy: Tensor, batch: Batch) -> None:
        """Put prototypes and potential on healthy patches (N, D) of the first update."""
        for mixture in (self.prototypes, self.bridge):
            chosen = batch.rng.integers(0, len(healthy), (len(mixture.centre),))
            mixture.start_at(healthy[chosen.to(healthy.device)])
        self.started.fill_(True)

    def drawn(self, number: int, batch: Batch) -> Tensor:
        """Points of the prototypes, (number, D)."""
        p = self.prototypes
        shares = F.softmax(p.log_weight / p.epsilon, dim=0).cumsum(0)
        at = torch.bucketize(batch.rng.uniform((number,)).to(shares), shares[:-1])
        noise = batch.rng.normal((number, p.centre.shape[1])).to(shares)
        return p.centre[at] + (p.epsilon * p.log_spread[at].exp()).sqrt() * noise

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.label is not None
        t, epsilon = self.terms, self.bridge.epsilon
        ill = (batch.label == 1).to(batch.image.device)
        features = self.features(batch.image)
        healthy = features[~ill].flatten(0, 1)
        if len(healthy) > t.patches:
            kept = batch.rng.uniform((len(healthy),)).argsort()[: t.patches]
            healthy = healthy[kept.to(healthy.device)]
        if not self.started and len(healthy):
            self.start(healthy.detach(), batch)
        score, which = highest_mean(self.scores(features), t.share)
        found = {"class": F.binary_cross_entropy_with_logits(score, ill.to(score))}
        # Everything about the bridge is in units of 1 / epsilon.
        if len(healthy):
            with torch.no_grad():
                end = self.drawn(len(healthy), batch)
            found["bridge"] = t.bridge * epsilon * self.bridge.loss(healthy.detach(), end)
            # For each axis, else they outweigh the classes by far: features fall into one point.
            unit = epsilon / healthy.shape[1]
            near = unit * self.prototypes.normalised(healthy).mean()
            found["prototypes"] = -t.bridge * near
            if ill.any():
                at = which[ill][..., None].expand(-1, -1, features.shape[2])
                patches = features[ill].gather(1, at).flatten(0, 1)
                # Nearer than healthy ones: alone it would drive all features away, till they differ.
                nearer = unit * self.prototypes.normalised(patches) - near
                found["push"] = t.push * F.softplus(nearer).mean()
        if (~ill).sum() > 1:
            whole = F.normalize(features[~ill].mean(1), dim=1)
            apart = ~torch.eye(len(whole), dtype=torch.bool, device=whole.device)
            found["dispersion"] = t.dispersion * (whole @ whole.T)[apart].mean()
        return found

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        return Maps(
            score=highest_mean(self.scores(self.features(batch.image)), self.terms.share)[0]
        )


@register(
    "dpdl",
    paper="Wang 2025",
    regime="few-anomalies",
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch"},
    presets={
        "laptop": {
            "size": 128, "taps": ("layer3",), "components": 8, "patches": 256, "steps": 300,
            "batch_size": 16, "preprocess": {"crop": "foreground", "fit": "pad"},
        },
    },
    tiny={
        "backbone": "test_resnet.r160_in1k", "weights": "random", "size": 48, "taps": ("layer2",),
        "components": 3, "epsilon": 0.05, "patches": 64, "steps": 150, "batch_size": 8, "lr": 2e-3,
        "preprocess": {"crop": "foreground", "fit": "pad"},
    },
    options=training(steps=600, batch_size=48, lr=2e-4),
)  # fmt: skip
def dpdl(
    dims: int = 2,
    channels: int = 1,
    size: int = 448,
    backbone: str = "resnet18.tv_in1k",
    taps: tuple[str, ...] = ("layer4",),
    weights: str = "hub",
    components: int = 16,
    epsilon: float = 0.001,
    bridge_weight: float = 1.0,
    push_weight: float = 1.0,
    dispersion_weight: float = 1.0,
    share: float = 0.1,
    patches: int = 2048,
    **options: Unpack[Training],
) -> Method:
    """Prototypes that a Schrödinger bridge leads healthy features to, and a few anomalies (DPDL).

    Wang et al., CVPR 2025, for open sets of anomalies of which a few are known: features of a
    ResNet-18 are carried by a Schrödinger bridge with a noise of 0.001, in the closed form of
    LightSB, to a mixture of learnt Gaussian prototypes. The loss is the bridge's likelihood, the
    nearness of labelled anomalies to the prototypes, the similarity of images on the unit sphere,
    which spreads them, and a classification of images by their patches. The score is that of an
    image's highest tenth of patches; there is no map.

    Departures:
        details: no code of it was released. The number of prototypes, all weights, the layer, how
            anomalies are pushed and images dispersed, and how the parts meet are ours: patches on the
            unit sphere are carried; healthy ones and prototypes come together by their log density;
            softplus drives that of an anomalous image's highest patches below it; both are in units
            of 1 / epsilon and for each axis, else they drown the classes. The bridge learns from
            features and samples of the prototypes as they are, since its loss is a divergence for
            fixed ends alone. The classification sees a patch and where the bridge moves it.
        dispersion: the mean cosine between healthy images; the article derives it from mixtures of
            von Mises and Fisher's distributions.
        length: 30 epochs of 20 updates with Adam at 2e-4 in batches of 48, half of them anomalous,
            at 448 pixels: as we remember DRA, which it builds on.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis.
        backbone: timm name with the tag of its weights; it learns, its batch norms stay.
        taps: the stage whose features are used, one.
        weights: ``hub``, ``pip:efficientnet-lite0`` or ``pip:vgg16`` from an installed package,
            ``random``, or the path of a state dict.
        components: prototypes, and Gaussians of the potential.
        epsilon: noise of the bridge.
        bridge_weight: of the bridge and the prototypes.
        push_weight: of the nearness of anomalies.
        dispersion_weight: of the similarity of healthy images.
        share: of an image's patches that its score is the mean of.
        patches: healthy ones that the bridge learns from in an update.
        lr: learning rate of Adam.
    """
    if len(taps) != 1:
        raise ArgumentError(f"dpdl looks at one stage of its backbone, not {len(taps)}: {taps}.")
    network = Backbone(backbone, taps, weights, channels=channels, trainable=True)
    axes = network.channels[0]
    return Prototypes(
        network,
        GaussianMixture(components, axes, epsilon),
        LightBridge(components, axes, epsilon),
        Terms(bridge_weight, push_weight, dispersion_weight, share, patches),
        lambda parts: diffusion_phase(
            "bridge", parts, part="healthy+labelled", balanced=True,
            validate_every=0,
            **training_of(options),
        ),
    )  # fmt: skip
