"""Autoencoders made for whole volumes: residual stages, and convolutions with max pooling."""

from __future__ import annotations

from torch import Tensor, nn

from normscan.networks.autoencoder import CodedNetwork
from normscan.networks.blocks import layer, pad_to_multiple


def _conv(dims: int, channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    """3x3 convolution and instance norm with a learned scale and shift."""
    return [
        layer("conv", dims, channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(channels_out, channels_out),
    ]


class ResidualStage(nn.Module):
    """Two 3x3 convolutions with instance norm around a 1x1 shortcut (He et al. 2016).

    Args:
        dims: 2 or 3.
        channels_in: of the input.
        channels_out: of the output.
        stride: of the first convolution and the shortcut.
        slope: of the Leaky ReLUs.
    """

    def __init__(
        self, dims: int, channels_in: int, channels_out: int, stride: int = 1, slope: float = 0.01
    ) -> None:
        super().__init__()
        self.slope = slope
        self.body = nn.Sequential(
            *_conv(dims, channels_in, channels_out, stride),
            nn.LeakyReLU(slope),
            *_conv(dims, channels_out, channels_out),
        )
        self.shortcut = layer("conv", dims, channels_in, channels_out, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.body(x) + self.shortcut(x), self.slope)


class StridedResidualAutoencoder(nn.Module):
    """Stride-2 residual stages to a spatial code, and residual stages between enlargements back.

    No skips; linear output. Inputs are padded to a multiple of 2**stages and cut again.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        width: channels of the first stage; each stage doubles them.
        stages: how often the grid is halved.
    """

    def __init__(self, dims: int = 3, channels: int = 1, width: int = 32, stages: int = 4) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(stages)]
        down = [
            ResidualStage(dims, a, b, stride=2)
            for a, b in zip([channels, *widths], widths, strict=False)
        ]
        up: list[nn.Module] = []
        for a, b in zip(reversed(widths), [*reversed(widths[:-1]), width], strict=True):
            up += [nn.Upsample(scale_factor=2), ResidualStage(dims, a, b)]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, layer("conv", dims, width, channels, 3, padding=1))
        self.multiple = 2**stages

    def forward(self, x: Tensor) -> Tensor:
        x, cut = pad_to_multiple(x, self.multiple)
        restored: Tensor = self.decoder(self.encoder(x))
        return restored[cut]


class PooledAutoencoder(nn.Module):
    """Convolution, instance norm, ReLU and max pooling down; enlargement and the same up.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, a multiple of 2**levels; only a variational code needs it.
        width: channels of the first level; each level doubles them.
        levels: how often the grid is halved.
        latent: length of the variational code; None for the spatial code, which is the deepest
            grid itself.
    """

    def __init__(
        self,
        dims: int = 3,
        channels: int = 1,
        size: int = 256,
        width: int = 8,
        levels: int = 5,
        latent: int | None = None,
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels)]
        down: list[nn.Module] = []
        for a, b in zip([channels, *widths], widths, strict=False):
            pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](2)
            down += [*_conv(dims, a, b), nn.ReLU(), pool]
        up: list[nn.Module] = []
        for a, b in zip(reversed(widths), [*reversed(widths[:-1]), width], strict=True):
            up += [nn.Upsample(scale_factor=2), *_conv(dims, a, b), nn.ReLU()]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, layer("conv", dims, width, channels, 3, padding=1))
        self.dims, self.multiple = dims, 2**levels
        self.heads, self.expand = nn.ModuleList(), nn.Sequential()
        if latent is not None:
            grid = [-(-size // self.multiple)] * dims
            flat = widths[-1] * grid[0] ** dims
            self.heads.extend(nn.Linear(flat, latent) for _ in range(2))
            self.expand.append(nn.Linear(latent, flat))
            self.expand.append(nn.Unflatten(1, (widths[-1], *grid)))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The code, or its mean and log standard deviation if it is variational."""
        features = self.encoder(pad_to_multiple(x, self.multiple)[0])
        return [head(features.flatten(1)) for head in self.heads] or [features]

    def decode(self, code: Tensor, like: Tensor) -> Tensor:
        """The image of a code, cut to the grid of an image."""
        cut = (slice(None), slice(None), *(slice(0, n) for n in like.shape[2:]))
        restored: Tensor = self.decoder(self.expand(code))
        return restored[cut]

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0], x)


class StridedGrid(CodedNetwork):
    """Strided 3x3 convolutions to a grid of codes, and transposed ones back.

    Instance norms and Leaky ReLUs between; linear heads of one pixel; linear output.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        latent: channels of the code.
        width: channels of the first convolution; each further one doubles them.
        stages: how often the grid is halved.
        heads: 2 for mean and spread of a variational code.
    """

    def __init__(
        self, dims: int, channels: int, latent: int, width: int, stages: int, heads: int = 2
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(stages)]
        down: list[nn.Module] = []
        for a, b in zip([channels, *widths], widths, strict=False):
            down += [*_conv(dims, a, b, 2), nn.LeakyReLU()]
        self.encoder = nn.Sequential(*down)
        self.heads = nn.ModuleList(layer("conv", dims, widths[-1], latent, 1) for _ in range(heads))
        up: list[nn.Module] = [layer("conv", dims, latent, widths[-1], 1)]
        for a, b in zip(widths[::-1], [*widths[-2::-1], width], strict=True):
            up += [
                layer("conv_transpose", dims, a, b, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(b, b), nn.LeakyReLU(),
            ]  # fmt: skip
        self.decoder = nn.Sequential(*up, layer("conv", dims, width, channels, 3, padding=1))
