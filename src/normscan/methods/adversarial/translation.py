"""Translation of images to the healthy domain, learnt from image labels without pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.stargan import DomainCritic, Translator
from normscan.objectives.losses import gradient_penalty
from normscan.registry import register

HEALTHY = 0.0


@dataclass(frozen=True)
class Weights:
    """Of domain, cycle, fixed point and gradient penalty."""

    domain: float
    cycle: float
    identity: float
    penalty: float


class FixedPoint(Method):
    """Images are moved to a domain and stay where they are in their own; see ``fixed_point_gan``."""

    def __init__(
        self, translator: Translator, critic: DomainCritic, weights: Weights, phase: Phase
    ) -> None:
        super().__init__()
        self.translator, self.critic = translator, critic
        self.weights = weights
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def moved(self, x: Tensor, domain: Tensor) -> Tensor:
        """Images in -1..1 moved to domains (B, 1), 0 healthy and 1 anomalous."""
        return torch.tanh(x + self.translator(x, domain))

    def told(self, logits: Tensor, domain: Tensor) -> Tensor:
        """Cross entropy of domains, weighed."""
        return self.weights.domain * F.binary_cross_entropy_with_logits(logits, domain)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.label is not None
        x = 2 * batch.image - 1
        turned = batch.rng.uniform((len(x), 1, 1, 1)).to(x) < 0.5
        x = torch.where(turned, x.flip(-1), x)
        own = batch.label.to(x)[:, None]
        wanted = own[batch.rng.uniform((len(x),)).argsort().to(x.device)]
        return (
            self._critic(x, own, wanted, batch)
            if player == "critic"
            else self._mover(x, own, wanted)
        )

    def _critic(self, x: Tensor, own: Tensor, wanted: Tensor, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.moved(x, wanted)
        real, domain = self.critic(x)
        mix = batch.rng.uniform((len(x),)).to(x)
        penalty = gradient_penalty(lambda y: self.critic(y)[0], x, fake, mix)
        return {
            "wasserstein": self.critic(fake)[0].mean() - real.mean(),
            "domain": self.told(domain, own),
            "penalty": self.weights.penalty * penalty,
        }

    def _mover(self, x: Tensor, own: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        across, stayed = self.moved(x, wanted), self.moved(x, own)
        (across_real, across_domain), (real, domain) = self.critic(across), self.critic(stayed)
        back = (self.moved(across, own) - x).abs().mean() + (
            self.moved(stayed, own) - x
        ).abs().mean()
        return {
            "adversarial": -across_real.mean() - real.mean(),
            "domain": self.told(across_domain, wanted) + self.told(domain, own),
            "cycle": self.weights.cycle * back,
            "identity": self.weights.identity * (stayed - x).abs().mean(),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        healthy = self.moved(x, x.new_full((len(x), 1), HEALTHY))
        return Maps(map=absolute(x, healthy) / 2, reconstruction=(healthy + 1) / 2)


@register(
    "fixed_point_gan",
    paper="Siddiquee 2019",
    regime="image-labels",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 12, "blocks": 3, "halvings": 4, "batch_size": 8, "steps": 300,
            "turns": 2, "lr": 5e-4,
        },
    },
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    reduction="max",
    tiny={
        "size": 32, "width": 8, "blocks": 1, "halvings": 3, "batch_size": 8, "steps": 100,
        "turns": 1, "lr": 2e-3, "identity": 10.0,
    },
)  # fmt: skip
def fixed_point_gan(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 64,
    blocks: int = 6,
    halvings: int = 6,
    domain: float = 1.0,
    cycle: float = 10.0,
    identity: float = 0.1,
    penalty: float = 10.0,
    turns: int = 5,
    lr: float = 1e-4,
    batch_size: int = 8,
    steps: int = 60_000,
) -> Method:
    """Translation to the healthy domain that leaves healthy images as they are (Fixed-Point GAN).

    Rahman Siddiquee et al., ICCV 2019: from images with and without lesions, told apart by labels
    only, a network learns what to add to an image so that tanh of the sum belongs to a wanted
    domain. Terms: a critic (Wasserstein with gradient penalty 10, five updates for one of the
    network), the domain that it tells (1), the way back (10 mean |x - back|), and the fixed point:
    moved to its own domain an image stays what it is (10 mean |x - moved|, 0.1 for the slices of
    brain tumours with 256 pixels that the defaults are of). All but the critic's own training is
    done for the other domain and for the own one. Networks are StarGAN's with 64 channels; Adam
    1e-4, betas 0.5 and 0.999, batches of 8, 300,000 updates of the critic. The map is |moved to
    healthy - x|, the image score its maximum. Images must lie in 0..1.

    As in the release wanted domains are the batch's own in another order, so that some are those
    that images have, images are mirrored at random, and the rate stays as it is (its decay takes a
    thousandth away).

    Departures:
        channels: as many as the image has; the release reads pictures of three.
        turns: each player draws a batch of its own; in the release the network's is the critic's
            last.
        map: in floating point; the release reads it back from an 8-bit picture.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of 2**halvings.
        blocks: residual blocks of the network.
        halvings: convolutions of stride 2 in the critic.
        domain: weight of the domain that the critic tells.
        cycle: weight of the way back.
        identity: weight of the fixed point.
        penalty: weight of the critic's gradient penalty.
        turns: updates of the critic for each one of the network.
        lr: learning rate of Adam, for both players.
        batch_size: images in an update.
        steps: updates of the network.
    """
    translator = Translator(channels, 1, width, blocks)
    critic = DomainCritic(channels, 1, size, width, halvings)
    optimizer = adam(lr, betas=(0.5, 0.999))
    players = [
        Player("critic", [critic], optimizer, turns=turns),
        Player("translator", [translator], optimizer),
    ]
    phase = Phase("translate", players, steps, batch_size=batch_size, part="healthy+labelled")
    return FixedPoint(translator, critic, Weights(domain, cycle, identity, penalty), phase)
