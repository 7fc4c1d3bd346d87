"""Autoencoders that remove noise which was added to healthy images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Method, Phase, Player
from normscan.methods.reconstruction import Reconstruction, absolute
from normscan.networks.unet import UNet
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis.noise import coarse_noise, simplex_noise

Noise = Literal["coarse", "pixel", "simplex"]

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


def noise_field(kind: Noise, shape: Sequence[int], rng: Rng, std: float, resolution: int) -> Tensor:
    """Draw the noise that the autoencoder learns to remove.

    Args:
        kind: ``coarse`` as ``coarse_noise``; ``pixel`` for independent Gaussian pixels; ``simplex``
            for six octaves whose longest period is a quarter of the image, with mean 0 and
            deviation ``std`` in each image.
        shape: (B, C, *spatial), of two spatial axes for ``simplex``.
        rng: source of randomness.
        std: standard deviation; of the coarse grid for ``coarse``.
        resolution: cells of the coarse grid along each axis.
    """
    if kind == "coarse":
        return coarse_noise(shape, rng, std, resolution)
    if kind == "pixel":
        return std * rng.normal(shape)
    # Another plane of the three-dimensional field in each image, as the diffusion step picks one.
    depth = 1000 * rng.uniform((shape[0], 1))[:, 0]
    noise = simplex_noise(shape, rng, depth, frequency=max(shape[2:]) / 4)
    axes = tuple(range(1, noise.ndim))
    spread, mean = torch.std_mean(noise, dim=axes, keepdim=True)
    return std * (noise - mean) / spread


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
    noise: Noise = "coarse",
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
    at the foreground's edge and median filtered. Kascenas et al., MIDL 2022. Width, rate and
    schedule are those of the released script; the text of 2023 has a width of 128 and a rate of
    1e-3. In 3D the noise and the network take a third axis.

    ``noise`` takes the other noises that Kascenas et al., Medical Image Analysis 2023, compare: with
    independent pixels the network learns a local filter and leaves lesions alone. ``coarse_noise_ddpm``
    is the same question put to a diffusion model.

    Departures:
        borders: within three pixels of the frame the median repeats the edge and erosion goes on
            outside, since a cropped scan fills its frame; the release mirrors and pads zeros.
        image score: the mean of the map's highest 5 % in the foreground, chosen on simulated scans
            since a mean over all of it drowns a small lesion; the article scores voxels only.

    Args:
        width: channels of the U-Net's first level.
        depth: levels of the U-Net.
        noise: ``coarse``, ``pixel`` (independent pixels) or ``simplex`` (octaves of simplex noise,
            in 2D).
        noise_std: standard deviation of the noise, on the coarse grid for ``coarse`` (images are
            scaled to about 0..1).
        noise_resolution: cells of the coarse grid along each axis.
        steps: updates of the network.
        batch_size: images in an update.
        lr: peak learning rate of Adam (amsgrad), on a cosine that keeps cycling.
        weight_decay: of Adam.
    """
    if noise == "simplex" and dims == 3:
        raise ArgumentError("noise=simplex is a field in the plane: use dims=2 or another noise.")

    def corrupt(batch: Batch) -> Tensor:
        field = noise_field(noise, batch.image.shape, batch.rng, noise_std, noise_resolution)
        return batch.image + field.to(batch.image) * batch.foreground

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
        return [
            Phase("denoise", [player], steps, batch_size=batch_size, validate_every=32, keep="best")
        ]

    network = UNet(dims, channels, width, depth)
    return Reconstruction(network, loss, absolute, training, corrupt, masked=True)


def _half_cosine(step: int, steps: int) -> float:
    """One fall of the cosine, for runs shorter than the article's cycle of 6,400 steps."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
