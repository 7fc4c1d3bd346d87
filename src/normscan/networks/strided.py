"""Plain stride-2 autoencoder with a dense or a spatial code (Meissen et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from normscan.networks.blocks import doublings, layer


class StridedAutoencoder(nn.Module):
    """Stride-2 3x3 convolutions of 32, 64, 128, 128, 128 channels down to 8x8, mirrored up.

    Batch norm and Leaky ReLU after each, no biases, linear output.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, 8 times a power of two.
        latent: length of the dense code, or channels of the spatial one.
        width: channels of the first convolution; the widest has four times as many.
        spatial: the code is the 8x8 grid with ``latent`` channels.
        slope: of the Leaky ReLUs.
    """

    def __init__(
        self,
        dims: int = 2,
        channels: int = 1,
        size: int = 256,
        latent: int = 128,
        width: int = 32,
        spatial: bool = False,
        slope: float = 0.01,
    ) -> None:
        super().__init__()

        def after(channels: int) -> list[nn.Module]:
            return [layer("batch_norm", dims, channels), nn.LeakyReLU(slope)]

        smallest = 8
        widths = [width * min(2**i, 4) for i in range(doublings(size, smallest))]
        options = {"stride": 2, "padding": 1, "bias": False}
        down: list[nn.Module] = []
        for a, b in zip([channels, *widths], widths, strict=False):
            down += [layer("conv", dims, a, b, 3, **options), *after(b)]
        up: list[nn.Module] = []
        for a, b in zip(reversed(widths), [*reversed(widths[:-1]), width], strict=True):
            up.append(layer("conv_transpose", dims, a, b, 3, output_padding=1, **options))
            up += after(b)
        widest = widths[-1]
        flat, shape = widest * smallest**dims, (widest, *[smallest] * dims)
        if spatial:
            code = [
                layer("conv", dims, widest, latent, 1, bias=False),
                layer("conv_transpose", dims, latent, widest, 1, bias=False),
            ]
        else:
            code = [
                nn.Flatten(),
                nn.Linear(flat, latent, bias=False),
                nn.Linear(latent, flat, bias=False),
                nn.Unflatten(1, shape),
            ]
        self.encoder, self.code = nn.Sequential(*down), nn.Sequential(*code)
        self.decoder = nn.Sequential(*up, layer("conv", dims, width, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        restored: Tensor = self.decoder(self.code(self.encoder(x)))
        return restored
