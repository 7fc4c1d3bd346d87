"""A variational autoencoder whose restorations a critic takes for real images."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.autoencoders.plain import (
    BAUR,
    BAUR_POSTPROCESS,
    BAUR_RANGE,
    LAPTOP,
    PRIOR,
    TINY,
    Baur,
    absolute_sum,
)
from normscan.methods.base import Batch, Method, Phase, Player, adam
from normscan.methods.reconstruction import positive
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.autoencoder import BaurAutoencoder, Code, Levels, baur_critic
from normscan.networks.blocks import doublings, layer
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

ROWS = 2  # the axis of images (B, C, H, W)


def spatial(network: BaurAutoencoder, dims: int, wide: int, latent: int) -> BaurAutoencoder:
    """Give a network with a spatial code two heads of 1x1 convolutions, and one for the way back."""
    network.heads = nn.ModuleList(layer("conv", dims, wide, latent, 1) for _ in network.heads)
    network.decoder = nn.Sequential(layer("conv", dims, latent, wide, 1), network.decoder)
    return network


class AdversarialVariational(VariationalReconstruction):
    """Restorations are held to images by their error and by a critic; see ``ano_vae_gan``.

    Args:
        *parts: of ``VariationalReconstruction``.
        critic: images to numbers, high for real ones.
        penalty: weight of the critic's gradient penalty.
        axis: over which the norm of its gradient is taken, see ``gradient_penalty``.
        **options: of ``VariationalReconstruction``.
    """

    def __init__(
        self, *parts: Any, critic: nn.Module, penalty: float, axis: int | None, **options: Any
    ) -> None:
        super().__init__(*parts, **options)
        self.critic, self.penalty, self.axis = critic, penalty, axis

    def phases(self) -> list[Phase]:
        assert callable(self._training)
        (phase,) = self._training(self)  # type: ignore[arg-type]
        return [phase]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if player == "autoencoder":
            terms = super().loss(batch, phase, player)
            # What training is stopped by is the error alone.
            return terms if torch.is_grad_enabled() else {"l1": terms["l1"]}
        if not torch.is_grad_enabled():
            return {}
        x = batch.image
        if player == "decoder":
            return {"adversarial": -self.critic(self._drawn(x, batch)).mean()}
        with torch.no_grad():
            fake = self._drawn(x, batch)
        mix = batch.rng.uniform((len(x),)).to(x)
        return {
            "wasserstein": self.critic(fake).mean() - self.critic(x).mean(),
            "penalty": self.penalty * gradient_penalty(self.critic, x, fake, mix, self.axis),
        }

    def _drawn(self, x: Tensor, batch: Batch) -> Tensor:
        """Restorations from codes that are drawn."""
        restored: Tensor = self.network.decode(self.draw(*self.encode(x), batch))
        return restored


@register(
    "ano_vae_gan",
    paper="Baur 2019",
    dims=(2,),
    presets={
        "code": {
            "size": 128, "latent": 128, "spatial_code": False, "smallest": 8, "norm": "affine",
            "keep": "last", "rows": True,
        },
        "prior": PRIOR,
        "laptop": {**LAPTOP, "spatial_code": False, "smallest": 8, "turns": 2},
    },
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny={
        **TINY, "spatial_code": False, "smallest": 8, "turns": 1, "steps": 180, "width": 12,
        "kl_weight": 0.1,
    },
    options=BAUR(size=256, latent=64, dropout=0.2),
)  # fmt: skip
def ano_vae_gan(
    dims: int = 2,
    channels: int = 1,
    spatial_code: bool = True,
    smallest: int = 16,
    kl_weight: float = 1.0,
    penalty: float = 10.0,
    rows: bool = False,
    turns: int = 5,
    **options: Unpack[Baur],
) -> Method:
    """Variational autoencoder whose decoder must also please a critic (AnoVAEGAN).

    Baur et al., MICCAI BrainLes 2018: slices of 256 x 256 pixels go to a code of 16 x 16 places with
    64 channels, whose place in the image survives. Encoder and decoder learn the summed absolute
    error + the summed divergence from the standard normal; then the decoder alone to be taken for
    real by a critic, which learns in five updates for each one of theirs (Wasserstein with gradient
    penalty 10). Adam 1e-4, betas 0.5 and 0.9, batches of 8, stopped after 5 passes without gain in
    the error of healthy validation scans. The map is what is brighter than the restoration from
    the mean code. Networks, range and post-processing are those of ``ae_dense``, from the authors'
    later comparison, but the decoder and the critic normalise each channel of a sample, with a scale
    for each pixel, and the critic says a number for each place of its last level. ``code`` is that
    comparison: 128 pixels, a dense code of 128 numbers, an encoder whose norms never normalise, and
    a gradient penalty whose norm is taken along the rows of an image alone (``rows``).

    Departures:
        turns: each player draws batches of its own; all see the same one in the release.
        code: its mean at test; the release draws it.
        kept weights: with ``keep=best`` those of the least error.

    Args:
        latent: numbers in the code, or channels of a spatial one.
        spatial_code: the code has places; else it is dense.
        smallest: pixels along each axis at the code.
        kl_weight: weight of the divergence.
        penalty: weight of the critic's gradient penalty.
        rows: take the norm of its gradient along the rows of an image alone.
        turns: updates of the critic for each one of encoder and decoder.
        norm: of the encoder, ``batch`` or ``affine`` for a learned scale and shift only.
    """
    levels = Levels(options["width"], smallest=smallest, norm=options["norm"], restoring="plane")
    code = Code(options["latent"], heads=2, head="spatial" if spatial_code else "dense")
    network = BaurAutoencoder(
        dims, channels, options["size"], code, levels, dropout=options["dropout"]
    )
    if spatial_code:
        wide = options["width"] * min(4, 2 ** (doublings(options["size"], smallest) - 1))
        spatial(network, dims, wide, options["latent"])

    def phases(method: Any) -> list[Phase]:
        optimizer = adam(options["lr"], betas=(options["beta1"], 0.9))
        steps = options["steps"]
        players = [
            Player("autoencoder", [method.network], optimizer),
            Player("decoder", [method.network.decoder], optimizer),
            Player("critic", [method.critic], optimizer, turns=turns),
        ]
        return [
            Phase(
                "game", players, steps, options["epochs"], options["batch_size"],
                validate_every="epoch" if steps is None else max(1, steps // 30),
                keep=options["keep"], patience=options["patience"],
            )
        ]  # fmt: skip

    return AdversarialVariational(
        network, absolute_sum, positive, phases, kl_weight=kl_weight, kl_sum=True,
        log_variance=False, inference="mean", samples=1, penalty=penalty,
        axis=ROWS if rows else None, critic=baur_critic(dims, channels, options["size"], levels),
    )  # fmt: skip
