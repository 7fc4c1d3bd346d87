"""Restorations from memories of healthy patches, judged by a discriminator (SQUID and SimSID)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.adversarial.encoded import answered
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.dcgan import downwards
from normscan.networks.norms import kept_statistics
from normscan.networks.squid import Remembered, SpaceAware
from normscan.registry import register
from normscan.signatures import Options
from normscan.synthesis.augment import shifted

CELLS = 32  # pixels of an image in one of the discriminator's last features
KNOWN = 201  # training images that tell what the discriminator says of healthy ones


@dataclass(frozen=True)
class Weights:
    """Of the image, the teacher's image, the features that it teaches, and the discriminator."""

    image: float
    teacher: float
    features: float
    adversarial: float


class Inpainted(Method):
    """A space-aware autoencoder and the discriminator that scores it; see ``squid``.

    Args:
        network: restores.
        discriminator: images to logits, high for real ones.
        weights: of the generator's terms.
        centred: both see images in -1..1, else in 0..1.
        phase: of training.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: SpaceAware, discriminator: nn.Module, weights: Weights, centred: bool,
        phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.discriminator = network, discriminator
        self.weights, self._centred, self._phase = weights, centred, phase
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def phases(self) -> list[Phase]:
        return [self._phase]

    def scaled(self, image: Tensor) -> Tensor:
        """Images in the range that the networks work in."""
        return 2 * image - 1 if self._centred else image

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, weights = self.scaled(shifted(batch.image, batch.rng)), self.weights
        judge = self.discriminator
        if player == "discriminator":
            with torch.no_grad():
                restored = self.network(x)
            real, fake = answered(judge(x), 1.0), answered(judge(restored), 0.0)
            return {"real": weights.adversarial * real, "fake": weights.adversarial * fake}
        found = self.network.restored(x)
        self.network.inpaint.enqueue(found.codes)
        return {
            "image": weights.image * F.mse_loss(found.image, x),
            "teacher": weights.teacher * F.mse_loss(found.taught, x),
            "features": weights.features * found.apart,
            "adversarial": weights.adversarial * answered(judge(found.image), 1.0),
        }

    def judged(self, x: Tensor) -> Tensor:
        """Logits (B,) of images, each by its own statistics."""
        with kept_statistics(self.discriminator, by="own"):
            return torch.cat([self.discriminator(image[None])[:, 0] for image in x])

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Mean and deviation of what the discriminator says of restored training images."""
        logits: list[Tensor] = []
        for batch in batches:
            logits += self.judged(self.network(self.scaled(batch.image)))
            if len(logits) >= KNOWN:
                break
        known = torch.stack(logits[:KNOWN])
        self.mean.copy_(known.mean())
        self.deviation.copy_(known.std(correction=0))

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = self.scaled(batch.image)
        restored = self.network(x)
        score = torch.sigmoid((self.mean - self.judged(restored)) / (self.deviation + 1e-8))
        difference = absolute(x, restored)
        if self._centred:
            return Maps(difference / 2, score, (restored + 1) / 2)
        return Maps(difference, score, restored)


class Space(TypedDict):
    """Arguments that ``squid`` and ``simsid`` share."""

    size: int
    width: int
    first: int
    slots: int
    strongest: int
    image: float
    teacher: float
    features: float
    adversarial: float
    turns: int
    lr: float
    weight_decay: float
    last: float
    batch_size: int
    epochs: int
    steps: int | None


def space(**changes: int) -> Options:
    """The shared arguments with some defaults changed."""
    defaults = {
        "size": 128, "width": 32, "first": 16, "slots": 200, "strongest": 5, "image": 10.0,
        "teacher": 0.01, "features": 0.001, "adversarial": 0.005, "turns": 2, "lr": 1e-4,
        "weight_decay": 1e-5, "last": 0.1, "batch_size": 16, "epochs": 200, "steps": None,
    }  # fmt: skip
    told = {
        "size": "pixels along each axis, a multiple of 32 from 64 on.",
        "width": "channels of the first level; the deepest has 16 times as many.",
        "first": "channels of the discriminator's first convolution.",
        "slots": "vectors in each memory.",
        "strongest": "of a memory's weights those above the so-manyth largest are used.",
        "image": "weight of the mean squared error.",
        "teacher": "weight of the teacher's mean squared error.",
        "features": "weight of the features that the teacher's are to equal.",
        "adversarial": "weight of the discriminator, in both players' losses.",
        "turns": "updates of the discriminator for each one of the rest.",
        "lr": "learning rate of Adam, for both players.",
        "weight_decay": "of the autoencoder's Adam.",
        "last": "share of the autoencoder's rate that is left where its cosine is lowest.",
        "batch_size": "images in an update.",
        "epochs": "passes over the training images.",
        "steps": "updates of the autoencoder instead of ``epochs``.",
    }
    return Options(get_type_hints(Space), {**defaults, **changes}, told)


def inpainted(
    channels: int, memory: Remembered, matrices: float, judge: list[int], centred: bool,
    options: Space,
) -> Inpainted:  # fmt: skip
    """Build the method.

    Raises:
        ArgumentError: the size doesn't fit, or there are fewer slots than are to be compared.
    """
    size, epochs, last = options["size"], options["epochs"], options["last"]
    cells = size // CELLS
    if size % CELLS or cells < 2:
        # One cell has no statistics of its own, by which an image is judged.
        raise ArgumentError(f"size={size}: give a multiple of {CELLS} from {2 * CELLS} on.")
    if not 2 <= options["strongest"] <= options["slots"]:
        raise ArgumentError(
            f"strongest={options['strongest']} of slots={options['slots']}: give a number from 2, of "
            "which one weight is used, to that of the slots."
        )
    end: type[nn.Module] = nn.Tanh if centred else nn.Sigmoid
    network = SpaceAware(channels, size, options["width"], memory, matrices, end)
    widths = [options["first"] * f for f in judge]
    discriminator = nn.Sequential(
        downwards(2, [channels, *widths], 5), nn.Flatten(), nn.Linear(widths[-1] * cells**2, 1)
    )

    def rate(step: int, steps: int) -> float:
        passed = step / steps * epochs
        return last + (1 - last) * (1 + math.cos(math.pi * passed / COSINE)) / 2

    lr, betas = options["lr"], (0.5, 0.999)
    restore = adam(lr, betas=betas, eps=1e-7, weight_decay=options["weight_decay"])
    players = [
        Player("discriminator", [discriminator], adam(lr, betas=betas), options["turns"]),
        Player("generator", [network], restore, schedule=rate),
    ]
    phase = Phase(
        "game", players, options["steps"], epochs, options["batch_size"], batches=options["turns"]
    )
    weights = Weights(*(options[k] for k in ("image", "teacher", "features", "adversarial")))
    return Inpainted(network, discriminator, weights, centred, phase)


COSINE = 300  # passes in which the rate falls to its last share, whatever their number
LAPTOP = {"size": 64, "width": 8, "slots": 100, "steps": 400, "batch_size": 8, "lr": 5e-4}
TINY = {
    "size": 64, "width": 4, "first": 4, "slots": 20, "steps": 60, "batch_size": 8, "turns": 1,
    "lr": 3e-4,
}  # fmt: skip


@register(
    "squid",
    paper="Xiang 2023",
    dims=(2,),
    presets={"laptop": LAPTOP},
    # What lies above 1 could not be restored by a sigmoid.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny=TINY,
    options=space(),
)
def squid(
    dims: int = 2,
    channels: int = 1,
    kept: float = 0.95,
    **options: Unpack[Space],
) -> Method:
    """Patches of radiographs told from memories of their place and judged by a discriminator (SQUID).

    Xiang et al., CVPR 2023: radiographs of 128 pixels in 0..1 are cut into four patches. A shared
    encoder halves them four times (32 to 512 channels); each one's code is replaced by a mixture of
    the few most similar codes that its place had in training (a queue of 200, read with weights
    above the fifth largest), changed by attention to the neighbours, and decoded with learned
    memories in the two levels in which patches are still apart. In training one place in twenty
    keeps its features. A second decoder without memories teaches. Loss: 10 mean squared error +
    0.01 that of the teacher + 0.001 mean squared differences of the decoders' features + 0.005
    binary cross entropy of a discriminator, which has two updates for each one of the rest, with
    the same weight. Adam 1e-4, betas 0.5 and 0.999, batches of 16, 200 passes, a rate falling as a
    cosine; images are moved and resized by up to 5 %. The score is 1 - sigmoid((D(restoration) -
    mean) / deviation), both of 201 training images.

    As in the release the discriminator scores each image by that image's own statistics, since its
    batch norms are never set to evaluation.

    Departures:
        turns: each player draws a batch of its own; in the release the rest see the discriminator's
            last.
        border: goes on where an image is moved away from it; in the release there are zeros.
        mean and deviation: of the training images as they are; the release moves them.
        weights: the last ones; the release keeps the pass with the best AUROC on labelled scans.
        map: |x - restoration|, ours; the article scores images.

    Args:
        kept: probability in training that a place's features are those from a memory.
    """
    memory = Remembered(options["slots"], options["strongest"], kept)
    return inpainted(channels, memory, kept, [1, 2, 4, 8, 8], False, options)


@register(
    "simsid",
    paper="Xiang 2024",
    dims=(2,),
    presets={
        "chexpert": {"queue": False, "kept": 0.9, "last": 0.5, "epochs": 600},
        "laptop": LAPTOP,
    },
    # What lies above 1 could not be restored by a tanh.
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny=TINY,
    options=space(epochs=1000),
)
def simsid(
    dims: int = 2,
    channels: int = 1,
    queue: bool = True,
    kept: float = 1.0,
    **options: Unpack[Space],
) -> Method:
    """SQUID in -1..1 with a wider discriminator and nothing kept beside the memories (SimSID).

    Xiang et al., IEEE TPAMI 2024, extend ``squid``: images in -1..1 with tanh, a discriminator of 16
    to 256 channels, 1,000 passes in which the cosine of the rate goes up and down, and no place that
    keeps its features. ``chexpert`` are the release's settings for that data set: learned memories
    instead of queues, one place in ten of the bottleneck kept, a rate that falls to half, 600
    passes.

    Departures:
        all those of ``squid``, but that in this release both players see one batch and one
            restoration.
        abnormal scans: its settings for CheXpert mix a tenth of them into training; here all are
            healthy.

    Args:
        queue: the bottleneck's memories are queues of training codes; else they are learned.
        kept: probability in training that a place of the bottleneck is from a memory.
    """
    memory = Remembered(options["slots"], options["strongest"], kept, queue)
    return inpainted(channels, memory, 1.0, [1, 2, 4, 8, 16], True, options)
