"""How unlike the codes of an image and of its healthy restoration are (Albu et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import squared
from normscan.methods.schedule import phase
from normscan.methods.variational.gradients import (
    LAPTOP,
    POINTED,
    SHARPER,
    TINY,
    Pointed,
    gaussian_error,
)
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.convolutional import PointCode
from normscan.networks.divergences import kl_normals
from normscan.registry import register

Distance = Literal["euclidean", "kl", "wasserstein", "fisher_rao"]
Code = tuple[Tensor, Tensor]


def _euclidean(a: Code, b: Code) -> Tensor:
    return (a[0] - b[0]).square()


def _divergence(a: Code, b: Code) -> Tensor:
    return kl_normals(*a, *b) + kl_normals(*b, *a)


def _wasserstein(a: Code, b: Code) -> Tensor:
    return (a[0] - b[0]).square() + (a[1].exp() - b[1].exp()).square()


def _fisher_rao(a: Code, b: Code) -> Tensor:
    away = ((a[0] - b[0]).square() / 2 + (a[1].exp() - b[1].exp()).square()) / 2
    return 2 * torch.acosh(1 + away * (-a[1] - b[1]).exp()).square()


# Of each number of two codes, given by mean and log deviation; their sum is squared but for ``kl``.
_PARTS: dict[Distance, Callable[[Code, Code], Tensor]] = {
    "euclidean": _euclidean,
    "kl": _divergence,
    "wasserstein": _wasserstein,
    "fisher_rao": _fisher_rao,
}


def dissimilarity(a: Code, b: Code, distance: Distance) -> Tensor:
    """Distance of two diagonal Gaussians, (B,).

    ``euclidean`` of the means, ``kl`` the sum of both divergences, ``wasserstein`` of second order,
    ``fisher_rao`` along the geodesic of each number's Gaussian.

    Args:
        a: mean and log deviation, (B, n) each.
        b: likewise.
        distance: which.
    """
    total = _PARTS[distance](a, b).sum(1)
    return total if distance == "kl" else total.sqrt()


class LatentDissimilarity(Method):
    """Two variational autoencoders, of which one restores and one compares.

    Args:
        healthy: learns from healthy images.
        mixed: learns from unlabelled ones, too.
        distance: of two codes.
        encoder: which one's codes are compared.
    """

    def __init__(
        self, healthy: VariationalReconstruction, mixed: VariationalReconstruction,
        distance: Distance, encoder: Literal["mixed", "healthy"], training: Pointed,
    ) -> None:  # fmt: skip
        super().__init__()
        self.members = nn.ModuleDict({"healthy": healthy, "mixed": mixed})
        self.distance, self.encoder, self._training = distance, encoder, training

    def member(self, name: str) -> VariationalReconstruction:
        """One of the two by its name."""
        found = self.members[name]
        assert isinstance(found, VariationalReconstruction)
        return found

    def phases(self) -> list[Phase]:
        parts = {"healthy": "healthy", "mixed": "healthy+unlabelled"}
        return [
            phase(self.member(name).network, self._training, name, part)
            for name, part in parts.items()
        ]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return self.member(phase).loss(batch, phase, player)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        restorer, comparer = self.member("healthy"), self.member(self.encoder)
        restored = restorer.restored(batch.image, batch)
        codes = (comparer.encode(batch.image), comparer.encode(restored))
        return Maps(score=dissimilarity(*codes, self.distance), reconstruction=restored)


@register(
    "latent_dissimilarity_vae",
    paper="Albu 2020",
    regime="healthy+unlabelled",
    dims=(2, 3),
    presets={"laptop": {**LAPTOP, **SHARPER}},
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={**TINY, **SHARPER, "steps": 150},
    options=POINTED(lr=1e-3, batch_size=64),
)
def latent_dissimilarity_vae(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 1.0,
    distance: Distance = "euclidean",
    encoder: Literal["mixed", "healthy"] = "mixed",
    **options: Unpack[Pointed],
) -> Method:
    """Distance between the codes of a slice and of its healthy restoration.

    Albu, Enescu and Malago, NLDL 2020, on slices of brains: one variational autoencoder learns from
    healthy slices, another one from healthy slices and such with tumours. The first restores a
    slice as if it were healthy; how far this moves it among the codes of the second is the score of
    the slice. There is no map. On healthy slices of one cohort and tumours of another it told slices
    with tumours from others.

    Departures:
        everything but the idea: only the abstract was known, and there is no code. That the second
            network compares is how it is read here; network, error (of a Gaussian with deviation 1,
            summed), rate, batches, epochs and range are ours.
        distance: of the means of the codes; the abstract speaks of dissimilarities, and three others
            are at hand.
        score: a volume's is that of its worst slice, ours.
        third axis: ours.

    Args:
        kl_weight: of the summed divergence beside the summed error; the second head is log sigma.
        distance: ``euclidean`` of the means; ``kl``, both ways; ``wasserstein``; ``fisher_rao``.
        encoder: whose codes are compared, that of the ``mixed`` or that of the ``healthy`` network.
    """

    def member() -> VariationalReconstruction:
        network = PointCode(dims, channels, options["size"], options["latent"], options["widths"])
        return VariationalReconstruction(
            network, gaussian_error, squared, options, kl_weight=kl_weight
        )

    return LatentDissimilarity(member(), member(), distance, encoder, options)
