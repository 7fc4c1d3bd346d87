"""Codes of a StyleGAN that are none of healthy images are swapped for retrieved healthy ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.networks.backbones import Backbone
from normscan.networks.stylegan import StyleCritic, StyleGenerator, mixed, path_lengths
from normscan.objectives.perceptual import LearnedPerceptual
from normscan.registry import register


@dataclass(frozen=True)
class Game:
    """Weights of both penalties, how seldom each is taken, and how often styles are mixed."""

    penalty: float
    path: float
    penalty_every: int
    path_every: int
    mixing: float


@dataclass(frozen=True)
class Retrieval:
    """Codes kept by coarse layers, then by all; share of healthy layers below the limit; swap."""

    coarse: int
    kept: int
    quantile: float
    swap: float


class Repository(torch.nn.Module):
    """Codes of healthy images, and what is near a code among them.

    Args:
        layers: codes of an image.
        latent: numbers in a code.
        retrieval: how many are kept, and what is far.
    """

    codes: Tensor
    limits: Tensor

    def __init__(self, layers: int, latent: int, retrieval: Retrieval) -> None:
        super().__init__()
        self.retrieval = retrieval
        self.register_buffer("codes", torch.zeros(0, layers, latent))
        self.register_buffer("limits", torch.full((layers,), torch.inf))

    def fill(self, codes: Tensor) -> None:
        """Take in the codes (N, layers, latent) of healthy images and learn how far these are."""
        self.codes = codes
        far = self.distances(codes, self.nearest(codes, own=True))
        self.limits = torch.quantile(far, self.retrieval.quantile, dim=0)

    @staticmethod
    def distances(a: Tensor, b: Tensor) -> Tensor:
        """Root mean square distance of each layer's code, (..., layers)."""
        return (a - b).square().mean(-1).sqrt()

    def nearest(self, codes: Tensor, own: bool = False) -> Tensor:
        """What is healthy near codes (B, layers, latent): coarse layers first, then all of them.

        Args:
            codes: of the images that are asked for.
            own: they are the stored ones in their order; none is near itself.
        """
        n, half = len(self.codes), codes.shape[1] // 2
        found = []
        for i, code in enumerate(codes):
            apart = self.distances(code, self.codes).square()
            coarse, total = apart[:, :half].mean(1), apart.mean(1)
            if own and n > 1:
                coarse[i] = torch.inf
            kept = coarse.topk(min(self.retrieval.coarse, max(1, n - own)), largest=False).indices
            best = total[kept].topk(min(self.retrieval.kept, len(kept)), largest=False)
            share = torch.softmax(-best.values / best.values.mean().clamp_min(1e-12), 0)
            found.append((share[:, None, None] * self.codes[kept[best.indices]]).sum(0))
        return torch.stack(found)

    def swapped(self, codes: Tensor) -> Tensor:
        """Codes whose layers that are too far from the nearest healthy ones are moved there."""
        if not len(self.codes):
            return codes
        near = self.nearest(codes)
        far = self.distances(codes, near) > self.limits
        return torch.where(far[:, :, None], codes + self.retrieval.swap * (near - codes), codes)


class SwappedCodes(Method):
    """Generator and critic, an encoder, and a repository; see ``stylegan_swap``.

    Args:
        generator: codes to images in -1..1.
        critic: images to numbers, high for real ones.
        encoder: images to offsets of codes.
        distance: images in 0..1 to a perceptual distance.
        game: of generator and critic.
        perceptual: weight of the distance in the encoder's loss.
        offset: weight of the mean square of the encoder's offsets.
        repository: of healthy codes.
        phases: of the game and of the inversion.
    """

    centre: Tensor
    length: Tensor

    def __init__(
        self, generator: StyleGenerator, critic: StyleCritic, encoder: StyleCritic,
        distance: LearnedPerceptual, game: Game, perceptual: float, offset: float,
        repository: Repository, phases: list[Phase],
    ) -> None:  # fmt: skip
        super().__init__()
        self.generator, self.critic, self.encoder = generator, critic, encoder
        self.distance, self.repository, self.game = distance, repository, game
        self.perceptual, self.offset = perceptual, offset
        self.register_buffer("centre", torch.zeros(generator.latent))
        self.register_buffer("length", torch.zeros(()))
        self._phases = phases

    def phases(self) -> list[Phase]:
        return self._phases

    def drawn(self, batch: Batch) -> Tensor:
        """Codes (B, layers, latent) of drawn numbers, of some of them mixed from two."""
        layers, n = self.generator.layers, len(batch)
        z = [batch.rng.normal((n, self.generator.latent)).to(self.centre) for _ in range(2)]
        first, second = (self.generator.mapped(part) for part in z)
        chance = batch.rng.uniform((n, 2)).to(self.centre)
        cross = 1 + (chance[:, 0] * (layers - 1)).floor()
        cross = torch.where(chance[:, 1] < self.game.mixing, cross, float(layers))
        if torch.is_grad_enabled() and self.generator.training:
            self.centre.lerp_(first.detach().mean(0), 0.005)
        return mixed(first, second, layers, cross)

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, layers, latent) of images in -1..1, and their offsets from the centre."""
        offsets = self.encoder(x).reshape(len(x), self.generator.layers, -1)
        return self.centre + offsets, offsets

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = 2 * batch.image - 1
        if phase == "invert":
            return self._encoder(batch.image)
        rare = float(batch.rng.uniform((len(x), 1))[0])
        game = self.game
        if player == "critic":
            with torch.no_grad():
                fake = self.generator(self.drawn(batch), batch.rng.normal)
            terms = {
                "real": F.softplus(-self.critic(x)).mean(),
                "fake": F.softplus(self.critic(fake)).mean(),
            }
            if rare < 1 / game.penalty_every:
                terms["penalty"] = game.penalty / 2 * game.penalty_every * self.slope(x)
            return terms
        fake = self.generator(self.drawn(batch), batch.rng.normal)
        terms = {"adversarial": F.softplus(-self.critic(fake)).mean()}
        if rare < 1 / game.path_every:
            codes = self.drawn(batch)
            directions = batch.rng.normal(x.shape).to(x)
            lengths = path_lengths(self.generator, codes, directions)
            self.length.lerp_(lengths.detach().mean(), 0.01)
            apart = (lengths - self.length).square().mean()
            terms["path"] = game.path * game.path_every * apart
        return terms

    def slope(self, x: Tensor) -> Tensor:
        """Mean squared norm of the critic's gradient at real images (R1, Mescheder et al. 2018)."""
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean()

    def _encoder(self, image: Tensor) -> dict[str, Tensor]:
        codes, offsets = self.encoded(2 * image - 1)
        restored = (self.generator(codes) + 1) / 2
        terms = {"l2": F.mse_loss(restored, image), "offset": self.offset * offsets.square().mean()}
        if self.perceptual:
            terms["perceptual"] = self.perceptual * self.distance(image, restored).mean()
        return terms

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        self.repository.fill(torch.cat([self.encoded(2 * b.image - 1)[0] for b in batches]))

    def need(self, samples: int) -> str:
        size = samples * self.generator.layers * self.generator.latent * 4 / 1e6
        return f"{size:.0f} MB for the codes of {samples} healthy images"

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        codes, _ = self.encoded(2 * batch.image - 1)
        restored = (self.generator(self.repository.swapped(codes)) + 1) / 2
        apart = self.distance(batch.image, restored.clamp(0, 1))
        return Maps(map=apart, reconstruction=restored)


@register(
    "stylegan_swap",
    paper="Wei 2025",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "latent": 64, "width": 8, "most": 64, "mapping": 4, "batch_size": 8,
            "steps": 500, "invert_steps": 400, "backbone": "resnet18.tv_in1k",
            "taps": ("act1", "layer1", "layer2"),
        },
    },
    preprocess={"scaling": "percentile", "limit": 1.0},
    reduction="foreground_mean",
    tiny={
        "size": 32, "latent": 16, "width": 4, "most": 16, "mapping": 2, "batch_size": 8,
        "steps": 40, "invert_steps": 80, "lr": 4e-3, "backbone": "resnet18.tv_in1k",
        "taps": ("act1",), "weights": "random", "penalty_every": 4, "coarse": 8,
    },
)  # fmt: skip
def stylegan_swap(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    latent: int = 512,
    width: int = 64,
    most: int = 512,
    mapping: int = 8,
    penalty: float = 10.0,
    path: float = 2.0,
    penalty_every: int = 16,
    path_every: int = 4,
    mixing: float = 0.9,
    perceptual: float = 0.8,
    offset: float = 0.01,
    coarse: int = 32,
    kept: int = 4,
    quantile: float = 0.95,
    swap: float = 1.0,
    backbone: str = "vgg16.tv_in1k",
    taps: tuple[str, ...] = (
        "features.3", "features.8", "features.15", "features.22", "features.29",
    ),
    weights: str = "hub",
    heads: str | None = None,
    lr: float = 2e-3,
    batch_size: int = 16,
    steps: int = 50_000,
    invert_steps: int = 50_000,
) -> Method:  # fmt: skip
    """StyleGAN codes that healthy images don't have, swapped for retrieved ones (SCRPS).

    Wei et al., MICCAI 2025: a StyleGAN2 learns healthy slices and an encoder their codes, one for
    each layer. A repository keeps those of the healthy training images. The codes of a new image
    are compared from coarse to fine with it; those that are anomalous are swapped in part for a
    combination of the nearest healthy ones, so that the rest of the patient stays. The map is the
    perceptual distance between the image and what the swapped codes give.

    No code was released and only the abstract was at hand; all else is our choice. StyleGAN2 as
    published, small where the preset says so: non-saturating loss, gradient penalty at real images
    (R1, 10), path lengths (2), styles mixed in nine of ten images, Adam 2e-3 with betas 0 and 0.99,
    weights averaged with 0.999. The encoder, of the critic's form, says offsets from the mean code:
    mean squared error + 0.8 LPIPS + 0.01 mean squared offset. Of the healthy codes the 32 nearest by
    the coarser half of the layers are kept, of these the 4 nearest by all layers, weighed by a
    softmax. A layer is anomalous that is farther from the combination than 95 % of the healthy
    images' are from theirs (each without itself), and is swapped as a whole.

    Departures:
        penalties: taken by chance as often as StyleGAN2 takes them in turn, and as much larger.
        up and down: enlarged smoothly before, averaged after a convolution, where StyleGAN2 has
            strided ones and a filter; no noise at test and in the inversion.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, 4 times a power of two.
        latent: numbers in a code.
        width: channels at the full size; they double towards 4 pixels.
        most: channels at most.
        mapping: layers from drawn numbers to codes.
        penalty: weight of the critic's gradient penalty.
        path: weight of the path lengths.
        penalty_every: updates of the critic between gradient penalties, on average.
        path_every: updates of the generator between path lengths, on average.
        mixing: share of images whose codes are mixed from two.
        perceptual: weight of LPIPS in the inversion; 0 for none.
        offset: weight of the encoder's offsets.
        coarse: healthy codes that are kept by the coarser half of the layers.
        kept: of these, by all layers.
        quantile: share of healthy layers below the limit of an anomalous one.
        swap: share of an anomalous code that is swapped, 0 to 1.
        backbone: timm name with the tag of its weights, for LPIPS.
        taps: layers of it that are compared.
        weights: ``hub``, ``pip:vgg16`` from an installed package, ``random``, or a path.
        heads: path of the state dict of LPIPS's weights of the channels, see ``ra``; None for 1.
        lr: learning rate of Adam, of all players.
        batch_size: images in an update.
        steps: updates of generator and critic.
        invert_steps: updates of the encoder.
    """
    generator = StyleGenerator(channels, size, latent, width, most, mapping)
    critic = StyleCritic(channels, size, 1, width, most, spread=True)
    encoder = StyleCritic(channels, size, generator.layers * latent, width, most, spread=False)
    torch.nn.init.zeros_(encoder.end.weight)  # begins at the mean code
    optimizer = adam(lr, betas=(0.0, 0.99))
    players = [Player("critic", [critic], optimizer), Player("generator", [generator], optimizer)]
    phases = [
        Phase("generate", players, steps, batch_size=batch_size, ema=0.999),
        Phase(
            "invert", [Player("encoder", [encoder], adam(lr))], invert_steps, batch_size=batch_size
        ),
    ]
    distance = LearnedPerceptual(Backbone(backbone, taps, weights, channels=channels), heads)
    return SwappedCodes(
        generator, critic, encoder, distance,
        Game(penalty, path, penalty_every, path_every, mixing), perceptual, offset,
        Repository(generator.layers, latent, Retrieval(coarse, kept, quantile, swap)), phases,
    )  # fmt: skip
