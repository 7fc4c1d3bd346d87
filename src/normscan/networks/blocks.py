"""Layers by number of spatial axes, and small helpers that networks share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError

_LAYERS = {
    "conv": (nn.Conv2d, nn.Conv3d),
    "conv_transpose": (nn.ConvTranspose2d, nn.ConvTranspose3d),
    "batch_norm": (nn.BatchNorm2d, nn.BatchNorm3d),
    "avg_pool": (nn.AvgPool2d, nn.AvgPool3d),
}


def layer(name: str, dims: int, *args: Any, **options: Any) -> nn.Module:
    """Return the 2D or 3D form of a layer, for example ``layer("conv", 3, 1, 8, 3)``."""
    module: nn.Module = _LAYERS[name][dims - 2](*args, **options)
    return module


def pad_to_multiple(
    x: Tensor, multiple: int, smallest: int = 0
) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad the spatial axes at their ends with the border value to a multiple.

    Args:
        x: (B, C, *spatial).
        multiple: that the padded axes are of.
        smallest: least size of a padded axis, itself a multiple.

    Returns:
        The padded tensor and the slices that cut the original part out again.
    """
    sizes = x.shape[2:]
    pads: list[int] = []
    for n in reversed(sizes):
        pads += [0, max(smallest - n, -n % multiple)]
    cut = (slice(None), slice(None), *(slice(0, n) for n in sizes))
    return (F.pad(x, pads, mode="replicate") if any(pads) else x), cut


def doublings(size: int, smallest: int) -> int:
    """Return n with size = smallest * 2**n.

    Raises:
        ArgumentError: the size is no such product; names the nearest one.
    """
    n = 0
    while smallest * 2**n < size:
        n += 1
    if smallest * 2**n != size or n == 0:
        near = min((smallest * 2**k for k in range(1, 12)), key=lambda s: abs(s - size))
        raise ArgumentError(
            f"size={size} doesn't fit this network, which halves it down to {smallest}. Use size={near}."
        )
    return n


class WeightStandardizedConv(nn.Module):
    """Convolution whose filters are standardised to mean 0 and variance 1 (Qiao et al. 2019).

    The deviation is the sample's, as in released codes. Reflection padding keeps the size.
    """

    one_unit = True  # for fsdp: it reads the parameters of its layer itself

    def __init__(self, dims: int, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = layer(
            "conv",
            dims,
            channels_in,
            channels_out,
            kernel,
            padding=kernel // 2,
            padding_mode="reflect",
        )

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        assert isinstance(conv, nn.Conv2d | nn.Conv3d)
        axes = tuple(range(1, conv.weight.ndim))
        std, mean = torch.std_mean(conv.weight, dim=axes, keepdim=True)
        return conv._conv_forward(x, (conv.weight - mean) / (std + 1e-5), conv.bias)
