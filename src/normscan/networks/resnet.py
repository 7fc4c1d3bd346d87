"""ResNet-18 from scratch: the encoder of CutPaste, and with a decoder the network of NSA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscan.networks.blocks import pad_to_multiple


class BasicBlock(nn.Module):
    """ResNet's basic block (He et al., CVPR 2016), which keeps, halves or doubles the grid.

    Where it doubles, the first convolution and the shortcut are transposed ones that leave one row
    and column more at the end.

    Args:
        a: channels of the input.
        b: channels of the output.
        stride: 1 or 2.
        up: double the grid by the stride instead of halving it.
    """

    def __init__(self, a: int, b: int, stride: int = 1, up: bool = False) -> None:
        super().__init__()

        def resizing(kernel: int) -> nn.Module:
            options = {"stride": stride, "padding": kernel // 2, "bias": False}
            if up:
                return nn.ConvTranspose2d(a, b, kernel, output_padding=1, **options)  # type: ignore[arg-type]
            return nn.Conv2d(a, b, kernel, **options)  # type: ignore[arg-type]

        self.body = nn.Sequential(
            resizing(3),
            nn.BatchNorm2d(b),
            nn.ReLU(),
            nn.Conv2d(b, b, 3, padding=1, bias=False),
            nn.BatchNorm2d(b),
        )
        same = stride == 1 and a == b
        self.shortcut = nn.Identity() if same else nn.Sequential(resizing(1), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.relu(self.body(x) + self.shortcut(x))
        return result


def _initialise(network: nn.Module) -> None:
    """Kaiming's normal weights by fan-out for plain convolutions, as in ResNet; others stay."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


class ResNetEncoder(nn.Sequential):
    """ResNet-18 without its classifier: features of 8 times the width at a 32nd of the grid.

    Args:
        channels: of the image.
        width: channels of the first convolution (64).
        pool: halve the grid by max pooling after the stem, as ResNet does.
    """

    def __init__(self, channels: int, width: int = 64, pool: bool = True) -> None:
        parts: list[nn.Module] = [
            nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        if pool:
            parts.append(nn.MaxPool2d(3, stride=2, padding=1))
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            parts += [BasicBlock(a, b, 2 if stage else 1), BasicBlock(b, b)]
        super().__init__(*parts)
        self.width = widths[-1]
        _initialise(self)


class ResNetSegmenter(nn.Module):
    """ResNet-18, a bottleneck of 1x1 convolutions, and transposed blocks back; linear output.

    8, 4 and 2 times the width in the bottleneck, then 1, 1/2 and 1/4 of it, each on twice the grid,
    linear enlargement and a transposed 7x7 convolution without bias. No skips.

    Args:
        channels: of the image.
        outputs: channels of the output.
        width: channels of the first convolution (64), a multiple of 4.
        pool: as in ResNet; without it the network works on small images.
    """

    def __init__(self, channels: int, outputs: int = 1, width: int = 64, pool: bool = True) -> None:
        super().__init__()
        w = width
        self.encoder = ResNetEncoder(channels, w, pool)
        self.bottleneck = nn.Sequential(
            nn.Conv2d(8 * w, 4 * w, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(4 * w, 2 * w, 1, bias=False),
            nn.ReLU(),
        )
        ups = [2 * w, w, w // 2, w // 4]
        decoder: list[nn.Module] = [
            BasicBlock(a, b, 2, up=True) for a, b in zip(ups, ups[1:], strict=False)
        ]
        if pool:
            decoder.append(nn.UpsamplingBilinear2d(scale_factor=2))
        decoder.append(
            nn.ConvTranspose2d(
                ups[-1], outputs, 7, stride=2, padding=3, output_padding=1, bias=False
            )
        )
        self.decoder = nn.Sequential(*decoder)
        self.multiple = 32 if pool else 16
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x, cut = pad_to_multiple(x, self.multiple)
        result: Tensor = self.decoder(self.bottleneck(self.encoder(x)))
        return result[cut]
