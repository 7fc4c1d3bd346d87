"""Diffusion models that noise an image part of the way and walk back to a healthy one."""

from __future__ import annotations

import functools
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Method
from normscan.methods.diffusion.engine import (
    Laid,
    Noising,
    PartialDiffusion,
    Process,
    Sampling,
    Training,
    diffusion_phase,
    laid,
    noise_field,
    noising,
    sampling,
    training,
    training_of,
)
from normscan.methods.reconstruction import Residual, absolute, squared
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import DiffusionSchedule, cosine_betas, linear_betas
from normscan.registry import register
from normscan.signatures import Options


class Noisy(Laid, Noising, Sampling, Training):
    """The arguments that these methods share."""

    heads: int
    train_level: int


noisy = (
    laid
    | noising(noise="opensimplex")
    | sampling
    | training(steps=300_000, batch_size=1, ema=0.9999)
    | Options(
        {"heads": int, "train_level": int},
        {"heads": 2, "train_level": 800},
        {
            "heads": "attention heads.",
            "train_level": "training draws its steps below this one.",
            "lr": "learning rate of AdamW without weight decay; the gradient's norm is clipped at 1.",
        },
    )
)


def adm_unet(dims: int, channels: int, o: Noisy) -> nn.Module:
    """Return MONAI's diffusion U-Net laid out as in guided diffusion (Dhariwal 2021).

    Attention stands where the grid has so many cells along an axis; the resolution changes inside
    residual blocks.
    """
    from monai.networks.nets import DiffusionModelUNet

    widths = [o["width"] * m for m in o["multipliers"]]
    network: nn.Module = DiffusionModelUNet(
        spatial_dims=dims,
        in_channels=channels,
        out_channels=channels,
        num_res_blocks=[o["blocks"]] * len(widths),
        channels=widths,
        attention_levels=[o["size"] // 2**i in o["attention"] for i in range(len(widths))],
        norm_num_groups=min(32, o["width"]),
        norm_eps=1e-5,
        num_head_channels=[w // o["heads"] for w in widths],
        resblock_updown=True,
    )
    return network


def partial_diffusion(
    network: nn.Module, o: Noisy, axes: Literal[2, 3, 4] = 3, repeats: int = 1,
    residual: Residual = squared, kind: type[PartialDiffusion] = PartialDiffusion,
    betas: Tensor | None = None,
) -> PartialDiffusion:  # fmt: skip
    """A network for the noise, with the shared arguments, AdamW and a gradient of norm 1 at most."""
    field = noise_field(
        o["noise"], o["octaves"], o["persistence"], o["frequency"], o["noise_resolution"], axes
    )
    process = Process(
        o["level"], o["train_level"], sampler=o["sampler"], sample_steps=o["sample_steps"],
        repeats=repeats, multiple=2 ** (len(o["multipliers"]) - 1),
    )  # fmt: skip
    fitting = functools.partial(
        diffusion_phase, "diffuse", weight_decay=0.0, clip=1.0, **training_of(o)
    )
    schedule = DiffusionSchedule(linear_betas(o["timesteps"]) if betas is None else betas)
    return kind(network, schedule, field, process, fitting, residual)


@register(
    "anoddpm",
    paper="Wyatt 2022",
    dims=(2,),
    preprocess={"scaling": "percentile", "limit": 1.0},
    presets={
        "laptop": {
            "size": 64, "width": 16, "multipliers": (1, 2, 4), "blocks": 1, "attention": (16,),
            "noise": "simplex", "frequency": 16.0,
            "timesteps": 100, "level": 25, "train_level": 50, "steps": 500, "batch_size": 4,
            "lr": 1e-3, "ema": 0.99,
        },
    },
    tiny={
        "size": 32, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 1, "attention": (8,),
        "noise": "simplex", "frequency": 4.0, "octaves": 3, "timesteps": 10, "level": 4,
        "train_level": 6, "steps": 60,
        "batch_size": 4, "lr": 2e-3, "ema": 0.95,
    },
    options=noisy,
)  # fmt: skip
def anoddpm(
    dims: int = 2,
    channels: int = 1,
    repeats: int = 1,
    **options: Unpack[Noisy],
) -> Method:
    """Diffusion model with simplex noise (AnoDDPM).

    Wyatt et al., CVPR Workshops 2022: the network learns to predict simplex noise; at test an image
    is diffused to step 250 of 1000 and walked back with the same kind of noise and the fixed large
    variance, and the squared difference is the map. Images are mapped to -1..1 inside, where
    restorations are cut. The noise is OpenSimplex, as in the release that made the article's
    figures, a field for each channel; classic simplex noise (``simplex``) is stronger and of a finer
    grain.

    Departures:
        range: 0 to each scan's 99th percentile become -1..1, what is above is cut; the release maps
            the mean less one to plus two deviations.
        augmentation: none; the release moves and turns training images (3 degrees, 2 by 9 %).
        field: of its own for each image; the release can take one image at a time only.
        length: 300,000 updates; 300,100 in the release, whose epochs include both ends.

    Args:
        dims: spatial axes, 2.
        channels: of the image; each has a noise field of its own.
        repeats: restorations averaged at test.
        frequency: period of the first octave in pixels; a quarter of the size in the article.
    """
    return partial_diffusion(adm_unet(dims, channels, options), options, repeats=repeats)


class MaskedNoise(PartialDiffusion):
    """Noise stays inside the foreground."""

    def noise(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        inside, _ = pad_to_multiple(batch.foreground.to(x), self.process.multiple)
        return super().noise(x, t, batch) * inside


@register(
    "coarse_noise_ddpm",
    paper="Kascenas 2023",
    dims=(2,),
    preprocess={"scaling": "percentile", "limit": 1.0},
    postprocess=("inner=5", "median_inplane=5"),
    reduction="top_5_percent",
    presets={
        "laptop": {
            "size": 64, "width": 16, "multipliers": (1, 2, 4), "blocks": 1, "attention": (16,),
            "noise_resolution": 8, "timesteps": 100, "level": 25, "train_level": 50, "steps": 600,
            "lr": 1e-3, "ema": 0.99, "batch_size": 8,
        },
    },
    tiny={
        "size": 32, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 1, "attention": (8,),
        "noise_resolution": 8, "timesteps": 10, "level": 4, "train_level": 6, "steps": 150,
        "batch_size": 4, "lr": 3e-3, "ema": 0.95, "postprocess": ("foreground",),
    },
    options=noisy(
        size=128, multipliers=(1, 1, 2, 3, 4), attention=(16, 8), noise="coarse", train_level=1000,
        steps=67_200, batch_size=16,
    ),
)  # fmt: skip
def coarse_noise_ddpm(
    dims: int = 2,
    channels: int = 1,
    **options: Unpack[Noisy],
) -> Method:
    """Diffusion model whose noise is coarse and stays in the foreground.

    Kascenas et al., Medical Image Analysis 2023, ask what noise does for denoising models: the noise
    that makes their denoising autoencoder (``dae``) work, Gaussian on a grid of 16 cells, enlarged
    and rolled, replaces the white one in a diffusion model as well. An image is diffused part of
    the way with it and walked back, and the mean absolute difference over the modalities is the map,
    eroded at the edge of the foreground and median filtered as for ``dae``. ``noise`` takes the
    article's other noises.

    Departures:
        diffusion part: no code of it was released and only the abstract was known; how far images
            are diffused, the network (that of ``anoddpm`` for 128 pixels), its rate, the mask on the
            noise, and the standard deviation 1 of the coarse grid are ours. Map and post-processing
            are those of the released autoencoder.
        length: that of the released autoencoder, 2,100 epochs of 32 updates.
        range: 0 to the 99th percentile become -1..1, what is above is cut, since restorations end
            there; the released autoencoder cuts nothing.

    Args:
        dims: spatial axes, 2.
    """
    network = adm_unet(dims, channels, options)
    return partial_diffusion(network, options, residual=absolute, kind=MaskedNoise)


class SqueezeExcite(nn.Module):
    """Channels weighed by their means (Hu et al. 2018); (B, C, H, W) to the same."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.weigh = nn.Sequential(
            nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean((2, 3)))[..., None, None]


@register(
    "annotsim",
    paper="Kumar 2023",
    preprocess={"scaling": "percentile", "limit": 1.0},
    presets={
        "code": {"residual": "absolute", "level": 125},
        "laptop": {
            "size": 64, "width": 16, "multipliers": (1, 2, 4), "blocks": 1, "attention": (16,),
            "frequency": 16.0, "octaves": 3, "timesteps": 100, "level": 25, "train_level": 80,
            "steps": 400, "batch_size": 4, "lr": 1e-3, "ema": 0.99,
        },
    },
    tiny={
        "size": 32, "width": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 1, "attention": (8,),
        "frequency": 4.0, "octaves": 1, "timesteps": 10, "level": 5, "train_level": 7, "steps": 60,
        "batch_size": 4, "lr": 3e-3, "ema": 0.95,
    },
    options=noisy(persistence=0.9),
)  # fmt: skip
def annotsim(
    dims: int = 2,
    channels: int = 1,
    repeats: int = 1,
    residual: Literal["squared", "absolute"] = "squared",
    **options: Unpack[Noisy],
) -> Method:
    """Diffusion model with four-dimensional simplex noise (AnnoTsim).

    Kumar et al., preprint of 2023, on the code of ``anoddpm``: the noise is a field over the plane,
    the channel and the step, with octaves that fade less (0.9), on a cosine schedule. The U-Net is
    that of ``anoddpm`` with channel weights (squeeze and excitation) instead of attention in its
    middle, as released. An image is diffused to step 250 of 1000 and walked back with fresh fields;
    the map is the squared difference.

    Departures:
        transformer: the U-Net of transformers of the article of 2025 is not part of it; in the
            release it returns three tensors where its diffusion takes one, so the two don't run.
        field: of its own for each image; in the release images of a batch share one seed and differ
            by their step alone. The way back takes the octaves of training; the release's takes ten
            octaves, 0.8 and a period of 128 there.
        map: the main detection of the release draws a level of 100 to 150 for each image and takes
            the absolute difference, cut by Otsu's threshold: ``code`` has its middle and no threshold.
        range: 0 to the 99th percentile become -1..1; the release's brains are 0..1 where its
            restorations are cut at -1 and 1.
        length: that of ``anoddpm``; the release has several.

    Args:
        dims: spatial axes, 2.
        channels: of the image; they share a field, whose third axis they are.
        repeats: restorations averaged at test.
        residual: ``squared`` or ``absolute`` difference.
        noise: of the walk; only ``opensimplex`` has four dimensions.
        timesteps: steps of the cosine schedule.
    """
    if options["noise"] == "simplex":
        raise ArgumentError("classic simplex noise has no four dimensions: use noise=opensimplex.")
    network: Any = adm_unet(dims, channels, options)
    network.middle_block.attention = SqueezeExcite(options["width"] * options["multipliers"][-1])
    return partial_diffusion(
        network, options, axes=4, repeats=repeats,
        residual=squared if residual == "squared" else absolute,
        betas=cosine_betas(options["timesteps"]),
    )  # fmt: skip
