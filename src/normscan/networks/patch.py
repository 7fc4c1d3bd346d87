"""A small convolutional autoencoder of square patches that also runs on whole images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.rng import Rng

KERNELS = (5, 3, 3, 3)
STRIDES = (1, 1, 3, 1)
PATCH = 15


class PatchAutoencoder(nn.Module):
    """15 x 15 pixels to a vector and back (Pinon et al. 2023).

    Convolutions without padding: 15, 11, 9, 3, 1 pixels a side; GELU, then batch norm. The output
    is linear.

    Args:
        channels: of the patches.
        filters: of the four convolutions; the last is the length of the code.
    """

    def __init__(self, channels: int, filters: tuple[int, int, int, int] = (3, 4, 12, 16)) -> None:
        super().__init__()
        self.encoder, up = nn.ModuleList(), list[nn.Module]()
        ends = list(zip([channels, *filters], filters, KERNELS, STRIDES, strict=False))
        for a, b, kernel, stride in ends:
            block = nn.Sequential(nn.Conv2d(a, b, kernel, stride), nn.GELU(), nn.BatchNorm2d(b))
            self.encoder.append(block)
        for a, b, kernel, stride in reversed(ends):
            up += [nn.ConvTranspose2d(b, a, kernel, stride), nn.GELU(), nn.BatchNorm2d(a)]
        self.decoder = nn.Sequential(nn.Unflatten(1, (filters[-1], 1, 1)), *up[:-2])

    def encode(self, x: Tensor) -> Tensor:
        """Codes (n, latent) of patches (n, channels, 15, 15)."""
        for block in self.encoder:
            x = block(x)
        return x.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Patches (n, channels, 15, 15) of codes (n, latent)."""
        x: Tensor = self.decoder(z)
        return x

    def encode_everywhere(self, x: Tensor) -> Tensor:
        """Codes of all patches of images at once, as ``encode`` gives them one by one.

        A stride becomes a dilation of the layers after it.

        Args:
            x: (B, channels, H, W).

        Returns:
            (B, latent, H - 14, W - 14), each at its patch's upper left pixel.
        """
        dilation = 1
        for block, stride in zip(self.encoder, STRIDES, strict=True):
            assert isinstance(block, nn.Sequential)
            conv = block[0]
            assert isinstance(conv, nn.Conv2d)
            x = block[1:](F.conv2d(x, conv.weight, conv.bias, dilation=dilation))
            dilation *= stride
        return x


def padded(x: Tensor, length: int = PATCH) -> Tensor:
    """Repeat the border, so that each pixel is the middle of a patch."""
    before = length // 2
    return F.pad(x, [before, length - 1 - before] * 2, mode="replicate")


def patches_at(x: Tensor, places: Tensor, length: int = PATCH) -> Tensor:
    """Patches around pixels.

    Args:
        x: (B, C, H, W).
        places: (B, P) numbers of pixels, row by row.
        length: side of a patch; the pixel in an even one is the first behind its middle.

    Returns:
        (B, P, C, length, length).
    """
    windows = padded(x, length).unfold(2, length, 1).unfold(3, length, 1)
    rows = torch.div(places, x.shape[3], rounding_mode="floor")
    which = torch.arange(len(x), device=x.device)[:, None]
    return windows[which, :, rows, places % x.shape[3]]


def drawn_patches(
    x: Tensor, foreground: Tensor, rng: Rng, count: int, length: int, share: float = 0.5
) -> Tensor:
    """Random patches that show tissue.

    Args:
        x: (B, C, H, W).
        foreground: (B, 1, H, W) bool.
        rng: source of randomness.
        count: patches of each image.
        length: side of a patch.
        share: of a patch that must be foreground, where there are so many such patches.

    Returns:
        (B * count, C, length, length).
    """
    tissue = F.avg_pool2d(padded(foreground.float(), length), length, 1).flatten(1)
    # Random keys, those of patches with enough tissue above all others.
    keys = rng.uniform(tuple(tissue.shape)).to(tissue) + (tissue >= share)
    places = keys.topk(min(count, keys.shape[1])).indices
    return patches_at(x, places, length).flatten(0, 1)


def told_around(
    x: Tensor, length: int, stride: int, tell: Callable[[Tensor], Tensor], most: int = 1024
) -> Tensor:
    """What a function says of the patch around every so many pixels, enlarged to the image.

    Args:
        x: (B, C, H, W).
        length: side of a patch.
        stride: pixels between the middles of patches.
        tell: patches (n, C, length, length) to numbers (n,), each from its own patch alone.
        most: patches at once.

    Returns:
        (B, 1, H, W).
    """
    wide, (height, width) = padded(x, length), x.shape[2:]
    rows, columns = (
        (torch.arange(0, n, stride, device=x.device) + stride // 2).clamp_max(n - 1)
        for n in (height, width)
    )
    places = (rows[:, None] * width + columns).flatten()
    windows = wide.unfold(2, length, 1).unfold(3, length, 1)
    maps = []
    for image in windows:
        told = [tell(image[:, p // width, p % width].transpose(0, 1)) for p in places.split(most)]
        maps.append(torch.cat(told).reshape(1, 1, len(rows), len(columns)))
    grid = torch.cat(maps)
    large = F.interpolate(grid, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return large[..., :height, :width]
