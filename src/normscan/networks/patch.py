"""A small convolutional autoencoder of square patches that also runs on whole images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def padded(x: Tensor) -> Tensor:
    """Repeat the border, so that each pixel is the middle of a patch."""
    return F.pad(x, [PATCH // 2] * 4, mode="replicate")


def patches_at(x: Tensor, places: Tensor) -> Tensor:
    """Patches around pixels.

    Args:
        x: (B, C, H, W).
        places: (B, P) numbers of pixels, row by row.

    Returns:
        (B, P, C, 15, 15).
    """
    windows = padded(x).unfold(2, PATCH, 1).unfold(3, PATCH, 1)
    rows = torch.div(places, x.shape[3], rounding_mode="floor")
    which = torch.arange(len(x), device=x.device)[:, None]
    return windows[which, :, rows, places % x.shape[3]]
