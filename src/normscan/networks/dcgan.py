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


def downwards(dims: int, widths: list[int], kernel: int = 4) -> nn.Sequential:
    """Convolutions of stride 2 with batch norm on all but the first, and Leaky ReLU.

    Args:
        dims: 2 or 3.
        widths: channels of the image, and behind each convolution.
        kernel: 3 or 4, without biases; or 5, with biases.
    """
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        conv = layer("conv", dims, a, b, kernel, 2, (kernel - 1) // 2, bias=kernel == 5)
        parts += [conv, *(_norm(dims, b, Leaky) if i else [Leaky()])]
    return nn.Sequential(*parts)


def upwards(dims: int, widths: list[int], kernel: int = 4, odd: bool = False) -> list[nn.Module]:
    """Transposed convolutions of stride 2 with batch norm and ReLU, behind the last one tanh.

    Args:
        dims: 2 or 3.
        widths: channels before each convolution, and of the image.
        kernel: 3 or 4, without biases; or 5, with biases.
        odd: the last one adds a pixel less.
    """
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i == len(widths) - 2
        more = kernel % 2 - int(odd and last)
        pads = {"padding": (kernel - 1) // 2, "output_padding": more}
        parts += [layer("conv_transpose", dims, a, b, kernel, 2, bias=kernel == 5, **pads)]
        parts += [nn.Tanh()] if last else _norm(dims, b, nn.ReLU)
    return parts


def _halvings(size: int, kernel: int) -> int:
    """Convolutions from an image to 4x4; with a kernel of 3 its side may be odd."""
    return doublings(size + (kernel == 3 and size % 2), SMALLEST)


class Judge(nn.Module):
    """Image to ``outputs`` numbers, by features of 4x4 cells.

    Convolutions of stride 2 whose channels double, batch norm on all but the first, Leaky ReLU.

    Args:
        dims: 2 or 3.
        channels: of the image.
        size: pixels along each axis, 4 times a power of two; with a kernel of 3 also one less.
        outputs: 1 for a critic, the code's length for an encoder.
        width: channels of the first convolution.
        kernel: 3 or 4, without biases and with a last convolution; or 5, with biases and a linear
            layer.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(
        self, dims: int, channels: int, size: int, outputs: int, width: int, kernel: int = 4
    ) -> None:
        super().__init__()
        widths = [channels, *(width * 2**i for i in range(_halvings(size, kernel)))]
        self.features = downwards(dims, widths, kernel)
        if kernel == 5:
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
        size: pixels along each axis, 4 times a power of two; with a kernel of 3 also one less.
        latent: numbers in the code.
        width: channels before the last convolution.
        kernel: 3 or 4, without biases and with a first convolution; or 5, with biases and a linear
            layer.

    Raises:
        ArgumentError: the size is no such product.
    """

    def __init__(
        self, dims: int, channels: int, size: int, latent: int, width: int, kernel: int = 4
    ) -> None:
        super().__init__()
        widths = [*(width * 2**i for i in reversed(range(_halvings(size, kernel)))), channels]
        shape = (widths[0], *[SMALLEST] * dims)
        start: list[nn.Module]
        if kernel == 5:
            start = [nn.Linear(latent, widths[0] * SMALLEST**dims), nn.Unflatten(1, shape)]
        else:
            start = [nn.Unflatten(1, (latent, *[1] * dims))]
            start += [layer("conv_transpose", dims, latent, widths[0], SMALLEST, bias=False)]
        parts = [*start, *_norm(dims, widths[0], nn.ReLU)]
        parts += upwards(dims, widths, kernel, bool(size % 2))
        self.layers = nn.Sequential(*parts)

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.layers(z)
        return image
