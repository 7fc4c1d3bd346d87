"""A small network whose stages have the shapes of a larger one's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from normscan.errors import ArgumentError


class Cloner(nn.Module):
    """A VGG with few channels inside and those of the source at the end of its blocks.

    A block halves the grid: two 3 x 3 convolutions, from the third block on three, then max-pooling.
    All convolutions but a block's last have ``width`` channels and are followed by batch norm; none
    has a bias (Salehi et al. 2021).

    Args:
        inputs: channels of the image.
        channels: of the source's features, by tap.
        strides: of the source's features, by tap, each twice the one before.
        width: channels inside the blocks.

    Raises:
        ArgumentError: strides that such blocks don't give.
    """

    def __init__(
        self, inputs: int, channels: Sequence[int], strides: Sequence[int], width: int = 16
    ) -> None:
        super().__init__()
        before = strides[0].bit_length() - 2  # blocks that nothing is compared with
        if before < 0 or list(strides) != [2 ** (before + 1 + i) for i in range(len(strides))]:
            raise ArgumentError(
                f"a cloner halves the grid from tap to tap, but these taps have strides "
                f"{list(strides)}. Choose others."
            )
        self.blocks = nn.ModuleList()
        for number, out in enumerate([width] * before + list(channels)):
            layers: list[nn.Module] = []
            for _ in range(1 if number < 2 else 2):
                layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            last = nn.Conv2d(inputs, out, 3, padding=1, bias=False)
            self.blocks.append(nn.Sequential(*layers, last, nn.ReLU(), nn.MaxPool2d(2)))
            inputs = out
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.before = before

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (B, channels, H / stride, W / stride) by tap of images (B, inputs, H, W)."""
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features[self.before :]
