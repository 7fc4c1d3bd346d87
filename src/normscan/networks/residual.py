"""Residual encoder and decoder around a dense code (Chen and Konukoglu 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.autoencoder import CodedNetwork
from normscan.networks.blocks import layer


class ResizingBlock(nn.Module):
    """Two 3x3 convolutions beside a convolved shortcut, which halve or double the size.

    Each convolution is followed by a norm and a leaky ReLU, also the last one of each branch, and
    nothing follows the sum. The first convolution keeps the number of channels; the other two
    double it on the way down and halve it on the way up.

    Args:
        dims: 2 or 3.
        channels: of the input.
        up: double the size; else halve it.
        slope: of the leaky ReLUs.
    """

    def __init__(self, dims: int, channels: int, up: bool, slope: float = 0.2) -> None:
        super().__init__()
        kind = "conv_transpose" if up else "conv"
        resizing = {"stride": 2, "padding": 1, **({"output_padding": 1} if up else {})}
        self.outputs = channels // 2 if up else 2 * channels

        def part(a: int, b: int, options: dict[str, int]) -> list[nn.Module]:
            conv = layer(kind, dims, a, b, 3, **options)
            return [conv, layer("batch_norm", dims, b), nn.LeakyReLU(slope)]

        self.body = nn.Sequential(
            *part(channels, channels, resizing),
            *part(channels, self.outputs, {"padding": 1}),
        )
        self.shortcut = nn.Sequential(*part(channels, self.outputs, resizing))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class ResidualAutoencoder(CodedNetwork):
    """Residual blocks of stride 2 down to a dense code, and up again.

    A 3x3 convolution of 16 channels with a leaky ReLU before and after its norm, four blocks to 32,
    64, 128 and 256, a linear layer to the code; a linear layer back, a convolution to 128 channels,
    both with a leaky ReLU and no norm, four blocks to 64, 32, 16 and 8, a 3x3 convolution; linear
    output.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, a multiple of 2 to the power of ``levels``.
        latent: length of the code.
        width: channels of the first convolution (16), even.
        levels: blocks of the encoder (4), each of which halves the size.
        slope: of the leaky ReLUs.

    Raises:
        ArgumentError: the size can't be halved so often, or the width is odd.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, width: int = 16, levels: int = 4,
        slope: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        step = 2**levels
        if size % step:
            raise ArgumentError(
                f"size={size} can't be halved {levels} times. Use size={max(step, size // step * step)}."
            )
        if width % 2:
            raise ArgumentError(f"width={width} can't be halved. Use width={width + 1}.")
        widest = width * step
        flat = widest * (size // step) ** dims
        down = [ResizingBlock(dims, width * 2**i, False, slope) for i in range(levels)]
        up = [ResizingBlock(dims, widest // 2 ** (i + 1), True, slope) for i in range(levels)]
        self.encoder = nn.Sequential(
            layer("conv", dims, channels, width, 3, padding=1),
            nn.LeakyReLU(slope),
            layer("batch_norm", dims, width),
            nn.LeakyReLU(slope),
            *down,
            nn.Flatten(),
        )
        self.heads = nn.ModuleList([nn.Linear(flat, latent)])
        self.decoder = nn.Sequential(
            nn.Linear(latent, flat),
            nn.LeakyReLU(slope),
            nn.Unflatten(1, (widest, *[size // step] * dims)),
            layer("conv", dims, widest, widest // 2, 3, padding=1),
            nn.LeakyReLU(slope),
            *up,
            layer("conv", dims, up[-1].outputs, channels, 3, padding=1),
        )
