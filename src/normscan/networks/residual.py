"""Residual encoder and decoder around a dense code (Chen and Konukoglu 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.autoencoder import CodedNetwork
from normscan.networks.blocks import layer


class ResizingBlock(nn.Module):
    """Two 3x3 convolutions beside a convolved shortcut, which halve or double the size.

    Each convolution is followed by a norm and a leaky ReLU, also the last one of each branch, and
    nothing follows the sum. The first convolution keeps the number of channels.

    Args:
        dims: 2 or 3.
        channels: of the input.
        up: double the size; else halve it.
        slope: of the leaky ReLUs.
        outputs: channels of the output; None for twice those of the input on the way down, and half
            on the way up.
        linear: the last convolution of each branch has no leaky ReLU.
    """

    def __init__(
        self, dims: int, channels: int, up: bool, slope: float = 0.2, outputs: int | None = None,
        linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        kind = "conv_transpose" if up else "conv"
        resizing = {"stride": 2, "padding": 1, **({"output_padding": 1} if up else {})}
        self.outputs = outputs or (channels // 2 if up else 2 * channels)

        def part(a: int, b: int, options: dict[str, int]) -> list[nn.Module]:
            conv = layer(kind, dims, a, b, 3, **options)
            return [conv, layer("batch_norm", dims, b), nn.LeakyReLU(slope)]

        last = -1 if linear else None

        self.body = nn.Sequential(
            *part(channels, channels, resizing),
            *part(channels, self.outputs, {"padding": 1})[:last],
        )
        self.shortcut = nn.Sequential(*part(channels, self.outputs, resizing)[:last])

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
        heads: linear layers to the code, 2 for mean and spread of a variational one.

    Raises:
        ArgumentError: the size can't be halved so often, or the width is odd.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, width: int = 16, levels: int = 4,
        slope: float = 0.2, heads: int = 1,
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
        self.heads = nn.ModuleList(nn.Linear(flat, latent) for _ in range(heads))
        self.decoder = nn.Sequential(
            nn.Linear(latent, flat),
            nn.LeakyReLU(slope),
            nn.Unflatten(1, (widest, *[size // step] * dims)),
            layer("conv", dims, widest, widest // 2, 3, padding=1),
            nn.LeakyReLU(slope),
            *up,
            layer("conv", dims, up[-1].outputs, channels, 3, padding=1),
        )


class ResidualGrid(nn.Module):
    """Residual blocks down to a grid of codes and up again, and a guess of the residual.

    A 3x3 convolution of 16 channels, six blocks to 16, 32, 64, 128, 256 and 512 of which the last
    stands twice, for mean and log deviation; as many blocks up, a 3x3 convolution and another one to
    the image. The residual is guessed by dilated convolutions of 16, 32, 16 and 1 channels behind
    the first one (Chen et al. 2019).

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, a multiple of 2 to the power of ``levels``.
        width: channels of the first convolution.
        levels: blocks, each of which halves the size.
        slope: of the leaky ReLUs.

    Raises:
        ArgumentError: the size can't be halved so often.
    """

    def __init__(
        self, dims: int, channels: int, size: int, width: int = 16, levels: int = 6,
        slope: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        step = 2**levels
        if size % step:
            raise ArgumentError(
                f"size={size} can't be halved {levels} times. Use size={max(step, size // step * step)}."
            )

        def flat(a: int, b: int, dilation: int = 1) -> list[nn.Module]:
            conv = layer("conv", dims, a, b, 3, padding=dilation, dilation=dilation)
            return [conv, layer("batch_norm", dims, b), nn.LeakyReLU(slope)]

        widths = [width, *(width * 2**i for i in range(levels))]
        blocks = [
            ResizingBlock(dims, a, False, slope, b)
            for a, b in zip(widths[:-2], widths[1:-1], strict=True)
        ]
        self.first = nn.Sequential(*flat(channels, width))
        self.encoder = nn.Sequential(*blocks)
        self.mean, self.log_std = (
            ResizingBlock(dims, widths[-2], False, slope, widths[-1], linear=True) for _ in range(2)
        )
        self.residual = nn.Sequential(
            *flat(width, width, 2), *flat(width, 2 * width, 2), *flat(2 * width, width, 2),
            layer("conv", dims, width, channels, 3, padding=2, dilation=2),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            *(
                ResizingBlock(dims, a, True, slope, b)
                for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
            ),
            *flat(width, width),
            layer("conv", dims, width, channels, 3, padding=1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of the code, (B, channels, *grid) each."""
        features = self.encoder(self.first(x))
        return self.mean(features), self.log_std(features)

    def guess(self, x: Tensor) -> Tensor:
        """How far the restoration of an image will be off, (B, C, *spatial)."""
        guessed: Tensor = self.residual(self.first(x))
        return guessed

    def decode(self, z: Tensor) -> Tensor:
        restored: Tensor = self.decoder(z)
        return restored
