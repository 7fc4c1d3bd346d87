"""Augmentations of textures: each changes images in 0..1 by numbers drawn for each of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normscan.rng import Rng
from normscan.synthesis.blur import gaussian_blur
from normscan.synthesis.draws import between, rotations, spread_out, taken_from

Augment = Callable[[Tensor, Rng], Tensor]


def _drawn(x: Tensor, rng: Rng, low: float, high: float) -> Tensor:
    return spread_out(between(rng, (len(x), 1), low, high), x.ndim - 2).to(x)


def gamma(x: Tensor, rng: Rng) -> Tensor:
    """Intensity to a power from 0.5 to 2, each channel its own."""
    power = spread_out(between(rng, tuple(x.shape[:2]), 0.5, 2.0), x.ndim - 2).to(x)
    return x.clamp_min(0) ** power


def brightness(x: Tensor, rng: Rng) -> Tensor:
    """Intensity times 0.8 to 1.2, plus up to 30 of 255 grey values either way."""
    return x * _drawn(x, rng, 0.8, 1.2) + _drawn(x, rng, -30 / 255, 30 / 255)


def sharpness(x: Tensor, rng: Rng) -> Tensor:
    """From smoothed (0.1) over unchanged (1) to sharpened (1.9)."""
    smooth = gaussian_blur(x, torch.ones(len(x)), (3, 3))
    return smooth + _drawn(x, rng, 0.1, 1.9) * (x - smooth)


def hue_and_saturation(x: Tensor, rng: Rng) -> Tensor:
    """Turned in the plane of equal brightness, and nearer to or farther from grey; colours only."""
    turn = _drawn(x, rng, -50 / 255, 50 / 255) * 2 * torch.pi
    saturation = 1 + _drawn(x, rng, -50 / 255, 50 / 255)
    if x.shape[1] != 3:
        return x
    grey = x.mean(1, keepdim=True)
    colour = x - grey
    # Rodrigues' formula about the grey axis.
    across = (colour.roll(1, 1) - colour.roll(-1, 1)) / 3**0.5
    return grey + saturation * (turn.cos() * colour + turn.sin() * across)


def solarised(x: Tensor, rng: Rng) -> Tensor:
    """Half of them: what is above a threshold of 32 to 128 of 255 inverted."""
    threshold = _drawn(x, rng, 32 / 255, 128 / 255)
    on = _drawn(x, rng, 0, 1) < 0.5
    return torch.where(on & (x >= threshold), 1 - x, x)


def posterised(x: Tensor, rng: Rng) -> Tensor:
    """Cut to 1 to 8 bits."""
    levels = 2.0 ** (8 - _drawn(x, rng, 1, 9).floor())
    return (255 * x / levels).floor() * levels / 255


def inverted(x: Tensor, rng: Rng) -> Tensor:
    """1 - x."""
    return 1 - x


def stretched(x: Tensor, rng: Rng) -> Tensor:
    """Each channel's range brought to 0..1."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-6)


def equalised(x: Tensor, rng: Rng) -> Tensor:
    """Each channel's values replaced by the share of its pixels that are lower."""
    flat = x.flatten(2)
    ordered = flat.sort(-1).values.contiguous()
    rank = torch.searchsorted(ordered, flat.contiguous())
    return (rank.to(x) / max(1, flat.shape[-1] - 1)).reshape(x.shape)


def turned(x: Tensor, rng: Rng, most: float = torch.pi / 4, beyond: str = "border") -> Tensor:
    """Turned about the middle by up to so many rad; beyond the frame its border's pixels or 0."""
    middle = ((torch.tensor(x.shape[2:]) - 1) / 2).expand(len(x), -1)
    turn = rotations(rng, len(x), 2, most)
    return taken_from(x, middle, middle, matrix=turn, beyond=beyond)


def scanned_again(x: Tensor, rng: Rng, noise: float) -> Tensor:
    """The same head in another scan: half of them mirrored, turned, resized, brighter, noisier.

    As Zimmerer et al. train: mirrored along the last axis; up to 0.1 rad; 0.9 to 1.2 times the size,
    half of them smaller; intensity times 0.95 to 1.1.

    Args:
        x: (B, C, *spatial), about 0.
        rng: source of randomness.
        noise: largest deviation of normal noise; each image's own is uniform below it.
    """
    n, dims = len(x), x.ndim - 2
    middle = ((torch.tensor(x.shape[2:]) - 1) / 2).expand(n, -1)
    larger, share = rng.uniform((n, 1)) < 0.5, rng.uniform((n, 1))
    scale = torch.where(larger, 1 + 0.2 * share, 1 - 0.1 * share)
    x = torch.where(_drawn(x, rng, 0, 1) < 0.5, x.flip(-1), x)
    x = taken_from(x, middle, middle, scale, rotations(rng, n, dims, 0.1))
    x = x * _drawn(x, rng, 0.95, 1.1)
    return x + _drawn(x, rng, 0, noise) * rng.normal(tuple(x.shape)).to(x)


TEN: tuple[Augment, ...] = (
    gamma, brightness, sharpness, hue_and_saturation, solarised, posterised, inverted, stretched,
    equalised, turned,
)  # fmt: skip


def three_of_ten(x: Tensor, rng: Rng) -> Tensor:
    """Each image changed by three different augmentations in random order (DRAEM).

    Args:
        x: (B, C, H, W), 0 to 1; so is the result.
        rng: source of randomness.
    """
    chosen = rng.uniform((len(x), len(TEN))).argsort(1)[:, :3]
    for place in range(3):
        which = chosen[:, place].to(x.device)
        result = x
        for number, augment in enumerate(TEN):
            new = augment(x, rng)
            result = torch.where(spread_out(which[:, None] == number, 2), new, result)
        x = result.clamp(0, 1)
    return x
