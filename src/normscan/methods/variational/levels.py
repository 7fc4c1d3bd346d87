"""A variational autoencoder on two levels: a coarse image from a dense code, details over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from torch import Tensor

from normscan.methods.base import Batch, Method
from normscan.methods.reconstruction import squared
from normscan.methods.variational.gradients import (
    LAPTOP,
    POINTED,
    TINY,
    Bound,
    GradientScored,
    Look,
    Part,
    Pointed,
    Predictor,
    absolute_error,
    per_image,
)
from normscan.networks.divergences import kl_normals, kl_standard_normal
from normscan.networks.levels import Gaussian, TwoLevels
from normscan.registry import register

# Laplacian errors of images in 0..1 are small beside a unit's divergence.
_SHARPER: dict[str, Any] = {"kl_weight": 0.1}


class HighLow(GradientScored):
    """Errors and divergences of both levels; see ``high_low_vae``.

    Args:
        *parts: of ``GradientScored``, with ``TwoLevels``.
    """

    def levels(
        self, x: Tensor, taken: Callable[[Gaussian], Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the bound of scaled images, (B,) each, and their restorations.

        Args:
            x: (B, C, *spatial).
            taken: a level's distribution to the code that is decoded.
        """
        network, weight = self.network, self.bound.weight
        high = Gaussian(*network.high.encode(network.coarse(x)))
        coarse = network.high.decode(taken(high))
        low, expected = network.details(x, coarse), network.expected(coarse)
        restored = network.decode(taken(low), coarse)
        terms = {
            "error": self.bound.error(x, restored),
            "high_error": self.bound.error(network.coarse(x), coarse),
            "high_kl": weight * kl_standard_normal(*high),
            "low_kl": weight * kl_normals(*low, *expected),
        }
        return {name: per_image(term, self.bound.summed) for name, term in terms.items()}, restored

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        terms, _ = self.levels(batch.image, lambda code: self.draw(*code, batch))
        return {name: term.mean() for name, term in terms.items()}

    def terms(self, x: Tensor) -> dict[Part, Tensor]:
        found, _ = self.levels(x, lambda code: code.mean)
        error, kl = found["error"] + found["high_error"], found["high_kl"] + found["low_kl"]
        return {"bound": error + kl, "divergence": kl, "error": error}

    def restored(self, x: Tensor, batch: Batch) -> Tensor:
        return self.levels(x, lambda code: code.mean)[1]


@register(
    "high_low_vae",
    paper="Zimmerer 2019",
    dims=(2, 3),
    presets={"laptop": {**LAPTOP, **_SHARPER}},
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={**TINY, **_SHARPER},
    options=POINTED(batch_size=64),
)
def high_low_vae(
    dims: int = 2,
    channels: int = 1,
    low_latent: int = 4,
    kl_weight: float = 1.0,
    predictor: Predictor = "combined",
    **options: Unpack[Pointed],
) -> Method:
    """Variational autoencoder that divides an image into high-level and low-level components.

    Zimmerer, Petersen and Maier-Hein, Medical Imaging meets NeurIPS 2019: a conditional hierarchical
    variational autoencoder gets a branch of its own for what is high-level, which enforces that
    features divide. Restorations are sharper, and anomalies are detected as well as by a plain one or
    slightly better. Here the dense code restores the image averaged over blocks; the codes of the
    details, one for each block, are expected and decoded given that coarse image. Absolute errors of
    both images and divergences of both codes are summed.

    Departures:
        everything but the idea: only the abstract was known, and there is no code. What the branch
            restores, the widths, the weights, rate, batches, epochs and range are ours.
        score: the bound of both levels; a volume's is its worst slice, ours.
        map: the squared residual times the smoothed gradient of both divergences, as ``ce_vae``.
        third axis: ours.

    Args:
        widths: channels behind each convolution of stride 2; the first half of them lie between the
            image and the coarse one, the rest between that and its code.
        latent: numbers in the code of the coarse image.
        low_latent: channels of the code of the details.
        kl_weight: of the summed divergences beside the summed errors.
        predictor: the map: ``combined``, ``residual``, or the gradient of the ``bound`` or of one
            of its parts, ``divergence`` and ``error``.
    """
    network = TwoLevels(
        dims, channels, options["size"], options["latent"], options["widths"], low_latent
    )
    return HighLow(
        network, Bound(absolute_error, kl_weight), Look(predictor, squared), options, centred=True
    )
