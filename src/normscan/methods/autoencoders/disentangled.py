"""Autoencoders that tell shape from appearance, made for training at several sites."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Method, Phase
from normscan.methods.reconstruction import Reconstruction, positive
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.autoencoder import BaurAutoencoder, Code, Levels
from normscan.networks.blocks import layer
from normscan.networks.norms import kept_statistics
from normscan.registry import register
from normscan.synthesis.rectangles import bright_values, gamma_shifted, painted, rectangles

SLOPE = 0.01  # of the released network
ROUNDS = 25  # of each phase, between which the learning rate falls


def decay(step: int, steps: int, first: int) -> float:
    """Learning-rate factor: 0.97 twice a round, so many of which are over at the start."""
    return float(0.97 ** (2 * first + 2 * ROUNDS * step // steps))


class DisentangledAutoencoder(nn.Module):
    """Two convolutional autoencoders side by side, whose decoders' features are mixed.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, a multiple of 8; the codes have an eighth of them.
        width: channels of the first convolution of the shape branch, the others have twice as
            many; the appearance branch has a quarter.
        dropout: on both codes.
    """

    def __init__(self, dims: int, channels: int, size: int, width: int, dropout: float) -> None:
        super().__init__()

        def branch(width: int) -> BaurAutoencoder:
            levels = Levels(
                width, widest=2 * width, smallest=max(1, size // 8), slope=SLOPE, final=False
            )
            return BaurAutoencoder(
                dims, channels, size, Code(head="spatial"), levels, dropout=dropout
            )

        narrow = max(1, width // 4)
        self.shape, self.appearance = branch(width), branch(narrow)
        mix = layer("conv", dims, width + narrow, channels, 1)
        assert isinstance(mix, nn.Conv2d | nn.Conv3d) and mix.bias is not None
        # Even grey, the sigmoid of 0, would make the untrained residual a threshold at 0.5.
        nn.init.constant_(mix.bias, -2.0)
        self.mix = mix

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shape and appearance codes (B, C, *spatial / 8), before the dropout."""
        return self.shape.encoder(x), self.appearance.encoder(x)

    def decode(self, shape: Tensor, appearance: Tensor) -> Tensor:
        """The image in 0..1 of codes, of which training drops a share."""
        pairs = ((self.shape, shape), (self.appearance, appearance))
        features = [branch.decode(branch.heads[0](code)) for branch, code in pairs]
        return torch.sigmoid(self.mix(torch.cat(features, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(*self.encode(x))


def shape_consistency(code: Tensor, shifted: Tensor) -> Tensor:
    """1 - cos of the flattened codes, mean over the batch; no gradient reaches the second."""
    same = torch.ones(len(code), device=code.device)
    return F.cosine_embedding_loss(code.flatten(1), shifted.detach().flatten(1), same)


def latent_orthogonality(appearance: Tensor, shape: Tensor) -> Tensor:
    """max(cos, 0) of the appearance code and the shape code's sum over channels, flattened.

    The sum stands in each channel of the appearance code, as after a 1x1 convolution of ones. No
    gradient reaches the shape code.

    Args:
        appearance: (B, C, *spatial).
        shape: (B, D, *spatial).
    """
    projected = shape.detach().sum(1, keepdim=True).expand_as(appearance)
    apart = -torch.ones(len(shape), device=shape.device)
    return F.cosine_embedding_loss(appearance.flatten(1), projected.flatten(1), apart)


def halves(network: nn.Module, training: Schedule) -> list[Phase]:
    """The halves of the training, without and with the latent terms."""
    phases = []
    for first, name in ((0, "reconstruct"), (ROUNDS, "disentangle")):
        made = phase(network, training, name, clip=0.5)
        made.players[0].schedule = partial(decay, first=first)
        phases.append(made)
    return phases


class DisentangledReconstruction(Reconstruction):
    """Takes bright rectangles out of images and tells shape from appearance; see ``feddis``."""

    network: DisentangledAutoencoder

    def __init__(
        self, network: DisentangledAutoencoder, training: Schedule, latent_weight: float,
        consistency_weight: float, orthogonality_weight: float, rectangle: int,
    ) -> None:  # fmt: skip
        super().__init__(network, lambda *_: {}, positive, partial(halves, training=training))
        self.rectangle = rectangle
        self.weights = latent_weight * consistency_weight, latent_weight * orthogonality_weight

    def shared(self) -> Sequence[nn.Module]:
        """The modules whose parameters leave a site in federated training."""
        return [self.network.shape]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = batch.image
        masks = rectangles(len(x), x.shape[2:], batch.rng, longest=self.rectangle).to(x.device)
        values = bright_values(x, batch.rng)
        shape, appearance = self.network.encode(painted(x, masks, values))
        terms = {"l1": F.l1_loss(self.network.decode(shape, appearance), x)}
        if phase == "disentangle" and any(self.weights):
            gamma = 0.5 + 1.5 * batch.rng.uniform((len(x), 1))[:, 0].to(x)
            # In evaluation mode, as in the release.
            encoder = self.network.shape.encoder
            with torch.no_grad(), kept_statistics(encoder, by="running"):
                shifted = encoder(painted(gamma_shifted(x, gamma), masks, values))
            terms["consistency"] = self.weights[0] * shape_consistency(shape, shifted)
            terms["orthogonality"] = self.weights[1] * latent_orthogonality(appearance, shape)
        return terms


@register(
    "feddis",
    paper="Bercea 2022",
    dims=(2, 3),
    presets={
        "code": {"latent_weight": 0.0},
        "laptop": {
            "size": 64, "width": 16, "dropout": 0.1, "lr": 2e-3, "steps": 300, "batch_size": 16,
        },
    },
    postprocess=("median=3",),
    preprocess={"scaling": "percentile", "limit": 1.0},
    tiny={"size": 32, "width": 4, "dropout": 0.0, "lr": 1e-2, "steps": 80, "postprocess": ()},
    options=schedule(lr=1e-4, batch_size=8, epochs=125),
)  # fmt: skip
def disentangled_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 64,
    dropout: float = 0.2,
    latent_weight: float = 0.2,
    consistency_weight: float = 1.0,
    orthogonality_weight: float = 1.0,
    rectangle: int = 20,
    **training: Unpack[Schedule],
) -> Method:
    """Disentangled autoencoder for federated training (FedDis).

    Bercea et al., Nature Machine Intelligence 2022: two convolutional autoencoders, one for the
    shape and a narrow one for the appearance, restore an image together from a copy with up to
    three bright rectangles (mean absolute error). In the second half of the training the shape code
    must stay the same, by its cosine, when the image's contrast is changed by a gamma of 0.5 to 2,
    and the appearance code must be orthogonal to the sum of the shape code's channels; the latent
    terms see the codes before their dropout. The map is the positive residual: what is brighter than
    healthy. 4 sites train 50 rounds of 5 epochs and share the shape branch only; the latent terms
    begin with round 25, and the rate falls by 3 % twice a round. ``normscan federate feddis`` trains
    like that, ``normscan fit`` the same network at one site, with as many epochs. The sigmoid can't
    restore what lies above 1, so each scan's 99th percentile becomes 1 and what is above it is cut.
    Mind the capacity: the codes have 40,960 numbers, enough to copy what no rectangle resembles.

    ``code``: the released configuration weighs the latent terms with 0. The release computes a
    perceptual and a total-variation term in their place, under the same weight of 0, so the
    absolute error alone is what it trains with.

    Departures:
        contrast: a gamma for each image, over its own maximum; one for a batch and its range in the
            release, where the rectangles stand in the shifted image, too, as here.
        rectangles: each has an intensity of its own; the release draws one for all the training of a
            site, since it overwrites the mark that asks for a draw.
        projection: of ones; the release's lines, in comments, add a random bias.
        target: the image; the release restores an image painted by a function that it lacks.
        optimiser: a new one in each half and in each round; the release hands its state on.
        start: the last bias is -2, so that training starts from a dark image and not from even grey.
        third axis: of the rectangles and the networks: ours.
        image score: the mean of the map in the foreground; the article has none.

    Args:
        size: pixels along each axis, a multiple of 8; the codes have an eighth of them.
        width: channels of the first convolution of the shape branch; its code has twice as many,
            and the appearance branch a quarter.
        dropout: on both codes.
        latent_weight: of both latent terms together.
        consistency_weight: of the shape code's consistency under another contrast.
        orthogonality_weight: of the appearance code's orthogonality to the shape code.
        rectangle: longest side of the rectangles, in pixels of an image of 128.
        epochs: passes over the training images in each half of the training.
        steps: number of updates in each half instead of ``epochs``.
    """
    network = DisentangledAutoencoder(dims, channels, size, width, dropout)
    return DisentangledReconstruction(
        network, training, latent_weight, consistency_weight, orthogonality_weight, rectangle
    )
