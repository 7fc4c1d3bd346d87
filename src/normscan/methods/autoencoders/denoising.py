"""Autoencoders that remove noise which was added to healthy images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Method, Phase, Player
from normscan.methods.reconstruction import Reconstruction, absolute
from normscan.networks.unet import UNet
from normscan.registry import register
from normscan.synthesis.noise import coarse_noise

_LAPTOP = {
    "size": 64,
    "width": 16,
    "noise_resolution": 8,
    "steps": 600,
    "batch_size": 8,
    "lr": 1e-3,
    # Also for volumes: a large tumour fills more than their last percent, too.
    "preprocess": {"scaling": "median"},
}


def cosine_cycle(step: int, steps: int, every: int = 32, half_period: int = 100) -> float:
    """Learning-rate factor that falls and rises as a cosine, stepped every ``every`` updates."""
    return 0.5 * (1 + math.cos(math.pi * (step // every) / half_period))


@register(
    "dae",
    paper="Kascenas 2022",
    dims=(2, 3),
    presets={"laptop": _LAPTOP},
    postprocess=("inner=5", "median_inplane=5"),
    reduction="top_5_percent",
    smallest_component=20,
    tiny={
        "size": 32, "width": 8, "depth": 3, "noise_resolution": 8, "steps": 150, "lr": 3e-3,
        "postprocess": ("foreground",),
    },
)  # fmt: skip
def denoising_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 64,
    depth: int = 4,
    noise_std: float = 0.2,
    noise_resolution: int = 16,
    steps: int = 67_200,
    batch_size: int = 16,
    lr: float = 1e-4,
    weight_decay: float = 1e-5,
) -> Method:
    """Denoising autoencoder with coarse noise.

    A U-Net learns to take away Gaussian noise that was drawn on a coarse grid, enlarged and kept
    inside the foreground; at test no noise is added and the map is the absolute residual, eroded
    at the foreground's edge and median filtered. Kascenas et al., MIDL 2022. The article
    scores voxels only; the image score, the mean of the map's highest 5 % in the foreground, is our
    choice, made on simulated scans: a mean over all the foreground drowns a small lesion. In 3D the
    noise and the network take a third axis and the rest is unchanged.

    Args:
        width: channels of the U-Net's first level.
        depth: levels of the U-Net.
        noise_std: standard deviation of the coarse noise (images are scaled to about 0..1).
        noise_resolution: cells of the coarse grid along each axis.
        steps: updates of the network.
        batch_size: images in an update.
        lr: peak learning rate of Adam (amsgrad), on a cosine that keeps cycling.
        weight_decay: of Adam.
    """

    def corrupt(batch: Batch) -> Tensor:
        noise = coarse_noise(batch.image.shape, batch.rng, noise_std, noise_resolution)
        return batch.image + noise.to(batch.image) * batch.foreground

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        # Masked, yet divided by all pixels, as in the released code.
        return {"l2": ((restored - batch.image).square() * batch.foreground).mean()}

    def training(network: nn.Module) -> list[Phase]:
        player = Player(
            "network",
            [network],
            lambda p: torch.optim.Adam(p, lr=lr, amsgrad=True, weight_decay=weight_decay),
            schedule=cosine_cycle if steps > 6400 else _half_cosine,
        )
        every = max(32, steps // 50)
        return [
            Phase(
                "denoise", [player], steps, batch_size=batch_size, validate_every=every, keep="best"
            )
        ]

    network = UNet(dims, channels, width, depth)
    return Reconstruction(network, loss, absolute, training, corrupt, masked=True)


def _half_cosine(step: int, steps: int) -> float:
    """One fall of the cosine, for runs shorter than the article's cycle of 6,400 steps."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
