"""Attention that is held to the whole brain of healthy scans, and what stands out of it at test."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.reconstruction import squared
from normscan.methods.schedule import Schedule, with_training
from normscan.methods.variational.vae import VariationalReconstruction
from normscan.networks.attended import AttendedNetwork
from normscan.networks.divergences import kl_standard_normal
from normscan.objectives.losses import per_image_sum
from normscan.registry import register


class Attended(Schedule):
    """The arguments of the network, those of ``schedule`` among them."""

    size: int
    latent: int
    width: int


ATTENDED = with_training(
    Attended,
    {"size": 224, "latent": 32, "width": 64},
    {
        "size": "pixels along each axis, a multiple of 16.",
        "latent": "numbers in the code.",
        "width": "channels of the first stage, a multiple of 4; the widest has eight times as many.",
    },
    lr=1e-4,
    batch_size=8,
    epochs=300,
)


def eroded(mask: Tensor, side: int) -> Tensor:
    """Erode masks (B, 1, H, W) by a square of so many pixels; beyond the frame nothing is inside.

    A square of even sides reaches one pixel farther up and left, as that of scipy.
    """
    padded = F.pad(mask.float(), 2 * (side // 2, (side - 1) // 2))
    return -F.max_pool2d(-padded, side, stride=1) > 0


def mask_entropy(attention: Tensor, mask: Tensor) -> Tensor:
    """Entropy (B,) of the softmax of attention (B, 1, H, W) over the pixels of a mask (1, 1, H, W)."""
    chance = attention.flatten(1)[:, mask.flatten()].softmax(1)
    return -(chance * (chance + 1e-12).log()).sum(1)


class Attentive(VariationalReconstruction):
    """The map is the attention itself; see ``amcons``.

    Args:
        network: ``AttendedNetwork``.
        training: the shared arguments of ``schedule``.
        kl_weight: of the summed divergence.
        entropy_weight: of the entropy of the attention, which is maximised.
        erosion: side of the square that erodes the foreground.
    """

    def __init__(
        self, network: AttendedNetwork, training: Schedule, kl_weight: float,
        entropy_weight: float, erosion: int,
    ) -> None:  # fmt: skip
        super().__init__(
            network, lambda restored, batch: {}, squared, training, kl_weight=kl_weight,
            kl_sum=True, log_variance=True, inference="sample", samples=1,
        )  # fmt: skip
        self.entropy_weight, self.erosion = entropy_weight, erosion

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention on the grid of the image, mean and log deviation of the code."""
        early, (mean, spread) = self.network.attended(x)
        size = tuple(x.shape[2:])
        large = F.interpolate(early, size, mode="bilinear", align_corners=True)
        return large, mean, spread / 2

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        attention, mean, log_std = self.attention(batch.image)
        logits = self.network.decode(self.draw(mean, log_std, batch))
        error = F.binary_cross_entropy_with_logits(logits, batch.image, reduction="none")
        terms = {
            "error": per_image_sum(error),
            "kl": self.kl_weight * per_image_sum(kl_standard_normal(mean, log_std)),
        }
        mask = eroded(batch.foreground.any(0, keepdim=True), self.erosion)
        if mask.any():
            terms["entropy"] = -self.entropy_weight * mask_entropy(attention, mask).mean()
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        attention, mean, log_std = self.attention(batch.image)
        restored = self.network.decode(self.draw(mean, log_std, batch)).sigmoid()
        mask = eroded(batch.foreground, self.erosion)
        # Masked, so that no image's score hangs on the others; where nothing is left it is 0.
        count = mask.flatten(1).sum(1).clamp_min(1)
        level = ((attention * mask).flatten(1).sum(1) / count).reshape(-1, 1, 1, 1)
        spread = ((attention - level).square() * mask).flatten(1).sum(1) / count
        return Maps(attention * mask, spread.sqrt(), restored)


_SMALL: dict[str, Any] = {"latent": 16, "lr": 1e-3, "erosion": 2}


@register(
    "amcons",
    paper="Silva-Rodriguez 2022",
    presets={
        "laptop": {
            **_SMALL, "size": 64, "width": 16, "steps": 400,
            "preprocess": {
                "steps": [], "scaling": "median", **OWN_RANGE, "limit": 1.0,
            },
        }
    },
    preprocess={
        "steps": [{"histogram_match": {"outside": 0.0}}], "scaling": "minmax", "limit": 1.0,
        "crop": "none", "fit": "stretch",
    },
    tiny={
        **_SMALL, "size": 32, "width": 8, "steps": 60,
        "preprocess": {**OWN_RANGE, "steps": [], "scaling": "auto", "limit": 1.0},
    },
    options=ATTENDED,
)  # fmt: skip
def attention_constrained_vae(
    dims: int = 2,
    channels: int = 1,
    kl_weight: float = 10.0,
    entropy_weight: float = 0.1,
    erosion: int = 6,
    **options: Unpack[Attended],
) -> Method:
    """Variational autoencoder whose attention must spread over healthy brains (AMCons).

    Silva-Rodriguez, Naranjo and Dolz, Medical Image Analysis 2022, on slices of 224 pixels in 0..1:
    a ResNet-18 without norm, activation or pooling behind its stem, 32 numbers in the code, summed
    binary cross-entropy, 10 times the summed divergence, and minus 0.1 times the entropy of the
    softmax, over the pixels of the brains of a batch, of the first stage's mean activation. Adam
    1e-4, batches of 8, 300 epochs. The map is that mean activation itself, enlarged, in the brain
    eroded by 6 x 6 pixels, and a slice's score its deviation there: lesions of FLAIR activate it
    more than healthy tissue does. The network needs images in 0..1.

    Departures:
        entropy: from the first update on; from the second epoch on in the release.
        range: landmarks of the healthy training scans, then the smallest and largest value; in the
            release each slice's histogram is matched to that of one slice, at 8 bits of JPEG.
        brain: the foreground; what isn't 0 in the release.
        GradCAMCons: the form of their article at BMVC 2021, with maps of Grad-CAM and a barrier
            instead of the entropy, isn't here.

    Args:
        dims: spatial axes, 2.
        kl_weight: of the summed divergence beside the summed cross-entropy.
        entropy_weight: of the entropy of the attention, which is maximised.
        erosion: side in pixels of the square that erodes the foreground; 3 for CT in the release.
    """
    network = AttendedNetwork(channels, options["size"], options["latent"], options["width"])
    return Attentive(network, options, kl_weight, entropy_weight, erosion)
