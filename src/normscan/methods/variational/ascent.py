"""Ascent of an image under a Gaussian that stands for the prior of healthy images near it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normscan.methods.autoencoders.adversarial import ARTICLE_RANGE
from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Method
from normscan.methods.reconstruction import absolute
from normscan.methods.schedule import Schedule, schedule
from normscan.methods.variational.restoration import Anchor, Energy, Restoration
from normscan.networks.divergences import kl_standard_normal
from normscan.networks.residual import ResidualGrid
from normscan.objectives.descent import Descent, total_variation
from normscan.objectives.losses import per_image_sum
from normscan.registry import register

Spread = Literal["guessed", "sampled"]
Hold = Literal["tv", "l1"]

# Adam makes whole steps of the smallest slopes, those of rounding among them.
CORNER = 1e-3
HELD = {"tv": partial(total_variation, corner=CORNER), "l1": lambda x: x.abs().flatten(1).sum(1)}

MOST = 5e3  # of a pixel's squared distance in variances, beyond which it has no slope


def distance(x: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Squared distance in units of the variance, each pixel's cut at 5000, summed, (B,).

    Args:
        x: (B, C, *spatial).
        mean: of the same shape.
        spread: deviations, of the same shape.
    """
    pixels = (x - mean).square() / (spread.square() + 1e-10)
    return pixels.clamp(max=MOST).flatten(1).sum(1)


class LocalGaussian(Restoration):
    """Near an image the prior is a Gaussian around its restorations; see ``local_gaussian_ascent``.

    Args:
        *parts: of ``Restoration``.
        kl_weight: of the summed divergence.
        spread: where the deviations of that Gaussian come from.
        samples: restorations that are averaged.
        every: steps after which the mean is found anew.
        **options: of ``Restoration``.
    """

    def __init__(
        self,
        *parts: Any,
        kl_weight: float,
        spread: Spread,
        samples: int,
        every: int,
        **options: Any,
    ) -> None:
        super().__init__(*parts, **options)
        self.kl_weight, self.spread = kl_weight, spread
        self.samples, self.every = samples, every

    def restorations(self, x: Tensor, batch: Batch, count: int) -> Tensor:
        """Restorations from drawn codes, (count, B, C, *spatial)."""
        mean, log_std = self.network.encode(x)
        codes = [mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean) for _ in range(count)]
        return torch.stack([self.network.decode(z) for z in codes])

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, network = batch.image, self.network
        mean, log_std = network.encode(x)
        restored = network.decode(mean + log_std.exp() * batch.rng.normal(mean.shape).to(mean))
        return {
            "error": per_image_sum((x - restored).square()),
            "kl": self.kl_weight * per_image_sum(kl_standard_normal(mean, log_std)),
            "residual": per_image_sum((network.guess(x) - (x - restored).abs()).square()),
        }

    def prior(self, x: Tensor, batch: Batch) -> Energy:
        with torch.no_grad():
            spread = self.network.guess(x)
        looks = 0
        mean = x

        def energy(seen: Tensor) -> Tensor:
            nonlocal looks, mean, spread
            if looks % self.every == 0:
                with torch.no_grad():
                    drawn = self.restorations(seen, batch, self.samples)
                mean = drawn.mean(0)
                if self.spread == "sampled":
                    spread = drawn.std(0)
            looks += 1
            return distance(seen, mean, spread)

        return energy


@register(
    "local_gaussian_ascent",
    paper="Chen 2019; Chen 2021",
    presets={
        "laptop": {
            "size": 64,
            "width": 8,
            "levels": 5,
            "tv_weight": 2.0,
            "restoration_steps": 60,
            "step_size": 0.02,
            "refresh_every": 10,
            "batch_size": 16,
            "lr": 1e-3,
            "steps": 800,
            "preprocess": {**OWN_RANGE, "steps": [], "scaling": "median"},
        },
    },
    preprocess=ARTICLE_RANGE,
    postprocess=("foreground",),
    tiny={
        "size": 32,
        "width": 8,
        "levels": 3,
        "kl_weight": 0.05,
        "tv_weight": 1.0,
        "samples": 3,
        "restoration_steps": 12,
        "step_size": 0.05,
        "refresh_every": 4,
        "batch_size": 16,
        "lr": 3e-3,
        "steps": 150,
        "postprocess": (),
        "preprocess": {**OWN_RANGE, "steps": [], "scaling": "auto"},
    },
    options=schedule(lr=5e-4, batch_size=64, steps=100_000),
)
def local_gaussian_ascent(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 16,
    levels: int = 6,
    kl_weight: float = 1.0,
    spread: Spread = "guessed",
    samples: int = 10,
    hold: Hold = "tv",
    tv_weight: float | None = 17.0,
    tv_weights: tuple[float, ...] = (2.0, 4.0, 8.0, 17.0, 32.0),
    tuning_images: int = 64,
    restoration_steps: int = 1500,
    step_size: float = 5e-3,
    gradient_limit: float = 320.0,
    refresh_every: int = 200,
    **training: Unpack[Schedule],
) -> Method:
    """Ascent of an image under a Gaussian that approximates the prior near it.

    Chen et al., MLMI 2019 and Medical Image Analysis 2021, on T2 slices of brains at 128 pixels: a
    residual variational autoencoder with a grid of codes, summed squared error and divergence, and
    beside it a network that guesses the absolute residual. Near an image, healthy ones are taken for
    a Gaussian: its mean is that of ten restorations from drawn codes, found anew every 200 steps, its
    deviation the guessed residual. Adam (0.005) moves the image 1500 times down its squared distance
    in variances plus 17 times the total variation of what was changed, within the brain. The map is
    the absolute change. The articles find this more accurate than gradients of the bound, as in
    ``vae_restoration``. The network sees values z-scored in the brain, -3.5 outside it.

    Departures:
        network: the one that the release trains by its main script, with independent codes; the
            weights of its figures are those of a second one with full covariances, which isn't there.
        weight of the divergence: 1, as that of the second network; the main script needs it given.
        norms: their running statistics in restoration; those of the batch in the release, where a
            map hangs on its neighbours.
        slopes: of each image, cut at 320; of the mean over 64 images, cut at 5, in the release.
        total variation: rounded off below differences of 0.001, where rounding would decide.
        padding: on both sides; TensorFlow pads at the end only where a convolution halves the size.
        importance: restorations are averaged evenly, as in the release's active code.
        initial weights: PyTorch's; normal with deviation 0.02 in the release.
        score: the mean of the map in the foreground; the articles score pixels only.

    Args:
        size: pixels along each axis, a multiple of 2 to the power of ``levels``.
        width: channels of the first convolution.
        levels: halvings of the image.
        kl_weight: of the summed divergence; the second head is log sigma.
        spread: the Gaussian's deviation, ``guessed`` by the network or that of the ``sampled``
            restorations.
        samples: restorations whose mean is the Gaussian's.
        hold: what is held small of the change, its total variation (``tv``) or size (``l1``); the
            release weighs ``l1`` by 8, and with a sampled spread ``tv`` by 200 and ``l1`` by 500.
        tv_weight: weight of that; None to choose it.
        tv_weights: from which it is chosen on healthy images, by which one moves them least.
        tuning_images: healthy images by which it is chosen, drawn from those of training.
        restoration_steps: steps of Adam on an image.
        step_size: its rate.
        gradient_limit: to which each pixel's slope is cut.
        refresh_every: steps after which the mean is found anew.
    """
    descent = Descent(
        restoration_steps, (step_size, step_size), limit=gradient_limit, optimizer=torch.optim.Adam
    )
    anchor = Anchor(tv_weight, tuple(tv_weights), tuning_images, HELD[hold])
    network = ResidualGrid(dims, channels, size, width, levels)
    return LocalGaussian(
        network, None, absolute, training, descent=descent, anchor=anchor, kl_weight=kl_weight,
        spread=spread, samples=samples, every=refresh_every,
    )  # fmt: skip
