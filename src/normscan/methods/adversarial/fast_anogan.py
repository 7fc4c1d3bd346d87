"""A generator of healthy images and the encoder that finds an image's place in it."""

from __future__ import annotations

import torch
from torch import Tensor

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.networks.wgan import Critic, Generator
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

PENALTY_WEIGHT = 10.0


class FastAnoGAN(Method):
    """Wasserstein GAN, then an encoder trained through the frozen generator (``izi_f``)."""

    def __init__(
        self, dims: int, channels: int, size: int, width: int, latent: int, kappa: float,
        tanh_code: bool, gan_steps: int | None, gan_epochs: int, encoder_steps: int,
        critic_turns: int, batch_size: int, gan_lr: float, encoder_lr: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.generator = Generator(dims, channels, size, latent, width)
        self.critic = Critic(dims, channels, size, 1, width)
        self.encoder = Critic(dims, channels, size, latent, width)
        self.latent, self.kappa, self.tanh_code = latent, kappa, tanh_code
        self.steps = (gan_steps, gan_epochs, encoder_steps)
        self.critic_turns, self.batch_size = critic_turns, batch_size
        self.lrs = (gan_lr, encoder_lr)

    def phases(self) -> list[Phase]:
        gan_steps, gan_epochs, encoder_steps = self.steps
        adversary = adam(self.lrs[0], betas=(0.0, 0.9))
        gan = [
            Player("critic", [self.critic], adversary, turns=self.critic_turns),
            Player("generator", [self.generator], adversary),
        ]
        encoder = Player(
            "encoder", [self.encoder], lambda p: torch.optim.RMSprop(p, lr=self.lrs[1], alpha=0.9)
        )
        return [
            Phase("gan", gan, gan_steps, gan_epochs, self.batch_size),
            Phase(
                "encode",
                [encoder],
                encoder_steps,
                batch_size=self.batch_size,
                validate_every=max(1, encoder_steps // 20),
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
    presets={
        "laptop": {
            "width": 8, "gan_steps": 200, "encoder_steps": 300, "batch_size": 8,
            "critic_turns": 2, "gan_lr": 5e-4, "encoder_lr": 5e-4,
        },
    },
    tiny={
        "size": 16, "width": 8, "latent": 16, "gan_steps": 150, "encoder_steps": 200,
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

    Stage one trains a residual Wasserstein GAN with gradient penalty 10, stage two an encoder
    through the frozen generator and critic on image and feature error. The map is |x - G(E(x))|,
    the image score the mean squared error plus kappa times that of the critic's last features.
    Schlegl et al., Medical Image Analysis 2019. The article works on 64 x 64 patches; here the
    whole slice is brought to that size.

    Args:
        dims: spatial axes, 2.
        channels: of the image.
        size: pixels along each axis, a power of two times 4.
        width: channels next to the image (64).
        latent: length of the code, drawn from the standard normal.
        kappa: weight of the feature error.
        tanh_code: bound the encoder's codes to -1..1, the article's default.
        gan_epochs: passes over the training images in stage one, counted in generator steps.
        gan_steps: generator steps in stage one instead of ``gan_epochs``.
        encoder_steps: updates in stage two.
        critic_turns: critic updates before each generator update.
        batch_size: images in an update.
        gan_lr: learning rate of Adam (betas 0 and 0.9) in stage one.
        encoder_lr: learning rate of RMSProp in stage two.
    """
    return FastAnoGAN(
        dims, channels, size, width, latent, kappa, tanh_code, gan_steps, gan_epochs, encoder_steps,
        critic_turns, batch_size, gan_lr, encoder_lr,
    )  # fmt: skip
