"""Representations learnt by contrast, and the density of the healthy ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.blocks import doublings
from normscan.objectives.contrastive import nt_xent
from normscan.objectives.gradients import input_gradient
from normscan.objectives.optimizers import warm_cosine
from normscan.registry import register
from normscan.scores.mixture import FullMixture
from normscan.synthesis.augment import scanned_again
from normscan.synthesis.rectangles import context_square

# Slices have mean 0 and deviation 1 in the brain and are cut here.
LIMIT = 1.5
NOISE = 0.05


def halving_encoder(channels: int, size: int, width: int, latent: int) -> nn.Sequential:
    """4 x 4 convolutions that halve the image and double the channels, to one vector.

    Batch norm and ReLU stand before each but the first; the last one has no padding.

    Args:
        channels: of the image.
        size: pixels along each axis, a power of two from 8 on.
        width: channels of the first convolution.
        latent: numbers in the vector.
    """
    parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1)]
    for _ in range(doublings(size, 4) - 1):
        parts += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, 1)]
        width *= 2
    parts += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, latent, 4), nn.Flatten()]
    return nn.Sequential(*parts)


def squared_views(x: Tensor, batch: Batch) -> Tensor:
    """The same slices in another scan, with up to two squares of one grey value each."""
    x = scanned_again(x, batch.rng, NOISE).clamp(-LIMIT, LIMIT)
    for share in (2 / 3, 1 / 3):
        x = context_square(x, batch.rng, 0.5, share)
    return x


class ContrastiveDensity(Method):
    """An encoder trained by contrast and a mixture over its codes; see ``cradl``."""

    needs_grad = True

    def __init__(
        self,
        encoder: nn.Sequential,
        latent: int,
        density: FullMixture,
        temperature: float,
        training: Schedule,
    ) -> None:
        super().__init__()
        self.encoder, self.density, self.temperature = encoder, density, temperature
        self.head = nn.Sequential(
            nn.Linear(latent, latent), nn.ReLU(), nn.Linear(latent, latent)
        )  # fmt: skip
        self._training = training

    def phases(self) -> list[Phase]:
        rhythm = warm_cosine(2**31, last=0.0, share=0.05)  # 5 of 100 epochs
        return [phase([self.encoder, self.head], self._training, "contrast", rhythm=rhythm)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        a, b = (self.head(self.encoder(squared_views(batch.image, batch))) for _ in range(2))
        return {"contrast": nt_xent(a, b, self.temperature)}

    def surprise(self, x: Tensor) -> Tensor:
        """-log p (B,) of the codes of images (B, C, H, W)."""
        found: Tensor = self.density(self.encoder(x.clamp(-LIMIT, LIMIT)))
        return found

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        self.density.fit(self.encoder(b.image.clamp(-LIMIT, LIMIT)) for b in batches)

    def maps(self, batch: Batch) -> Maps:
        score, slope = input_gradient(self.surprise, batch.image)
        shown = slope.abs().mean(1, keepdim=True) * batch.foreground
        return Maps(map=shown, score=score.to(batch.image))


@register(
    "cradl",
    paper="Luth 2023",
    dims=(2,),
    presets={
        "laptop": {"size": 64, "width": 16, "latent": 128, "lr": 1e-3, "steps": 400},
    },
    preprocess={
        "steps": [{"zscore": {"outside": 0.0}}],
        "scaling": "none", "crop": "none", "fit": "stretch",
    },
    postprocess=("median=5", "smooth=3"),
    tiny={
        "size": 32, "width": 8, "latent": 16, "lr": 2e-3, "batch_size": 16, "steps": 60,
        "postprocess": ("smooth=1",),
    },
    options=schedule(lr=1e-4, weight_decay=1e-6, batch_size=64, epochs=100),
)  # fmt: skip
def cradl(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 16,
    latent: int = 512,
    components: int = 1,
    temperature: float = 0.5,
    **training: Unpack[Schedule],
) -> Method:
    """Density of representations that were learnt by contrast (CRADL).

    Luth et al., arXiv 2301.02126 (2023), on T2-weighted brains: an encoder and a projection head learn
    to tell two views of the same slice from all other slices (SimCLR with a temperature of 0.5, Adam
    1e-4, 100 epochs, 5 of them rising, then a cosine); the views are mirrored, turned by 0.1 rad,
    resized by 0.9 to 1.2, brighter, noisier, and have squares of one grey value. The head is dropped,
    and a mixture of 1, 2, 4 or 8 Gaussians with full covariances is fitted to the standardised codes
    of the healthy slices. A slice's score is the negative log density of its code, the map the
    absolute gradient of that with respect to the image in the foreground, smoothed. The article finds
    these codes above those of generative models.

    Departures:
        size: 128 pixels, ours. Encoder, views and densities are those of the successor's code.
        density: the mixture, one Gaussian by default; the normalising flow is left out.
        expectation maximisation: scikit-learn's from k-means; the successor's code takes squared
            responsibilities for the covariances, which is the same for one Gaussian only.
        views: no crop by part of a pixel; the two squares of an image are as wide as each other there.
        smoothing: a Gaussian of 3 pixels cut at 12; there at 3.
        decay: of all parameters; there not of biases and norms.

    Args:
        size: pixels along each axis, a power of two from 8 on.
        width: channels of the encoder's first convolution.
        latent: numbers in a code, and in the head.
        components: Gaussians of the mixture.
        temperature: that cosines are divided by.
        weight_decay: of Adam.
    """
    encoder = halving_encoder(channels, size, width, latent)
    return ContrastiveDensity(
        encoder, latent, FullMixture(latent, components), temperature, training
    )
