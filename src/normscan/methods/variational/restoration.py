"""Restoration: an image is moved to where a prior of healthy images is higher, but not far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import Reconstruction, absolute
from normscan.methods.schedule import Schedule, with_training
from normscan.networks.normative import Belief, NormativeGMVAE, NormativeVAE
from normscan.objectives.descent import Descent, total_variation
from normscan.objectives.losses import gaussian_surprise, per_image_sum
from normscan.registry import register
from normscan.scores.reservoir import Reservoir

Energy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Anchor:
    """What holds an image where it was.

    Attributes:
        weight: of the total variation of the move; None to choose it.
        candidates: from which it is chosen.
        images: healthy images by which it is chosen.
        measure: what is held small, images to (B,).
    """

    weight: float | None
    candidates: tuple[float, ...]
    images: int
    measure: Callable[[Tensor], Tensor] = total_variation

    def __post_init__(self) -> None:
        if self.weight is None and not (self.candidates and self.images > 0):
            raise ArgumentError("give a tv_weight, or tv_weights and images to choose it by.")


class Restoration(Reconstruction):
    """The map is how far an image was moved; see ``vae_restoration``.

    Args:
        *parts: of ``Reconstruction``.
        descent: how images are moved.
        anchor: what holds them.
    """

    needs_grad = True
    network: Any
    tv_weight: Tensor

    def __init__(self, *parts: Any, descent: Descent, anchor: Anchor) -> None:
        super().__init__(*parts)
        self.descent, self.anchor = descent, anchor
        start = anchor.candidates[0] if anchor.weight is None else anchor.weight
        self.register_buffer("tv_weight", torch.tensor(float(start)))

    def prior(self, x: Tensor, batch: Batch) -> Energy:
        """What is to fall, images to (B,), and is low for healthy ones.

        Args:
            x: (B, C, *spatial) where the images begin.
            batch: from which they are.
        """
        raise NotImplementedError

    def moved(self, batch: Batch, weight: Tensor | float) -> Tensor:
        """The restored images (B, C, *spatial) of a batch."""
        start = batch.image
        prior = self.prior(start, batch)

        # The move itself is what descends: equal steps of neighbours then differ by nothing at all,
        # where rounding would give the total variation a slope.
        def energy(move: Tensor) -> Tensor:
            return prior(start + move) + weight * self.anchor.measure(move)

        return start + self.descent(energy, torch.zeros_like(start), batch.foreground)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Choose the weight by which healthy images are moved least."""
        if self.anchor.weight is not None:
            return
        kept = Reservoir(self.anchor.images, 2**30)
        for batch in batches:
            rows = (batch.image, batch.foreground.to(batch.image))
            kept.add(torch.cat([r.flatten(1) for r in rows], dim=1), batch.rng)
        like, rng = batch, batch.rng
        moved = []
        for weight in self.anchor.candidates:
            total = 0.0
            for rows in kept.finish().to(like.image).split(16):
                image, mask = rows.split([like.image[0].numel(), like.foreground[0].numel()], 1)
                part = Batch(
                    image.unflatten(1, like.image.shape[1:]),
                    mask.unflatten(1, like.foreground.shape[1:]) > 0, rng, like.position[:0],
                )  # fmt: skip
                total += float((self.moved(part, weight) - part.image).abs().sum())
            moved.append(total)
        self.tv_weight.fill_(self.anchor.candidates[moved.index(min(moved))])

    def maps(self, batch: Batch) -> Maps:
        restored = self.moved(batch, self.tv_weight)
        return Maps(self._residual(batch.image, restored), reconstruction=restored)


class BoundRestoration(Restoration):
    """The prior is the bound, with the squared error for its likelihood."""

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        z, divergences = self.network.code(batch.image, batch.rng.normal)
        mean, precision = self.network.decode(z)
        error = per_image_sum(gaussian_surprise(batch.image, mean, -precision))
        return {"error": error, **{name: kl.mean() for name, kl in divergences.items()}}

    def prior(self, x: Tensor, batch: Batch) -> Energy:
        def energy(seen: Tensor) -> Tensor:
            z, divergences = self.network.code(seen, batch.rng.normal)
            error = (seen - self.network.decode(z)[0]).square().flatten(1).sum(1)
            return error + torch.stack([*divergences.values()]).sum(0)

        return energy


class Normative(Schedule):
    """The arguments of both priors, those of ``schedule`` among them."""

    size: int
    latent: int
    width: int
    least_std: float
    tv_weight: float | None
    tv_weights: tuple[float, ...]
    tuning_images: int
    restoration_steps: int
    step_sizes: tuple[float, float]
    gradient_limit: float


NORMATIVE = with_training(
    Normative,
    {
        "size": 158,
        "latent": 1,
        "width": 64,
        "least_std": 0.0,
        "tv_weight": None,
        "tv_weights": tuple(i / 5 for i in range(20)),
        "tuning_images": 64,
        "restoration_steps": 500,
        "step_sizes": (5e-3, 2e-3),
        "gradient_limit": 50.0,
    },
    {
        "size": "pixels along each axis: 4 k + 14 with k of 5 or more.",
        "latent": "channels of the code.",
        "width": "channels of each convolution.",
        "least_std": "floor of the deviation that is predicted for a value; its ceiling is 1.",
        "tv_weight": "weight of the total variation of the move; None to choose it.",
        "tv_weights": "from which that weight is chosen on healthy images.",
        "tuning_images": "healthy images by which it is chosen, drawn from those of training.",
        "restoration_steps": "steps of gradient descent on an image.",
        "step_sizes": "of the first 100 steps and of the others.",
        "gradient_limit": "to which each pixel's slope is cut.",
    },
    lr=5e-5,
    batch_size=16,
    steps=1_600_000,
)
UNIT: dict[str, Any] = {"scaling": "minmax", "limit": 1.0, "crop": "foreground", "fit": "pad"}
LAPTOP: dict[str, Any] = {
    "size": 66,
    "width": 24,
    "least_std": 0.05,
    "tv_weights": (0.0, 0.2, 0.6, 1.2, 2.4),
    "tuning_images": 16,
    "restoration_steps": 60,
    "step_sizes": (0.05, 0.02),
    "lr": 1e-3,
    "steps": 800,
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "median"},
}
TINY: dict[str, Any] = {
    "size": 34,
    "latent": 8,
    "width": 16,
    "least_std": 0.3,
    "tv_weights": (0.0, 0.02),
    "tuning_images": 8,
    "restoration_steps": 12,
    "step_sizes": (0.1, 0.05),
    "lr": 3e-3,
    "steps": 250,
    "preprocess": {**OWN_RANGE, "steps": [], "scaling": "auto"},
}


def _restoration(network: NormativeVAE, options: Normative) -> Method:
    """What both priors share."""
    anchor = Anchor(options["tv_weight"], tuple(options["tv_weights"]), options["tuning_images"])
    descent = Descent(
        options["restoration_steps"], options["step_sizes"], limit=options["gradient_limit"]
    )
    return BoundRestoration(network, None, absolute, options, descent=descent, anchor=anchor)


@register(
    "vae_restoration",
    paper="You 2019; Chen 2020",
    presets={"code": {"tv_weight": 2.2}, "laptop": LAPTOP},
    preprocess=UNIT,
    tiny=TINY,
    options=NORMATIVE,
)
def vae_restoration(dims: int = 2, channels: int = 1, **options: Unpack[Normative]) -> Method:
    """Restoration of an image by gradient steps, with a variational autoencoder as the prior.

    You et al., MIDL 2019 and Chen et al., Medical Image Analysis 2020, on T2 slices of brains: six
    convolutions without padding to a grid of codes with one channel; Gaussian likelihood with a
    predicted deviation of at most 1 and divergence, summed both; Adam 5e-5, batches of 16, 1.6
    million updates. At test the image itself goes down the squared error of its restoration plus
    the divergence, summed, plus a weight times the total variation of what was changed: 500 steps of
    0.005, later 0.002, the code drawn anew in each, slopes cut at 50 and kept to the brain. The
    weight is the one, of 0 to 3.8, by which healthy images are changed least. The map is the
    absolute change. ``code`` has the weight of the release, 2.2. In the article this finds tumours
    and strokes better than the residual of a restoration in one go.

    Departures:
        grid: a square of 158 pixels around the head; 158 x 198 in the release.
        range: smallest and largest value to 0 and 1; the release's histograms were equalised
            first, by what its folders' names say.
        weight: chosen on images drawn from the healthy training scans; on other healthy scans in
            the release, all of them, which takes days.
        initial weights: PyTorch's; normal with deviation 0.01 in the release.
        weights: those with the best healthy validation loss; the release takes the last.
        score: the mean of the map over the foreground; the article scores pixels only.
        laptop: a smaller network, 60 steps ten times as large, five weights, deviations of 0.05 and
            more, without which the background outweighs all else.
    """
    network = NormativeVAE(
        dims, channels, options["size"], options["width"], options["latent"], options["least_std"]
    )
    return _restoration(network, options)


@register(
    "gmvae_restoration",
    paper="You 2019; Chen 2020",
    presets={
        "code": {"tv_weight": 1.8, "belief": "release"},
        "laptop": LAPTOP,
    },
    preprocess=UNIT,
    tiny=TINY,
    options=NORMATIVE(gradient_limit=100.0),
)
def gmvae_restoration(
    dims: int = 2,
    channels: int = 1,
    classes: int = 6,
    class_floor: float = 0.5,
    belief: Belief = "density",
    **options: Unpack[Normative],
) -> Method:
    """Restoration of an image by gradient steps, with a mixture of Gaussians as the prior.

    You et al., MIDL 2019 and Chen et al., Medical Image Analysis 2020: ``vae_restoration`` whose
    code is expected near one of six centres at each position. A second code, itself expected to be
    standard normal, says where the centres lie. Its divergences join loss and energy: of the code
    from the centres, each by its probability; of the second code; and of the classes from evenness,
    0.5 and more at each position. Slopes are cut at 100. ``code`` has the weight of the release,
    1.8, and its slip with the classes.

    Departures:
        all those of ``vae_restoration``.
        classes: by the density of the code under each centre; in the release the logarithm of the
            inverse variance comes in with the opposite sign and twice, by which wide centres win
            (``code``).

    Args:
        classes: centres of the code.
        class_floor: least divergence of the classes from evenness at a position.
        belief: which class a code is from, by its ``density`` or as the ``release`` has it.
    """
    network = NormativeGMVAE(
        dims, channels, options["size"], options["width"], options["latent"], options["least_std"],
        classes=classes, floor=class_floor, belief=belief,
    )  # fmt: skip
    return _restoration(network, options)
