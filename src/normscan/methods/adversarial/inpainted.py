"""What a restoration shows to be unhealthy is painted anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.methods.variational.reversed import (
    INTRO,
    Intro,
    Reversed,
    equalised,
    moved,
    smoothed,
)
from normscan.networks.aot import Inpainter
from normscan.networks.backbones import Backbone
from normscan.networks.discriminators import PatchDiscriminator
from normscan.networks.introspective import IntroNetwork
from normscan.networks.norms import kept_statistics
from normscan.objectives.perceptual import LearnedPerceptual
from normscan.objectives.style import StyleAndContent
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis.blur import gaussian_blur
from normscan.synthesis.draws import grid, spread_out

Limit = Literal["healthy", "scan"]
QUANTILE = 0.95


@dataclass(frozen=True)
class Painting:
    """Weights of the inpainter's terms, and the threshold of holes in training."""

    style: float
    content: float
    adversarial: float
    threshold: float


def spots(shape: tuple[int, ...], rng: Rng, count: int = 10) -> Tensor:
    """Masks (B, 1, H, W) of small filled ellipses around the middle.

    On 128 pixels centres lie in 32..96 and half axes are the sizes of N(2, 4), at least 2; whole
    pixels, turned anyhow.
    """
    n, spatial = shape[0], shape[2:]
    unit = spatial[0] / 128
    at, found = grid(spatial).movedim(0, -1), torch.zeros(n, *spatial, dtype=torch.bool)
    places, turns = rng.uniform((n, count, 2)), rng.uniform((n, count))
    halves = (2 + 4 * rng.normal((n, count, 2))).abs().clamp_min(2).floor() * unit
    sizes = torch.tensor(spatial, dtype=at.dtype)
    centres = (sizes / 4 + places * sizes / 2).floor()
    for k in range(count):
        angle = turns[:, k] * torch.pi
        apart = at[None] - centres[:, k].reshape(n, 1, 1, 2).to(at)
        cos, sin = (spread_out(v[:, None], 1) for v in (angle.cos(), angle.sin()))
        along = cos * apart[..., 0] + sin * apart[..., 1]
        across = cos * apart[..., 1] - sin * apart[..., 0]
        a, b = (spread_out(halves[:, k, i : i + 1], 1) for i in range(2))
        found |= (along / a).square() + (across / b).square() <= 1
    return found[:, None].float()


class Repainted(Reversed):
    """A reversed autoencoder that says where, and an inpainter that says what; see ``phanes``.

    Args:
        *parts: of ``Reversed``.
        inpainter: image with holes, and holes, to the image.
        critic: image to a number for each patch, high where it is painted.
        compared: style and content of images.
        painting: weights of the inpainter's terms.
        limit: whose quantile of the product of residual and perceptual distance makes a hole.
    """

    learnt_limit: Tensor

    def __init__(
        self, *parts: Any, inpainter: Inpainter, critic: nn.Module, compared: StyleAndContent,
        painting: Painting, limit: Limit,
    ) -> None:  # fmt: skip
        super().__init__(*parts)
        self.inpainter, self.critic, self.compared = inpainter, critic, compared
        self.painting, self.limit = painting, limit
        self.register_buffer("learnt_limit", torch.full((), painting.threshold))
        for network in (inpainter, critic):
            for name, parameter in network.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, 0.0, 0.02)

    def phases(self) -> list[Phase]:
        (phase,) = super().phases()
        own = self.training_options
        optimizer = adam(own["lr"], betas=(own["beta1"], 0.999), weight_decay=own["weight_decay"])
        phase.players += [
            Player("inpainter", [self.inpainter], optimizer),
            Player("critic", [self.critic], optimizer),
        ]
        phase.batches = len(phase.players)
        return [phase]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if player in ("encoder", "decoder"):
            return super().loss(batch, phase, player)
        x = batch.image
        if not self.inpainter.training:  # weights are chosen by both errors
            if player == "critic":
                return {}
            return {"painted": F.mse_loss(self.painted(x, self.again(x, batch)[0], None), x)}
        if self.augmented:
            x = moved(x, batch)
        planted = spots((len(x), 1, *x.shape[2:]), batch.rng).to(x)
        with torch.no_grad(), kept_statistics(self.network):
            restored = self.again(x, batch)[0]
            holes = torch.maximum(self.holes(x, restored, self.painting.threshold), planted)
        if player == "inpainter":
            return self._inpainter(x, holes)
        with torch.no_grad():
            composed = torch.where(holes > 0, self.filled(x, holes), x)
        reach = min(35, x.shape[2] - 1)
        soft = gaussian_blur(
            planted, planted.new_full((len(x),), 10.0), (2 * reach + 1,) * 2, "constant"
        )
        return {
            "fake": F.mse_loss(self.judged(composed), soft.expand(len(x), 1, -1, -1)),
            "real": self.judged(x).square().mean(),
        }

    def _inpainter(self, x: Tensor, holes: Tensor) -> dict[str, Tensor]:
        weights, painted = self.painting, self.filled(x, holes)
        # The network of the features takes what it calls -1..1.
        style, content = self.compared((x + 1) / 2, (painted + 1) / 2)
        terms = {
            "l1": F.l1_loss(painted, x),
            "style": weights.style * style,
            "content": weights.content * content,
        }
        if weights.adversarial:
            composed = torch.where(holes > 0, painted, x)
            taken = (self.judged(composed) - 1).square().mean()
            terms["adversarial"] = weights.adversarial * taken
        return terms

    def filled(self, x: Tensor, holes: Tensor) -> Tensor:
        """The inpainter's image; what it is given is 1 in the holes."""
        result: Tensor = self.inpainter(torch.where(holes > 0, torch.ones_like(x), x), holes)
        return result

    def judged(self, x: Tensor) -> Tensor:
        """The critic's numbers, enlarged to the image."""
        size = x.shape[2:]
        return F.interpolate(self.critic(x), size, mode="bilinear", align_corners=True)

    def product(self, x: Tensor, restored: Tensor) -> Tensor:
        """Difference after equalisation, up to its own 95th percentile, times LPIPS, (B, 1, H, W)."""
        apart = absolute(equalised(x.clamp(0, 1)), equalised(restored))
        most = torch.quantile(apart.flatten(1), QUANTILE, dim=1).reshape(-1, 1, 1, 1)
        return (apart / (most + 1e-8)).clamp_max(1) * smoothed(self.distance(x, restored))

    def holes(self, x: Tensor, restored: Tensor, threshold: float | None) -> Tensor:
        """Where an image is painted anew, (B, 1, H, W) of 0 and 1; None for a scan's own limit."""
        from scipy.ndimage import gaussian_filter

        product = self.product(x, restored)
        limit = (
            torch.quantile(product.flatten(1), QUANTILE, dim=1).reshape(-1, 1, 1, 1)
            if threshold is None
            else threshold
        )
        marked = (product > limit).to(x).cpu().numpy()
        return (torch.from_numpy(gaussian_filter(marked, (0, 0, 1.2, 1.2))).to(x) > 0.1).to(x)

    def painted(self, x: Tensor, restored: Tensor, threshold: float | None) -> Tensor:
        """Images whose holes are painted anew."""
        holes = self.holes(x, restored, threshold)
        return torch.where(holes > 0, self.filled(x, holes).clamp(0, 1), x)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        if self.limit == "healthy":
            seen = [
                self.product(b.image, self.restored(b.image, b)).flatten()[::8].cpu().numpy()
                for b in batches
            ]
            self.learnt_limit.fill_(float(np.quantile(np.concatenate(seen), QUANTILE)))

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image.clamp(0, 1)
        limit = float(self.learnt_limit) if self.limit == "healthy" else None
        healthy = self.painted(x, self.restored(x, batch), limit)
        return Maps(absolute(x, healthy) * smoothed(self.distance(x, healthy)), None, healthy)


_SMALL: dict[str, Any] = {
    "backbone": "resnet18.tv_in1k", "taps": ("act1", "layer1", "layer2"),
    "compared": "resnet18.tv_in1k", "compared_taps": ("act1", "layer1", "layer2"),
    "style_taps": ("layer1", "layer2"), "lr": 5e-4, "patience": None,
}  # fmt: skip


@register(
    "phanes",
    paper="Bercea 2023",
    dims=(2,),
    presets={
        "code": {"adversarial": 0.0, "limit": "scan"},
        "laptop": {
            **_SMALL, "size": 64, "latent": 64, "widths": (16, 32, 64, 128), "steps": 400,
            "width": 16, "blocks": 4, "rates": (1, 2, 4, 8),
            "preprocess": {**OWN_RANGE, "scaling": "median", "limit": 1.0},
        },
    },
    reduction="mean",
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "pad"},
    tiny={
        **_SMALL, "size": 32, "latent": 16, "widths": (8, 16, 32), "steps": 40, "lr": 4e-3,
        "batch_size": 4, "width": 8, "blocks": 1, "rates": (1, 2), "weights": "random",
        "taps": ("act1",), "compared_taps": ("act1",), "style_taps": (), "augmented": False,
        "preprocess": {**OWN_RANGE, "scaling": "auto", "limit": 1.0},
    },
    options=INTRO,
)  # fmt: skip
def phanes(
    dims: int = 2,
    channels: int = 1,
    backbone: str = "vgg16.tv_in1k",
    taps: tuple[str, ...] = (
        "features.3", "features.8", "features.15", "features.22", "features.29",
    ),
    weights: str = "hub",
    heads: str | None = None,
    compared: str = "vgg19.tv_in1k",
    compared_taps: tuple[str, ...] = (
        "features.1", "features.6", "features.8", "features.11", "features.17", "features.20",
        "features.26", "features.29", "features.31",
    ),
    style_taps: tuple[str, ...] = ("features.8", "features.17", "features.26", "features.31"),
    width: int = 64,
    blocks: int = 8,
    rates: tuple[int, ...] = (1, 2, 4, 8),
    style: float = 250.0,
    content: float = 0.1,
    adversarial: float = 0.01,
    training_threshold: float = 0.1,
    limit: Limit = "healthy",
    embedding_weight: float = 0.005,
    augmented: bool = True,
    **options: Unpack[Intro],
) -> Method:  # fmt: skip
    """Unhealthy places by a reversed autoencoder, painted anew by an inpainter (PHANES).

    Bercea, Wiestler, Rueckert and Schnabel, MICCAI 2023, on slices of 128 pixels: the autoencoder
    of ``ra`` gives a coarse restoration. Its difference to the image, both adaptively equalised and
    up to the 95th percentile of each scan, times the smoothed LPIPS says where the image is
    unhealthy: above a threshold that 5 % of healthy pixels exceed, widened by 1.2 pixels. An
    inpainter (AOT-GAN) fills that from the healthy rest. It learns at once with the autoencoder, on
    its holes at a threshold of 0.1 and on ten small ellipses: 1 mean |x - x^| of the whole image +
    250 style + 0.1 content by VGG19 + 0.01 a critic, which learns where an image is painted as a
    soft mask of the ellipses. Adam 5e-5, batches of 8, up to 1500 passes, ended after 500 without
    gain. The map is the difference to the image with filled holes, times its smoothed LPIPS; the
    score its mean. ``code``: the critic doesn't teach the inpainter, since the release never
    propagates that term, and each scan's own 95th percentile is the threshold.

    Departures:
        LPIPS: on VGG16, its channels weighed by ``heads``, all 1 without; SqueezeNet's in the release.
        threshold: learnt from the healthy training scans; 0.153 in the article, for its LPIPS.
        holes: of each image by itself; the release blurs the masks of a batch into each other.
        turns: each player draws a batch of its own; in the release all see the same one.
        ellipses: exact; drawn as polygons by OpenCV in the release.
        range and augmentation: those of ``ra``.

    Args:
        dims: spatial axes, 2.
        channels: of the image, 1 or 3; grey is repeated for the backbones.
        backbone: timm name with the tag of its weights, for LPIPS.
        taps: layers of it that are compared.
        weights: of both backbones: ``hub``, ``pip:NAME``, ``random``, or the path of a state dict.
        heads: path of the state dict of LPIPS's weights of the channels, see ``ra``; None for 1.
        compared: timm name of the network for style and content.
        compared_taps: layers of it, in its order.
        style_taps: those whose style is compared; of the others the content is.
        width: channels of the inpainter's first convolution, and of the critic's.
        blocks: of the inpainter.
        rates: dilations in each block.
        style: weight of the style.
        content: weight of the content.
        adversarial: weight of the critic in the inpainter's loss.
        training_threshold: of the product, above which holes are made in training.
        limit: threshold at test: 5 % of ``healthy`` pixels exceed it, or of the ``scan``'s own.
        embedding_weight: of the distance of the embeddings.
        augmented: turn, shift, resize and mirror training images.
    """
    network = IntroNetwork(dims, channels, options["size"], options["latent"], options["widths"])
    distance = LearnedPerceptual(Backbone(backbone, taps, weights, channels=channels), heads)
    features = Backbone(compared, compared_taps, weights, channels=channels)
    return Repainted(
        network, distance, embedding_weight, augmented, options, "sample",
        inpainter=Inpainter(channels, width, blocks, rates),
        critic=PatchDiscriminator(dims, channels, width, plain_end=True),
        compared=StyleAndContent(features, style_taps),
        painting=Painting(style, content, adversarial, training_threshold), limit=limit,
    )  # fmt: skip
