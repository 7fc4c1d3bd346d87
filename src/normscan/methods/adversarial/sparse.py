"""An adversarial autoencoder whose code is sparse, and is what is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.adversarial.encoded import Recoded, answered
from normscan.methods.adversarial.game import Coded, coded, played
from normscan.methods.adversarial.structured import Rates
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.networks.dcgan import initialise
from normscan.networks.discriminators import PatchDiscriminator
from normscan.networks.structured import LEVELS, Downward, Upward, check_size
from normscan.registry import register


class SparseEncoder(nn.Module):
    """Image to a code with places, 16 pixels to each, none of whose numbers is negative.

    Args:
        channels: of the image.
        width: channels of the first level; the code has 8 times as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        wide = width * LEVELS[-1]
        self.down = Downward(channels, width)
        self.sparse = nn.Sequential(nn.Conv2d(wide, wide, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        code: Tensor = self.sparse(self.down(x)[-1])
        return code


@dataclass(frozen=True)
class Weights:
    """Of image, discriminator, distance of the codes, and sparsity."""

    image: float
    adversarial: float
    code: float
    sparsity: float


def activation_map(code: Tensor, again: Tensor) -> Tensor:
    """Channels of a code (B, C, h, w), weighed by how far they are from the other code, (B, 1, h, w)."""
    weights = (code - again).abs().mean((2, 3), keepdim=True)
    return (weights * code).sum(1, keepdim=True)


class SparseGAN(Recoded):
    """Codes of images and of their restorations; see ``sparse_gan``."""

    def __init__(
        self, encoder: SparseEncoder, decoder: Upward, judge: PatchDiscriminator,
        weights: Weights, phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__(encoder, decoder, None, phase)
        self.judge, self.weights = judge, weights

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, weights = batch.image, self.weights
        if player == "judge":
            with torch.no_grad():
                restored = self.decoder(self.encoder(x))
            real, fake = answered(self.judge(x), 1.0), answered(self.judge(restored), 0.0)
            return {"real": real / 2, "fake": fake / 2}
        code, restored, again = self.passed(x)
        return {
            "image": weights.image * (restored - x).abs().mean(),
            "adversarial": weights.adversarial * answered(self.judge(restored), 1.0),
            "code": weights.code * (code - again).square().mean(),
            "sparsity": weights.sparsity * code.abs().mean(),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        code, restored, again = self.passed(batch.image)
        grid = activation_map(code, again)
        return Maps(
            map=F.interpolate(grid, batch.image.shape[2:], mode="bilinear", align_corners=False),
            score=(code - again).abs().flatten(1).mean(1),
            reconstruction=restored,
        )


@register(
    "sparse_gan",
    paper="Zhou 2020",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 12, "steps": 400, "batch_size": 8, "decays": (100, 140, 160, 170),
        },
    },
    tiny={
        "size": 64, "width": 4, "steps": 60, "batch_size": 8, "lr": 3e-3,
        "decays": (180, 180, 180, 180),
    },
    options=coded(image=100.0, lr=1e-3, batch_size=8, epochs=180),
)  # fmt: skip
def sparse_gan(
    dims: int = 2,
    channels: int = 1,
    size: int = 224,
    width: int = 64,
    sparsity: float = 0.1,
    decays: tuple[int, int, int, int] = (20, 40, 80, 120),
    **training: Unpack[Coded],
) -> Method:
    """Adversarial autoencoder with a sparse code, scored in that code (Sparse-GAN).

    Zhou et al., ISBI 2020: retinal scans are restored by a GAN from image to image whose code a
    further network keeps sparse; the restoration is encoded again. The score is the distance of the
    codes, and the anomaly activation map shows where: the code's channels, weighed by that
    distance. Nothing was released; the networks (64 to 512 channels, 16 pixels to a place), the
    patch discriminator, 100 mean |x - restoration| + 1 binary cross entropy, and the training (Adam
    1e-3, the discriminator's a tenth, betas 0.1 and 0.9, weight decay 1e-4, batches of 8, 180
    passes with rates that fall to a tenth at the 20th, 40th, 80th and 120th) are those of the same
    author's P-Net, whose autoencoder without structures this is. Images must lie in 0..1.

    Departures:
        sparsity: a 1x1 convolution with ReLU and 0.1 mean of the code stand for the article's
            network; our choice.
        second encoder: is the first one, and its distance (1 mean square) is learnt; our choice.

    Args:
        size: pixels along each axis, a multiple of 16.
        width: channels of the first level.
        code: weight of the distance of the codes.
        sparsity: weight of the code's mean.
        decays: passes at which the rates fall, in parts of ``epochs`` where there are steps.
        lr: learning rate of Adam; the discriminator's is a tenth of it.
    """
    check_size(size)
    encoder = SparseEncoder(channels, width)
    wide = width * LEVELS[-1]
    decoder = Upward(wide, [0] * 4, [8 * width, 4 * width, 2 * width, width], channels)
    judge = PatchDiscriminator(2, channels, width)
    initialise(judge)
    player = Rates(training["lr"], training["epochs"], decays).player
    players = [player("judge", judge), player("generator", encoder, decoder)]
    phase = played("game", players, training)
    weights = Weights(training["image"], training["adversarial"], training["code"], sparsity)
    return SparseGAN(encoder, decoder, judge, weights, phase)
