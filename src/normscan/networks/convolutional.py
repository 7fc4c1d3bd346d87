"""Convolutions alone, down to a code of one pixel and back (Zimmerer et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.autoencoder import CodedNetwork
from normscan.networks.blocks import layer


class PointCode(CodedNetwork):
    """Convolutions of stride 2, then one as large as what is left of the image; the way back alike.

    No biases, no normalisation, linear code and output. The heads of the code are parts of one
    convolution.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis.
        latent: numbers in the code.
        widths: channels behind each convolution.
        kernel: 3 or 4, of the convolutions on the way down; on the way up it is 4.
        heads: 2 for mean and spread of a variational code.
        activation: behind each convolution but the last of either way; Leaky ReLU of slope 0.01.
        condition: numbers that both ways are told, see ``encode`` and ``decode``.

    Raises:
        ArgumentError: the size can't be halved so often with 2 pixels or more left.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, widths: Sequence[int],
        kernel: int = 4, heads: int = 2, activation: Callable[[], nn.Module] = nn.LeakyReLU,
        condition: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        left, rest = divmod(size, 2 ** len(widths))
        if rest or left < 2:
            raise ArgumentError(
                f"size={size} can't be halved {len(widths)} times with 2 pixels or more left: give "
                f"a multiple of {2 ** len(widths)} from {2 ** (len(widths) + 1)} on, or fewer widths."
            )
        self.head_count = heads
        down: list[nn.Module] = []
        for a, b in zip([channels + condition, *widths], widths, strict=False):
            down += [layer("conv", dims, a, b, kernel, 2, 1, bias=False), activation()]
        self.encoder = nn.Sequential(
            *down, layer("conv", dims, widths[-1], heads * latent, left, bias=False), nn.Flatten()
        )
        up: list[nn.Module] = [
            nn.Unflatten(1, (latent + condition, *[1] * dims)),
            layer("conv_transpose", dims, latent + condition, widths[-1], left, bias=False),
        ]
        for a, b in zip(widths[::-1], [*widths[-2::-1], channels], strict=True):
            up += [activation(), layer("conv_transpose", dims, a, b, 4, 2, 1, bias=False)]
        self.decoder = nn.Sequential(*up)

    def encode(self, x: Tensor) -> list[Tensor]:
        return list(self.encoder(x).chunk(self.head_count, dim=1))
