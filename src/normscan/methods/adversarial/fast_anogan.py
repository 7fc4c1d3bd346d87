"""A generator of healthy images and the encoder that finds an image's place in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.networks.wgan import Critic, Generator
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

PENALTY_WEIGHT = 10.0


@dataclass(frozen=True)
class Training:
    """Steps, rates and the critic's turns of both stages; see ``fast_anogan``."""

    gan_steps: int | None
    gan_epochs: int
    encoder_steps: int
    critic_turns: int
    batch_size: int
    gan_lr: float
    encoder_lr: float


class FastAnoGAN(Method):
    """Wasserstein GAN, then an encoder into it; see ``fast_anogan``."""

    def __init__(
        self, generator: Generator, critic: Critic, encoder: Critic, kappa: float, tanh_code: bool,
        training: Training,
    ) -> None:  # fmt: skip
        super().__init__()
        self.generator, self.critic, self.encoder = generator, critic, encoder
        self.latent = encoder.out.out_features
        self.kappa, self.tanh_code = kappa, tanh_code
        self._training = training

    def phases(self) -> list[Phase]:
        t = self._training
        adversary = adam(t.gan_lr, betas=(0.0, 0.9))
        gan = [
            Player("critic", [self.critic], adversary, turns=t.critic_turns),
            Player("generator", [self.generator], adversary),
        ]
        encoder = Player(
            "encoder", [self.encoder], lambda p: torch.optim.RMSprop(p, lr=t.encoder_lr, alpha=0.9)
        )
        every = max(1, t.encoder_steps // 20)
        return [
            Phase("gan", gan, t.gan_steps, t.gan_epochs, t.batch_size, batches=t.critic_turns),
            Phase(
                "encode", [encoder], t.encoder_steps, batch_size=t.batch_size, validate_every=every
            ),
        ]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        real = 2 * batch.image - 1
        if player == "encoder":
            image, features = self.errors(real, self.restore(real))
            return {"image": image.mean(), "features": self.kappa * features.mean()}
        z = batch.rng.normal((len(batch), self.latent)).to(real)
        if player == "generator":
            return {"adversarial": -self.critic(self.generator(z)).mean()}
        with torch.no_grad():
            fake = self.generator(z)
        mix = batch.rng.uniform((len(batch),)).to(real)
        return {
            "wasserstein": self.critic(fake).mean() - self.critic(real).mean(),
            "penalty": PENALTY_WEIGHT * gradient_penalty(self.critic, real, fake, mix),
        }

    def restore(self, x: Tensor) -> Tensor:
        """G(E(x)) for images in [-1, 1]."""
        z = self.encoder(x)
        restored: Tensor = self.generator(torch.tanh(z) if self.tanh_code else z)
        return restored

    def errors(self, x: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of the image and of the critic's features, (B,) each."""
        image = (x - restored).square().flatten(1).mean(1)
        features = self.critic.features(x) - self.critic.features(restored)
        return image, features.square().mean(1)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        restored = self.restore(x)
        image, features = self.errors(x, restored)
        return Maps(
            map=(x - restored).abs().mean(dim=1, keepdim=True),
            score=image + self.kappa * features,
            reconstruction=(restored + 1) / 2,
        )


@register(
    "f_anogan",
    paper="Schlegl 2019",
    dims=(2,),
    preprocess={"scaling": "percentile", "limit": 1.0},
    presets={
        "laptop": {
            "width": 8, "gan_steps": 200, "encoder_steps": 300, "batch_size": 8,
            "critic_turns": 2, "gan_lr": 5e-4, "encoder_lr": 5e-4,
        },
    },
    tiny={
        "size": 16, "width": 8, "latent": 16, "gan_steps": 130, "encoder_steps": 160,
        "batch_size": 8, "critic_turns": 2, "gan_lr": 1e-3, "encoder_lr": 2e-3,
    },
)  # fmt: skip
def fast_anogan(
    dims: int = 2,
    channels: int = 1,
    size: int = 64,
    width: int = 64,
    latent: int = 128,
    kappa: float = 1.0,
    tanh_code: bool = True,
    gan_epochs: int = 7,
    gan_steps: int | None = None,
    encoder_steps: int = 50_000,
    critic_turns: int = 5,
    batch_size: int = 64,
    gan_lr: float = 1e-4,
    encoder_lr: float = 5e-5,
) -> Method:
    """Generator of healthy images with an encoder into it (f-AnoGAN, izi_f).

    Schlegl et al., Medical Image Analysis 2019: stage one trains a residual Wasserstein GAN with
    gradient penalty 10, stage two an encoder through the frozen generator and critic on image and
    feature error. The map is |x - G(E(x))|, the image score the mean squared error plus kappa times
    that of the critic's last features. Images are mapped to -1..1, which the generator's tanh
    bounds; what lies above 1 could not be restored, so each scan's 99th percentile becomes 1 and
    what is above it is cut.

    Departures:
        patches: the article works on 64 x 64 patches; here the whole slice is brought to that size.
        epochs: whole ones; each of the release ends five batches of the critic early.
        mirrors: the release mirrors training images at random; here nothing is mirrored.

    Args:
        dims: spatial axes, 2.
        channels: of the image.
        size: pixels along each axis, a power of two times 4.
        width: channels next to the image (64).
        latent: length of the code, drawn from the standard normal.
        kappa: weight of the feature error.
        tanh_code: bound the encoder's codes to -1..1, the article's default.
        gan_epochs: passes over the training images in stage one, counted in the critic's batches.
        gan_steps: generator steps in stage one instead of ``gan_epochs``.
        encoder_steps: updates in stage two.
        critic_turns: critic updates before each generator update.
        batch_size: images in an update.
        gan_lr: learning rate of Adam (betas 0 and 0.9) in stage one.
        encoder_lr: learning rate of RMSProp in stage two.
    """
    training = Training(
        gan_steps, gan_epochs, encoder_steps, critic_turns, batch_size, gan_lr, encoder_lr
    )
    return FastAnoGAN(
        Generator(dims, channels, size, latent, width),
        Critic(dims, channels, size, 1, width),
        Critic(dims, channels, size, latent, width, norm="batch"),
        kappa, tanh_code, training,
    )  # fmt: skip
