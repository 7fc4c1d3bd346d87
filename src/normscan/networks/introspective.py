"""Residual encoder and decoder of introspective variational autoencoders."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.autoencoder import CodedNetwork
from normscan.networks.blocks import layer


class PlainBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside the identity, or a bare 1x1 convolution.

    Args:
        dims: 2 or 3.
        a: channels of the input.
        b: channels of the output.
    """

    def __init__(self, dims: int, a: int, b: int) -> None:
        super().__init__()
        options = {"padding": 1, "bias": False}
        self.shortcut = layer("conv", dims, a, b, 1, bias=False) if a != b else nn.Identity()
        self.body = nn.Sequential(
            layer("conv", dims, a, b, 3, **options), layer("batch_norm", dims, b),
            nn.LeakyReLU(0.2),
            layer("conv", dims, b, b, 3, **options), layer("batch_norm", dims, b),
        )  # fmt: skip
        self.end = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.end(self.body(x) + self.shortcut(x))
        return result


class IntroEncoder(nn.Module):
    """A 5x5 convolution and residual blocks with average pooling between, to two heads of a code.

    Args:
        dims: 2 or 3.
        channels: of the image.
        flat: numbers in the last features.
        latent: numbers in the code.
        widths: channels before each pooling.
    """

    def __init__(
        self, dims: int, channels: int, flat: int, latent: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        first = [
            layer("conv", dims, channels, widths[0], 5, padding=2, bias=False),
            layer("batch_norm", dims, widths[0]), nn.LeakyReLU(0.2),
        ]  # fmt: skip
        stages = [nn.Sequential(*first, layer("avg_pool", dims, 2))]
        for a, b in zip(widths, widths[1:], strict=False):
            stages.append(nn.Sequential(PlainBlock(dims, a, b), layer("avg_pool", dims, 2)))
        self.stages = nn.ModuleList(stages)
        last = PlainBlock(dims, widths[-1], widths[-1])
        self.heads = nn.Sequential(last, nn.Flatten(), nn.Linear(flat, 2 * latent))

    def features(self, x: Tensor) -> list[Tensor]:
        """What each pooling leaves."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code, (B, latent) each."""
        mean, spread = self.heads(self.features(x)[-1]).chunk(2, dim=1)
        return mean, spread


class IntroNetwork(CodedNetwork):
    """Encoder and decoder of IntroVAE as in Soft-IntroVAE (Daniel and Tamar, CVPR 2021).

    The decoder mirrors the encoder with nearest-neighbour enlargement, and ends in a sigmoid.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis, a multiple of 2 to the number of ``widths``.
        latent: numbers in the code.
        widths: channels before each pooling.

    Raises:
        ArgumentError: the size can't be halved so often.
    """

    encoder: IntroEncoder

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        step = 2 ** len(widths)
        if size % step:
            raise ArgumentError(
                f"size={size} can't be halved {len(widths)} times, once for each of the widths: "
                f"give a multiple of {step}, or fewer widths."
            )
        shape = (widths[-1], *[size // step] * dims)
        flat = widths[-1] * (size // step) ** dims
        self.encoder = IntroEncoder(dims, channels, flat, latent, widths)
        up: list[nn.Module] = [nn.Linear(latent, flat), nn.ReLU(), nn.Unflatten(1, shape)]
        for a, b in zip([widths[-1], *widths[::-1]], widths[::-1], strict=False):
            up += [PlainBlock(dims, a, b), nn.Upsample(scale_factor=2)]
        up += [PlainBlock(dims, widths[0], widths[0])]
        up += [layer("conv", dims, widths[0], channels, 5, padding=2), nn.Sigmoid()]
        self.decoder = nn.Sequential(*up)

    def encode(self, x: Tensor) -> list[Tensor]:
        return list(self.encoder(x))
