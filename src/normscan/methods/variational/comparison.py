"""The first comparison of deep generative models for lesions (Chen et al. 2018)."""

from __future__ import annotations

from typing import Literal, Unpack

from torch import Tensor

from normscan.methods.autoencoders.adversarial import (
    ARTICLE_RANGE,
    GAME,
    ConstrainedAdversarial,
    Game,
    critic,
)
from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.residual import ResidualAutoencoder
from normscan.objectives.losses import per_image_sum
from normscan.registry import register


@register(
    "real_world_dgm",
    paper="Chen 2018",
    presets={
        "laptop": {
            "size": 64,
            "width": 12,
            "latent": 64,
            "warmup_steps": 10,
            "warmup_turns": (4, 10),
            "turns": (4, 2),
            "steps": 600,
            "lr": 1e-3,
            "batch_size": 16,
            "postprocess": ("erode=2", "median=3"),
            "preprocess": {**OWN_RANGE, "steps": [], "scaling": "median"},
        }
    },
    preprocess=ARTICLE_RANGE,
    postprocess=("foreground",),
    tiny={
        "size": 32,
        "width": 8,
        "levels": 3,
        "latent": 16,
        "kl_weight": 0.02,
        "warmup_steps": 2,
        "warmup_turns": (2, 1),
        "turns": (2, 1),
        "steps": 150,
        "lr": 3e-3,
        "batch_size": 16,
        "postprocess": (),
        "preprocess": {**OWN_RANGE, "steps": [], "scaling": "none"},
    },
    options=GAME(consistency=0.0, lr=1e-4, warmup_epochs=0),
)
def real_world_dgm(
    dims: int = 2,
    channels: int = 1,
    model: Literal["vae", "aae"] = "vae",
    size: int = 128,
    latent: int = 128,
    width: int = 16,
    levels: int = 4,
    kl_weight: float = 1.0,
    **game: Unpack[Game],
) -> Method:
    """Variational or adversarial autoencoder of one layout, as they were first compared on lesions.

    Chen et al. 2018 (arXiv 1806.05452), on slices of healthy brains, with strokes and tumours to be
    found: autoencoders whose codes a divergence (``vae``) or a critic (``aae``) holds to a normal
    distribution restore an image, and the absolute residual is the map. The article finds that deep
    models are far from a solution, and that what isn't deep stands up to them on some sets:
    compare with ``image_statistics``, ``mean_image`` and ``hist_threshold_baseline`` at the same
    range, and models at the same length of the code.

    Departures:
        everything but the comparison: the article's networks and numbers weren't known, and there is
            no code. Network, range and critic are those of ``caae``, by the same group, without its
            constraint; rate, sizes and lengths are ours.
        baselines: a mixture model of tissues, which the article has, isn't among ours.
        score: the mean of the map in the foreground; the article scores pixels only.

    Args:
        model: what holds the codes, a divergence (``vae``) or a critic (``aae``).
        size: pixels along each axis, a multiple of 2 to the power of ``levels``.
        latent: length of the code.
        width: channels of the first convolution, even.
        levels: halvings of the image.
        kl_weight: of the summed divergence beside the summed squared error of ``vae``; the second
            head is log sigma.
        penalty: weight of the critic's gradient penalty, of ``aae``.
        warmup_turns: updates of autoencoder and critic in a step of the warm-up of ``aae``.
        turns: the same after the warm-up.
        warmup_epochs: passes over the training images in the warm-up of ``aae``.
        warmup_steps: steps of the warm-up of ``aae`` instead of ``warmup_epochs``.
        consistency: weight of the constraint of ``caae`` in ``aae``.
    """
    if model == "aae":
        return ConstrainedAdversarial(
            network=ResidualAutoencoder(dims, channels, size, latent, width, levels),
            critic=critic(latent, (200, 400)), error="mean", residual=absolute, game=game,
        )  # fmt: skip

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"l2": per_image_sum((restored - batch.image).square())}

    def phases(network: ResidualAutoencoder) -> list[Phase]:
        player = Player("network", [network], adam(game["lr"]))
        return [Phase("reconstruct", [player], game["steps"], game["epochs"], game["batch_size"])]

    network = ResidualAutoencoder(dims, channels, size, latent, width, levels, heads=2)
    return VariationalReconstruction(network, loss, absolute, phases, kl_weight=kl_weight)
