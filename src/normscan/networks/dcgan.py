"""Networks of deep convolutional GANs (Radford et al. 2016): convolutions of stride 2 down to 4x4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscan.networks.blocks import doublings, layer

SMALLEST = 4
DEVIATION = 0.02


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draw convolutions and linear layers from N(0, 0.02) and scales of batch norms from N(1, 0.02)."""
    for part in module.modules():
        if "Conv" in type(part).__name__ or isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, DEVIATION)  # type: ignore[arg-type]
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.weight, 1.0, DEVIATION)
            nn.init.zeros_(part.bias)


def _norm(dims: int, channels: int, linear: type[nn.Module]) -> list[nn.Module]:
    return [layer("batch_norm", dims, channels), linear()]


class Leaky(nn.LeakyReLU):
    """Leaky ReLU of slope 0.2."""

    def __init__(self) -> None:
        super().__init__(0.2)


class Judge(nn.Module):
    """Image to ``outputs`` numbers, by features of 4x4 cells.

    Convolutions of stride 2 whose channels double, batch norm on all but the first, Leaky ReLU.

    Args:
        dims: 2 or 3.
        channels: of the image.
        size: pixels along each axis, 4 times a power of two.
        outputs: 1 for a critic, the code's length for an encoder.
        width: channels of the first convolution.
        kernel: 4, without biases and with a last convolution; or 5, with biases and a linear layer.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(
        self, dims: int, channels: int, size: int, outputs: int, width: int, kernel: int = 4
    ) -> None:
        super().__init__()
        n, biased = doublings(size, SMALLEST), kernel == 5
        widths = [channels, *(width * 2**i for i in range(n))]
        parts: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            conv = layer("conv", dims, a, b, kernel, 2, (kernel - 1) // 2, bias=biased)
            parts += [conv, *(_norm(dims, b, Leaky) if i else [Leaky()])]
        self.features = nn.Sequential(*parts)
        if biased:
            last: nn.Module = nn.Linear(widths[-1] * SMALLEST**dims, outputs)
            self.last = nn.Sequential(nn.Flatten(), last)
        else:
            last = layer("conv", dims, widths[-1], outputs, SMALLEST, bias=False)
            self.last = nn.Sequential(last, nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.features(x))
        return result


class Maker(nn.Module):
    """Code (B, latent) to image (B, channels, size...) in -1..1, the mirror of ``Judge``.

    Args:
        dims: 2 or 3.
        channels: of the image.
        size: pixels along each axis, 4 times a power of two.
        latent: numbers in the code.
        width: channels before the last convolution.
        kernel: 4, without biases and with a first convolution; or 5, with biases and a linear layer.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, width: int, kernel: int = 4
    ) -> None:
        super().__init__()
        n, biased = doublings(size, SMALLEST), kernel == 5
        widths = [*(width * 2**i for i in reversed(range(n))), channels]
        shape = (widths[0], *[SMALLEST] * dims)
        start: list[nn.Module]
        if biased:
            start = [nn.Linear(latent, widths[0] * SMALLEST**dims), nn.Unflatten(1, shape)]
        else:
            start = [nn.Unflatten(1, (latent, *[1] * dims))]
            start += [layer("conv_transpose", dims, latent, widths[0], SMALLEST, bias=False)]
        parts = [*start, *_norm(dims, widths[0], nn.ReLU)]
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            pads = {"padding": (kernel - 1) // 2, "output_padding": kernel % 2}
            parts += [layer("conv_transpose", dims, a, b, kernel, 2, bias=biased, **pads)]
            parts += _norm(dims, b, nn.ReLU) if i < n - 1 else [nn.Tanh()]
        self.layers = nn.Sequential(*parts)

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(z)
        return image
