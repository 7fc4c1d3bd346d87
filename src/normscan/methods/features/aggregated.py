"""Codes that gather around a memory of all training images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.networks.blocks import doublings
from normscan.networks.together import gathered
from normscan.objectives.optimizers import still
from normscan.registry import register
from normscan.signatures import Options

COARSEST = 4  # cells along each axis of what becomes the code


def twice(inputs: int, outputs: int) -> list[nn.Module]:
    """Two 3 x 3 convolutions with batch norm and Leaky ReLU."""
    parts: list[nn.Module] = []
    for a in (inputs, outputs):
        parts += [nn.Conv2d(a, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)]
        parts += [nn.LeakyReLU(0.1)]
    return parts


class UnitAutoencoder(nn.Module):
    """An autoencoder without skips whose codes have length 1.

    Args:
        channels: of the image.
        size: pixels along each axis, a power of two from 8 on.
        latent: numbers in the code.
        width: channels at the finest level; they double.
    """

    def __init__(self, channels: int, size: int, latent: int, width: int) -> None:
        super().__init__()
        levels = doublings(size, COARSEST)
        down, up = twice(channels, width), []
        for i in range(levels):
            a = width * 2**i
            down += [nn.MaxPool2d(2), *twice(a, 2 * a)]
        wide = width * 2**levels
        self.down = nn.Sequential(*down, nn.Conv2d(wide, latent, COARSEST, bias=False))
        for i in reversed(range(levels)):
            a = width * 2**i
            up += [
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
                nn.Conv2d(2 * a, a, 1, bias=False), nn.BatchNorm2d(a), *twice(a, a),
            ]  # fmt: skip
        self.up = nn.Sequential(
            nn.ConvTranspose2d(latent, wide, COARSEST, bias=False), *up,
            nn.Conv2d(width, channels, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, latent) and restored images, both of images in -1..1."""
        code = F.normalize(self.down(x).flatten(1), dim=1)
        return code, self.up(code[:, :, None, None])


def softmax_entropy(logits: Tensor) -> Tensor:
    """Entropy (n,) of the softmax of logits (n, classes)."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


class PrototypeMemory(nn.Module):
    """A unit vector for each training image, and which of them are anchors with neighbours.

    Huang et al., ICML 2019 (anchor neighbourhood discovery). Several processes hold the vectors of
    the images of all of them.

    Args:
        dim: of the vectors.
        temperature: that cosines are divided by.
        momentum: of a vector when its image is seen.
        neighbours: that an anchor has.
    """

    gathered = ("vectors", "anchor", "neighbours", "round")

    def __init__(self, dim: int, temperature: float, momentum: float, neighbours: int) -> None:
        super().__init__()
        self.temperature, self.momentum, self.k = temperature, momentum, neighbours
        self.vectors: Tensor
        self.anchor: Tensor
        self.neighbours: Tensor
        self.round: Tensor
        self.register_buffer("vectors", torch.zeros(0, dim))
        self.register_buffer("anchor", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("neighbours", torch.zeros(0, neighbours, dtype=torch.long))
        self.register_buffer("round", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def place(self, codes: Tensor, index: Tensor) -> None:
        """Put codes where they are the first of their images."""
        (codes, _), (index, _) = gathered(codes), gathered(index)
        lacking = int(index.max()) + 1 - len(self.vectors)
        if lacking > 0:
            self.vectors = torch.cat([self.vectors, codes.new_zeros(lacking, codes.shape[1])])
            self.anchor = torch.cat([self.anchor, self.anchor.new_zeros(lacking)])
        self.vectors = self.vectors.index_copy(0, index, codes.detach())

    @torch.no_grad()
    def move(self, codes: Tensor, index: Tensor) -> None:
        """Draw the vectors of images towards their codes."""
        (codes, _), (index, _) = gathered(codes), gathered(index)
        mixed = self.momentum * self.vectors[index] + (1 - self.momentum) * codes.detach()
        self.vectors = self.vectors.index_copy(0, index, F.normalize(mixed, dim=1))

    @torch.no_grad()
    def discover(self, share: float) -> None:
        """Make the images with the least entropy anchors, and find the neighbours of each."""
        cosines = self.vectors @ self.vectors.T
        entropy = softmax_entropy(cosines / self.temperature)
        chosen = entropy.topk(int(len(entropy) * share + 1e-6), largest=False).indices
        self.anchor = torch.zeros_like(self.anchor).index_fill(0, chosen, True)
        k = min(self.k, len(entropy) - 1)
        self.neighbours = cosines.fill_diagonal_(-1.0).topk(k, dim=1).indices

    def loss(self, codes: Tensor, index: Tensor) -> Tensor:
        """-log of how surely codes (B, dim) are their images, or an anchor's neighbours."""
        shares = (codes @ self.vectors.T / self.temperature).softmax(1)
        told = shares.gather(1, index[:, None])[:, 0]
        if len(self.neighbours):
            near = shares.gather(1, self.neighbours[index]).sum(1)
            told = told + torch.where(self.anchor[index], near, 0)
        return -told.log().mean()

    def distance(self, codes: Tensor, k: int) -> Tensor:
        """Mean angle (B,) to the k nearest vectors, in half turns."""
        if not len(self.vectors):
            return codes.new_zeros(len(codes))
        cosines = codes @ self.vectors.T
        angles = cosines.topk(min(k, len(self.vectors)), dim=1).values.clamp(-1, 1).acos()
        return angles.mean(1) / math.pi


class Rounds(TypedDict):
    """The arguments of ``rounds``, for ``**training: Unpack[Rounds]`` in a signature."""

    lr: float
    weight_decay: float
    batch_size: int
    rounds: int
    epochs: int
    steps: int | None


rounds = Options(
    get_type_hints(Rounds),
    {"lr": 1e-4, "weight_decay": 1e-6, "batch_size": 32, "rounds": 10, "epochs": 50, "steps": None},
    {
        "lr": "learning rate of Adam.",
        "weight_decay": "of Adam.",
        "batch_size": "images in an update.",
        "rounds": "of discovering anchors; in the last one all images are anchors.",
        "epochs": "passes over the training images in each round, and before the first.",
        "steps": "number of updates in each round instead.",
    },
)


@dataclass(frozen=True)
class Weights:
    """Of the loss, and how many vectors the score looks at.

    Attributes:
        restoration: weight of the absolute error.
        aggregation: weight of the codes' loss.
        nearest: vectors of the memory.
    """

    restoration: float
    aggregation: float
    nearest: int


class Aggregating(Method):
    """An autoencoder whose codes gather around anchors; see ``salad``."""

    def __init__(
        self, network: UnitAutoencoder, memory: PrototypeMemory, weights: Weights, training: Rounds
    ) -> None:
        super().__init__()
        self.network, self.memory, self.weights = network, memory, weights
        self.training_options = training

    def phases(self) -> list[Phase]:
        given = self.training_options
        size, optimizer = given["batch_size"], adam(given["lr"], weight_decay=given["weight_decay"])
        first = Phase(
            "memory", [Player("network", [self.network], still)], epochs=1, batch_size=size
        )
        player = Player("network", [self.network], optimizer)
        return [
            first,
            *(
                Phase(f"round {r}", [player], given["steps"], given["epochs"], size)
                for r in range(given["rounds"] + 1)
            ),
        ]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = 2 * batch.image - 1
        if phase != "memory" and torch.is_grad_enabled():
            mirrored = batch.rng.uniform((len(x), 1, 1, 1)).to(x) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        code, restored = self.network(x)
        terms = {"l1": self.weights.restoration * (restored - x).abs().mean()}
        if batch.index is None or not torch.is_grad_enabled():
            return terms  # while validating: those images have no vectors
        if phase == "memory":
            self.memory.place(code, batch.index)
            return terms
        self._begin(int(phase.removeprefix("round ")))
        terms["aggregation"] = self.weights.aggregation * self.memory.loss(code, batch.index)
        self.memory.move(code, batch.index)
        return terms

    def _begin(self, number: int) -> None:
        if number > self.memory.round:
            self.memory.discover(number / self.training_options["rounds"])
            self.memory.round.fill_(number)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        code, restored = self.network(2 * batch.image - 1)
        score = self.memory.distance(code, self.weights.nearest)
        return Maps(score=score, reconstruction=(restored + 1) / 2)


@register(
    "salad",
    paper="Bozorgtabar 2020",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "latent": 64, "width": 8, "rounds": 4, "steps": 80, "lr": 1e-3,
            "batch_size": 16, "nearest": 10,
        },
    },
    # The decoder ends in a tanh.
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch", "limit": 1.0},
    tiny={
        "size": 32, "latent": 16, "width": 4, "rounds": 2, "steps": 25, "lr": 2e-3,
        "batch_size": 16, "nearest": 5, "neighbours": 3,
    },
    options=rounds,
)  # fmt: skip
def salad(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    latent: int = 200,
    width: int = 16,
    restoration_weight: float = 1.0,
    aggregation_weight: float = 0.25,
    temperature: float = 0.1,
    momentum: float = 0.5,
    neighbours: int = 10,
    nearest: int = 100,
    **training: Unpack[Rounds],
) -> Method:
    """Codes of healthy images that gather around prototypes in a memory (SALAD).

    Bozorgtabar et al., MICCAI 2020, on chest and bone X-rays: an autoencoder without skips, 200 numbers
    of length 1 in a code, learns by the absolute error (1) and by telling each training image from all
    others in a memory of one vector each (0.25, temperature 0.1, momentum 0.5). After 50 epochs, 10
    rounds of 50 follow, before each of which another tenth of the images, those told most surely, are
    made anchors: an anchor counts as told where it is taken for one of its 10 neighbours. Adam 1e-4,
    decay 1e-6, batches of 32, 256 pixels, half of them mirrored. The score is the mean angle to the
    100 nearest vectors of the memory; there is no map.

    Departures:
        start: vectors are the untrained network's codes; random numbers in the release, or the codes
            of a network that it loads.
        cosines: kept within -1 and 1 before the angle; not in the release.
        scores: not brought to 0..1 over the test set, which changes no order.
        frame: the picture is squashed to a square; the release resizes the short side, and its network
            takes squares only.

    Args:
        size: pixels along each axis, a power of two from 8 on.
        latent: numbers in a code.
        width: channels at the finest level; they double with each of the levels.
        restoration_weight: of the absolute error.
        aggregation_weight: of the codes' loss; the release's program has 1, its instructions 0.25.
        temperature: that cosines are divided by.
        momentum: of a vector in the memory when its image is seen.
        neighbours: that an anchor has.
        nearest: vectors of the memory in the score.
    """
    return Aggregating(
        UnitAutoencoder(channels, size, latent, width),
        PrototypeMemory(latent, temperature, momentum, neighbours),
        Weights(restoration_weight, aggregation_weight, nearest),
        training,
    )
