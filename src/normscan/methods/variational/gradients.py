"""Variational autoencoders that look at the gradients of their bound with respect to the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import squared
from normscan.methods.schedule import Schedule, with_training
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.convolutional import PointCode
from normscan.objectives.gradients import input_gradient
from normscan.registry import register
from normscan.synthesis.augment import scanned_again
from normscan.synthesis.blur import gaussian_blur
from normscan.synthesis.rectangles import context_square

Pixelwise = Callable[[Tensor, Tensor], Tensor]
Part = Literal["bound", "divergence", "error"]
Predictor = Literal["combined", "residual", "divergence", "bound", "error"]

LIMIT = 1.5  # deviations, at which the brain's values are cut

LAPTOP: dict[str, Any] = {
    "size": 64,
    "latent": 64,
    "widths": (16, 32, 64, 128),
    "lr": 1e-3,
    "steps": 800,
    "batch_size": 16,
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "median"},
}
TINY: dict[str, Any] = {
    "size": 32,
    "latent": 16,
    "widths": (16, 32, 64),
    "lr": 5e-3,
    "steps": 300,
    "batch_size": 16,
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "auto"},
}


# A unit deviation is the brain's where it is brought to that; of images in 0..1 it is nearly all.
SHARPER: dict[str, Any] = {"kl_weight": 0.01}


class Pointed(Schedule):
    """The arguments of networks with a code of one pixel, those of ``schedule`` among them."""

    size: int
    latent: int
    widths: tuple[int, ...]


POINTED = with_training(
    Pointed,
    {"size": 64, "latent": 256, "widths": (16, 32, 64, 256)},
    {
        "size": "pixels along each axis, to be halved for each of ``widths`` with 2 or more left.",
        "latent": "numbers in the code.",
        "widths": "channels behind each convolution of stride 2.",
    },
    lr=1e-4,
)


def absolute_error(x: Tensor, restored: Tensor) -> Tensor:
    """|x - x^| of each value."""
    return (x - restored).abs()


def half_square(x: Tensor, restored: Tensor) -> Tensor:
    """-log N(x; x^, 1) of each value, less its constant."""
    return 0.5 * (x - restored).square()


def mean_surprise(x: Tensor, restored: Tensor) -> Tensor:
    """-log N(x; x^, 1) averaged over the channels, (B, 1, *spatial); its constant is 0.919."""
    return half_square(x, restored).mean(1, keepdim=True) + 0.5 * math.log(2 * math.pi)


def per_image(values: Tensor, summed: bool) -> Tensor:
    """Sum or mean of each image's values, (B,)."""
    return values.flatten(1).sum(1) if summed else values.flatten(1).mean(1)


def gaussian_error(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Half the squared error summed over an image, mean of the batch: a Gaussian of deviation 1."""
    return {"error": per_image(half_square(batch.image, restored), True).mean()}


def relative(values: Tensor) -> Tensor:
    """Each image's values brought to 0..1."""
    ones = [1] * (values.ndim - 1)
    low = values.flatten(1).amin(1).reshape(-1, *ones)
    high = values.flatten(1).amax(1).reshape(-1, *ones)
    return (values - low) / (high - low).clamp_min(1e-30)


def smoothed(values: Tensor) -> Tensor:
    """A Gaussian of 3 pixels cut to 7, zeros beyond the frame."""
    window = (7,) * (values.ndim - 2)
    return gaussian_blur(values, values.new_full((len(values),), 3.0), window, "constant")


@dataclass(frozen=True)
class Bound:
    """The loss, which is the negative of the bound of the likelihood.

    Attributes:
        error: image and restoration to an error of each value.
        weight: of the divergence.
        summed: sum over an image and over its code; else the mean of both.
    """

    error: Pixelwise
    weight: float = 1.0
    summed: bool = True


@dataclass(frozen=True)
class Look:
    """What a map is made of.

    Attributes:
        predictor: the residual, a smoothed absolute gradient, or the product of the residual with
            the gradient of the divergence.
        residual: image and restoration to (B, 1, *spatial).
        copies: noisy copies of the image, each noisier than the one before, whose gradients are
            averaged; 0 for the gradient at the image itself.
        noise: deviation that is added for each copy.
    """

    predictor: Predictor
    residual: Pixelwise
    copies: int = 0
    noise: float = 0.1


class GradientScored(VariationalReconstruction):
    """An image's score is its bound; its map is made of the residual and of gradients.

    At test the code is its mean.

    Args:
        network: with ``encode`` to mean and log sigma, and ``decode``.
        bound: error, weight of the divergence, reduction.
        look: what the map is made of.
        training: of ``Reconstruction``.
        **options: of ``Reconstruction``.
    """

    needs_grad = True

    def __init__(
        self, network: nn.Module, bound: Bound, look: Look, training: Any, **options: Any
    ) -> None:
        def named(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
            return {"error": per_image(bound.error(batch.image, restored), bound.summed).mean()}

        super().__init__(
            network, named, look.residual, training, kl_weight=bound.weight, kl_sum=bound.summed,
            log_variance=False, inference="mean", samples=1, **options,
        )  # fmt: skip
        self.bound, self.look = bound, look

    def terms(self, x: Tensor) -> dict[Part, Tensor]:
        """The bound of scaled images and its two parts, (B,) each."""
        mean, log_std = self.encode(x)
        summed = self.bound.summed
        kl = self.bound.weight * per_image(self.divergence(mean, log_std), summed)
        error = per_image(self.bound.error(x, self.network.decode(mean)), summed)
        return {"bound": kl + error, "divergence": kl, "error": error}

    def slope(self, x: Tensor, part: Part, batch: Batch) -> Tensor:
        """|d part / dx| averaged over noisy copies and channels, (B, 1, *spatial)."""
        found = []
        for _ in range(max(1, self.look.copies)):
            if self.look.copies:
                x = x + self.look.noise * batch.rng.normal(x.shape).to(x)
            _, gradient = input_gradient(lambda seen: self.terms(seen)[part], x)
            found.append(gradient.abs().mean(1, keepdim=True))
        return torch.stack(found).mean(0)

    def predicted(self, x: Tensor, restored: Tensor, name: Predictor, batch: Batch) -> Tensor:
        """One predictor's map (B, 1, *spatial) of scaled images."""
        if name == "residual":
            return self._residual(x, restored)
        if name == "combined":
            seen = smoothed(relative(self.slope(x, "divergence", batch)))
            return seen * self._residual(x, restored)
        return smoothed(self.slope(x, name, batch))

    def maps(self, batch: Batch) -> Maps:
        x = self.scaled(batch).image
        with torch.no_grad():
            restored, score = self.restored(x, batch), self.terms(x)["bound"]
        anomaly = self.predicted(x, restored, self.look.predictor, batch)
        return Maps(anomaly, score, self.shown(restored))


class ContextEncoding(GradientScored):
    """It also restores what squares hide; see ``context_encoding_vae``.

    Args:
        *parts: of ``GradientScored``.
        share: of the loss with hidden squares.
        drawn: draw the code of an image with hidden squares, else take its mean.
        **options: of ``GradientScored``.
    """

    def __init__(self, *parts: Any, share: float, drawn: bool, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.share, self.drawn = share, drawn

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        plain = super().loss(batch, phase, player)
        batch = self.scaled(batch)
        mean, log_std = self.encode(context_square(batch.image, batch.rng))
        code = self.draw(mean, log_std, batch) if self.drawn else mean
        hidden = self._loss(self.network.decode(code), batch)["error"]
        weighted = {name: (1 - self.share) * value for name, value in plain.items()}
        return {**weighted, "context": self.share * hidden}


@register(
    "ce_vae",
    paper="Zimmerer 2019",
    dims=(2, 3),
    presets={
        "code": {"size": 128, "latent": 128, "kernel": 3, "context_drawn": True},
        "laptop": LAPTOP,
    },
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={**TINY, "kl_weight": 0.001},
    options=POINTED(latent=1024, widths=(16, 64, 256, 1024), batch_size=16, epochs=20),
)
def context_encoding_vae(
    dims: int = 2,
    channels: int = 1,
    kernel: int = 4,
    kl_weight: float = 0.01,
    context_share: float = 0.5,
    context_drawn: bool = False,
    predictor: Predictor = "combined",
    **options: Unpack[Pointed],
) -> Method:
    """Context-encoding variational autoencoder.

    Zimmerer et al., 2018 and MIDL 2019: a variational autoencoder on slices of 64 pixels with 1024
    numbers in its code also restores images in which squares are hidden, from the mean of their
    code; both losses weigh half. The score is the bound, the map the squared residual times the
    smoothed gradient of the divergence with respect to the image, and a volume's score that of its
    worst slice. ``code`` is its authors' later release for a challenge: 128 pixels and numbers,
    3 x 3 convolutions on the way down, a drawn code for hidden squares too, absolute error and
    divergence as means. The network sees 2 x - 1.

    Departures:
        training: the rate, batches, epochs, range and weight of the divergence of the release; the
            article's weren't known.
        squares: as the release makes them, at most one in an image and none in a third of them,
            since each of its squares wipes out the one before.
        normalisation: of each image's gradient; over the 16 slices of a batch in the release, where
            a map hangs on its neighbours. Gradients by themselves aren't brought to 0..1.
        GECO: left out; the release has it switched off.
        third axis: ours.

    Args:
        kernel: 3 or 4, of the convolutions on the way down.
        kl_weight: of the mean divergence beside the mean error.
        context_share: share of the loss with hidden squares; 0 is a variational autoencoder.
        context_drawn: draw the code where squares are hidden, else take its mean.
        predictor: the map: ``combined``, ``residual``, or the gradient of the ``bound`` or of one
            of its parts, ``divergence`` and ``error``.
    """
    network = PointCode(
        dims, channels, options["size"], options["latent"], options["widths"], kernel
    )
    return ContextEncoding(
        network, Bound(absolute_error, kl_weight, summed=False), Look(predictor, squared, copies=2),
        options, centred=True, share=context_share, drawn=context_drawn,
    )  # fmt: skip


class Augmented(GradientScored):
    """Trained on images as if scanned again, with noise over them; see ``vae_kl_grad``.

    Args:
        *parts: of ``GradientScored``.
        noise: largest deviation of that noise; 0 trains on the images themselves.
        twice: take the deviation of the code for its logarithm in the divergence.
    """

    def __init__(self, *parts: Any, noise: float, twice: bool) -> None:
        super().__init__(*parts)
        self.noise, self.twice = noise, twice

    @property
    def noisy(self) -> bool:
        """Whether images are changed before they are seen."""
        return self.training and self.noise > 0

    def scaled(self, batch: Batch) -> Batch:
        # In training the noise lies over values that are cut already.
        return batch if self.noisy else replace(batch, image=batch.image.clamp(-LIMIT, LIMIT))

    def divergence(self, mean: Tensor, log_std: Tensor) -> Tensor:
        return super().divergence(mean, log_std.exp() if self.twice else log_std)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if self.noisy:
            x = scanned_again(batch.image, batch.rng, self.noise / 4).clamp(-LIMIT, LIMIT)
            deviation = self.noise * batch.rng.uniform((len(x), *[1] * (x.ndim - 1))).to(x)
            batch = replace(batch, image=x + deviation * batch.rng.normal(x.shape).to(x))
        return super().loss(batch, phase, player)


@register(
    "vae_kl_grad",
    paper="Zimmerer 2019",
    dims=(2, 3),
    presets={
        "code": {"exponent_twice": True},
        "laptop": {name: value for name, value in LAPTOP.items() if name != "preprocess"},
    },
    preprocess={
        "steps": [{"zscore": {"outside": 0.0}}],
        "scaling": "none", "crop": "none", "fit": "stretch",
    },
    tiny={**TINY, **SHARPER, "noise": 0.0},
    options=POINTED(batch_size=64, epochs=5),
)  # fmt: skip
def kl_gradient_vae(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    noise: float = 0.2,
    exponent_twice: bool = False,
    predictor: Predictor = "combined",
    **options: Unpack[Pointed],
) -> Method:
    """Variational autoencoder that localises by the gradient of its divergence.

    Zimmerer et al., MICCAI 2019: convolutions of 16, 32, 64 and 256 channels to 256 numbers, error
    of a Gaussian with deviation 1 and divergence summed, on slices of 64 pixels whose brain has
    mean 0 and deviation 1, cut at 1.5, zeros around it; mirrored, turned, resized and noisy copies in
    training. The map is the smoothed gradient of the divergence with respect to the image, brought
    to 0..1, times the negative log density, whose constant of 0.919 keeps the gradient where nothing
    is left of the residual. The article finds this product above the residual and each gradient
    over many lengths of the code.

    Departures:
        sigma: the exponential of the second head; the release takes it for log sigma and raises it
            again in the divergence (``code``), by which no deviation falls below 1 there, whereas
            codes are drawn with the right one.
        normalisation: of each image's gradient; over a batch of 64 slices in the release.
        augmentation: no crop by part of a pixel.
        score: the bound less its constant, as the release's slices; a volume's is its worst slice,
            ours. The loss, too, goes without the constant.
        third axis: ours.

    Args:
        kl_weight: of the summed divergence beside the summed error.
        noise: largest deviation of the normal noise over training images, in units of the scaled
            image; 0 also leaves out the other augmentations.
        exponent_twice: the release's slip with sigma.
        predictor: the map: ``combined``, ``residual``, or the gradient of the ``bound`` or of one
            of its parts, ``divergence`` and ``error``.
    """
    network = PointCode(dims, channels, options["size"], options["latent"], options["widths"])
    bound = Bound(half_square, kl_weight)
    return Augmented(network, bound, Look(predictor, mean_surprise), options, noise=noise,
                     twice=exponent_twice)  # fmt: skip
