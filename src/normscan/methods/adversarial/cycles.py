"""Two domains without pairs: images are translated to the other one and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Unpack, get_type_hints

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.adversarial.game import Rounds, played, rounds
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import squared
from normscan.networks.cyclegan import PatchJudge, Pool, ResidualTranslator, begin
from normscan.registry import register
from normscan.signatures import Options

ANOMALOUS = 1
SMALLEST = 24  # pixels of which a judge sees more than one patch


def mean_of(values: Tensor) -> Tensor:
    """Their mean, 0 of none: a batch may lack a domain."""
    return values.mean() if values.numel() else values.sum()


def judged(judge: nn.Module, images: Tensor, real: float) -> Tensor:
    """Mean squared distance of a judge's numbers from ``real`` (least squares, Mao et al. 2017)."""
    if not len(images):
        return images.sum()
    loss: Tensor = (judge(images) - real).square().mean()
    return loss


def falling(step: int, steps: int, constant: float) -> float:
    """Rate that stays for a share of the steps and then falls linearly to 0."""
    begun = constant * steps
    return 1 - max(0.0, step - begun) / (steps - begun)


@dataclass(frozen=True)
class CycleWeights:
    """Of the way back and of what stays in its own domain."""

    cycle: float
    identity: float


class Cycle(Method):
    """Translators between domains 0 (wanted) and 1, and a judge of each; see ``cyclegan_ad``.

    Args:
        translators: to domain 0 and to domain 1, images in -1..1.
        judges: of domain 0 and of domain 1.
        pools: of translated images that the judges learn from.
        weights: of the translators' terms.
        phase: of both players.
    """

    def __init__(
        self, translators: list[nn.Module], judges: list[nn.Module], pools: list[Pool],
        weights: CycleWeights, phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__()
        self.translators = nn.ModuleList(translators)
        self.judges, self.pools = nn.ModuleList(judges), nn.ModuleList(pools)
        self.weights = weights
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def domains(self, batch: Batch) -> list[Tensor]:
        """The images of both domains in -1..1, mirrored at random as in training."""
        x = 2 * batch.image - 1
        turned = batch.rng.uniform((len(x), 1, 1, 1)).to(x) < 0.5
        x = torch.where(turned, x.flip(-1), x)
        other = self.other(batch)
        return [x[~other], x[other]]

    def other(self, batch: Batch) -> Tensor:
        """Which images are of domain 1, (B,)."""
        assert batch.label is not None
        return batch.label == ANOMALOUS

    def between(self, moved: Tensor, domain: int) -> Tensor:
        """What the way back begins with: the image that was translated to a domain."""
        return moved

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        own = self.domains(batch)
        if player == "judges":
            return self._judges(own, batch)
        terms: dict[str, Tensor] = {}
        for side, here in enumerate(("healthy", "other")):
            there = 1 - side
            moved = self.translators[there](own[side])
            back = self.translators[side](self.between(moved, there))
            terms[f"adversarial from {here}"] = judged(self.judges[there], moved, 1.0)
            terms[f"cycle from {here}"] = self.weights.cycle * mean_of((back - own[side]).abs())
            if self.weights.identity:
                stayed = self.translators[side](own[side])
                distance = mean_of((stayed - own[side]).abs())
                terms[f"identity of {here}"] = self.weights.identity * distance
        return terms

    def _judges(self, own: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for side, here in enumerate(("healthy", "other")):
            chance = batch.rng.uniform((len(batch), 2))
            with torch.no_grad():
                moved = self.pools[side](self.translators[side](own[1 - side]), chance)
            judge = self.judges[side]
            terms[f"real {here}"] = judged(judge, own[side], 1.0) / 2
            terms[f"fake {here}"] = judged(judge, moved, 0.0) / 2
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        healthy = self.translators[0](x)
        return Maps(
            map=squared(x, healthy) / 4,
            score=(x - healthy).square().flatten(1).sum(1),
            reconstruction=(healthy + 1) / 2,
        )


class Translation(Rounds):
    """The arguments of ``translation``."""

    width: int
    blocks: int
    cycle: float
    pool: int
    constant: float


translation = (
    Options(
        get_type_hints(Translation),
        {"width": 64, "blocks": 9, "cycle": 10.0, "pool": 50, "constant": 0.1},
        {
            "width": "channels of the first convolution.",
            "blocks": "residual blocks of a translator.",
            "cycle": "weight of the way back.",
            "pool": "earlier translations that are kept for each judge.",
            "constant": "share of the training after which the rate begins to fall.",
        },
    )
    | rounds(batch_size=16, epochs=50)
    | Options({}, {}, {"batch_size": "images of each domain in an update."})
)


def cycled(
    make: Callable[..., Cycle], shape: tuple[int, int], part: str, training: Translation, *,
    identity: float = 0.0, dropout: float = 0.0,
) -> Cycle:  # fmt: skip
    """Build a method of two players, translators first.

    Args:
        make: the method of its networks, pools, weights and phase.
        shape: channels and size of the images.
        part: of the cohort, both domains.
        training: the shared arguments.
        identity: weight of what stays in its own domain.
        dropout: share of the features that are dropped in a residual block.

    Raises:
        ArgumentError: images of a size that the networks don't fit.
    """
    (channels, size), width = shape, training["width"]
    if size % 4 or size < SMALLEST:
        raise ArgumentError(
            f"size={size} doesn't fit these networks: give a multiple of 4, {SMALLEST} or more."
        )
    translators: list[nn.Module] = [
        ResidualTranslator(channels, width, training["blocks"], dropout) for _ in range(2)
    ]
    judges: list[nn.Module] = [PatchJudge(channels, width) for _ in range(2)]
    pools = [Pool((channels, size, size), training["pool"]) for _ in range(2)]
    for network in (*translators, *judges):
        begin(network)
    optimizer = adam(training["lr"], betas=(0.5, 0.999))
    rhythm = partial(falling, constant=training["constant"])
    players = [
        Player("translators", translators, optimizer, schedule=rhythm),
        Player("judges", [*judges, *pools], optimizer, schedule=rhythm),
    ]
    phase = played(
        "translate", players, training, batch_size=2 * training["batch_size"], part=part,
        balanced=True,
    )  # fmt: skip
    return make(translators, judges, pools, CycleWeights(training["cycle"], identity), phase)


@register(
    "cyclegan_ad",
    paper="Bougaham 2025",
    regime="image-labels",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 12, "blocks": 4, "pool": 20, "batch_size": 4, "steps": 600,
            "lr": 5e-4,
        },
    },
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={
        "size": 32, "width": 6, "blocks": 1, "pool": 4, "batch_size": 4, "steps": 100, "lr": 3e-3,
    },
    options=translation,
)  # fmt: skip
def cyclegan_ad(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    identity: float = 5.0,
    **training: Unpack[Translation],
) -> Method:
    """CycleGAN between healthy and anomalous images; the map is what translation to healthy changes.

    Bougaham et al., Neurocomputing 2025: from images with and without lesions, told apart by labels
    only, two networks learn to translate to the other domain and back. Terms: a judge of each domain
    takes the translated image for real (least squares), the way back (10 mean |x - back|), and what
    is translated to its own domain stays what it is (5 mean |x - translated|). Judges see, half of
    the time, one of 50 earlier translations. CycleGAN's networks with 64 channels, 9 residual
    blocks from 128 pixels on (6 below); Adam 2e-4, betas 0.5 and 0.999, batches of 16 of each
    domain, 50 passes for optical coherence tomography (200 for brains), the rate falling to 0 from
    a tenth of them on. The score is the summed squared change of images in -1..1. Images must lie
    in 0..1.

    As in the release images are mirrored left to right at random; its other sets are turned by
    quarters as well.

    Departures:
        threshold: the rate of false alarms that healthy scans promise; the article takes the lowest
            score of an anomalous image, so that none is missed.
        score: the sum; the article's other one, a Frechet distance of Inception features between
            single images, is left out, since one image has no covariance.
        map: the squared change, a quarter of the release's, whose images run from -1 to 1.
        turns: each player draws a batch of its own; all see the same one in the release.
        rate: falls with each update; after each pass in the release.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of 4.
        identity: weight of what stays in its own domain.
    """
    return cycled(Cycle, (channels, size), "healthy+labelled", training, identity=identity)
