"""Residual encoder and decoder around a dense code (Chen and Konukoglu 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.autoencoder import _Code
from normscan.networks.blocks import layer

SLOPE = 0.2


class ResizingBlock(nn.Module):
    """Two 3x3 convolutions beside a convolved shortcut; the first of each halves or doubles the size.

    Each convolution is followed by a batch norm and a leaky ReLU, the shortcut's too, and the two
    branches are added after that.

    Args:
        dims: 2 or 3.
        a: channels of the input, and between the two convolutions.
        b: channels of the output.
        up: double the size.
        slope: of the leaky ReLU.
    """

    def __init__(self, dims: int, a: int, b: int, up: bool, slope: float = SLOPE) -> None:
        super().__init__()
        kind = "conv_transpose" if up else "conv"
        options = {"stride": 2, "padding": 1, **({"output_padding": 1} if up else {})}

        def ended(c: int) -> list[nn.Module]:
            return [layer("batch_norm", dims, c), nn.LeakyReLU(slope)]

        self.body = nn.Sequential(
            layer(kind, dims, a, a, 3, **options), *ended(a),
            layer(kind, dims, a, b, 3, padding=1), *ended(b),
        )  # fmt: skip
        self.shortcut = nn.Sequential(layer(kind, dims, a, b, 3, **options), *ended(b))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class ResidualAutoencoder(_Code):
    """Residual blocks of stride 2 down to a dense code, and up again.

    A 3x3 convolution of 16 channels, four blocks to 32, 64, 128 and 256, a linear layer to the
    code; a linear layer back, a convolution to 128 channels, four blocks to 64, 32, 16 and 8, a
    3x3 convolution; linear output.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, a multiple of 2 to the power of ``levels``.
        latent: length of the code.
        width: channels of the first convolution (16).
        levels: blocks of the encoder (4), each of which halves the size.

    Raises:
        ArgumentError: the size can't be halved so often.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, width: int = 16, levels: int = 4
    ) -> None:
        super().__init__()
        step = 2**levels
        if size % step:
            raise ArgumentError(
                f"size={size} can't be halved {levels} times. Use size={max(step, size // step * step)}."
            )
        down = [width * 2**i for i in range(levels + 1)]
        up = [max(1, c // 2) for c in reversed(down)]
        cells = (down[-1], *[size // step] * dims)
        flat = down[-1] * (size // step) ** dims
        self.encoder = nn.Sequential(
            layer("conv", dims, channels, width, 3, padding=1),
            layer("batch_norm", dims, width),
            nn.LeakyReLU(SLOPE),
            *(ResizingBlock(dims, a, b, up=False) for a, b in zip(down, down[1:], strict=False)),
            nn.Flatten(),
        )
        self.heads = nn.ModuleList([nn.Linear(flat, latent)])
        self.decoder = nn.Sequential(
            nn.Linear(latent, flat),
            nn.LeakyReLU(SLOPE),
            nn.Unflatten(1, cells),
            layer("conv", dims, down[-1], up[0], 3, padding=1),
            nn.LeakyReLU(SLOPE),
            *(ResizingBlock(dims, a, b, up=True) for a, b in zip(up, up[1:], strict=False)),
            layer("conv", dims, up[-1], channels, 3, padding=1),
        )
