"""Discriminators."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from normscan.networks.blocks import layer


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) with spectral norm: a logit for each patch of an image.

    4x4 convolutions of 1, 2, 4, 8 times the width, all but the last of stride 2, Leaky ReLU with
    slope 0.2, then one to a single channel.

    Args:
        dims: 2 or 3.
        channels: of the image.
        width: channels of the first convolution.
        halvings: convolutions of stride 2; the image has at least 3 * 2**halvings pixels a side.
        slope: of the Leaky ReLUs.
        plain_end: the last convolution has a bias and no spectral norm.
    """

    def __init__(
        self, dims: int = 2, channels: int = 1, width: int = 64, halvings: int = 3,
        slope: float = 0.2, plain_end: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [channels, *(width * min(2**i, 8) for i in range(halvings + 1)), 1]
        parts: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if i < halvings else 1
            parts += [
                spectral_norm(layer("conv", dims, a, b, 4, stride=stride, padding=1, bias=False))
            ]
            parts += [nn.LeakyReLU(slope)]
        if plain_end:
            parts[-2:-1] = [layer("conv", dims, widths[-2], 1, 4, stride=1, padding=1)]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
