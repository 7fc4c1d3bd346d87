"""U-Nets of structure and texture (Zhou et al., ECCV 2020), and their plain autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.networks.gated import double_conv

LEVELS = (1, 2, 4, 8, 8)  # channels over those of the first level
MULTIPLE = 2 ** (len(LEVELS) - 1)


def check_size(size: int) -> None:
    """See that images can be halved down to the deepest level.

    Raises:
        ArgumentError: the size is no multiple of 16.
    """
    if size % MULTIPLE:
        raise ArgumentError(f"size={size}: give a multiple of {MULTIPLE}.")


class Downward(nn.Module):
    """Image to the features of five levels, the deepest last; max pooling between them.

    Args:
        channels: of the image.
        width: channels of the first level; 2, 4, 8 and 8 times as many in the others.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width * f for f in LEVELS]
        self.stages = nn.ModuleList(
            double_conv(a, b, b, bias=True)
            for a, b in zip([channels, *widths], widths, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
            found.append(x)
        return found


class Upward(nn.Module):
    """Deepest features to images, twice the size at each stage, linear output.

    Args:
        deepest: channels of the deepest features.
        beside: channels of the skip at each stage, 0 for none.
        widths: channels behind each stage.
        outputs: channels of the images.
    """

    def __init__(
        self, deepest: int, beside: Sequence[int], widths: Sequence[int], outputs: int
    ) -> None:
        super().__init__()
        self.beside = tuple(beside)
        before = [deepest, *widths]
        self.stages = nn.ModuleList(
            double_conv(a + skip, b, b, bias=True)
            for a, skip, b in zip(before, beside, widths, strict=False)
        )
        self.out = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, x: Tensor, skips: Sequence[Tensor] = ()) -> Tensor:
        """Images, from the deepest features and the skips, deepest first."""
        left = list(skips)
        for stage, beside in zip(self.stages, self.beside, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = stage(torch.cat([left.pop(0), x], 1) if beside else x)
        image: Tensor = self.out(x)
        return image


class StructureNet(nn.Module):
    """U-Net to the logits of structures.

    Args:
        channels: of the image.
        classes: structures, the background among them.
        width: channels of the first level.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.down = Downward(channels, width)
        skips = [width * f for f in LEVELS[-2::-1]]
        self.up = Upward(width * LEVELS[-1], skips, [4 * width, 2 * width, width, width], classes)

    def forward(self, x: Tensor) -> Tensor:
        *skips, deepest = self.down(x)
        logits: Tensor = self.up(deepest, skips[::-1])
        return logits


class TextureNet(nn.Module):
    """Image and its structures to the image; only structures have skips, and none at full size.

    Args:
        channels: of the image.
        width: channels of the first level.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.image, self.structure = Downward(channels, width), Downward(1, width)
        skips = [*(width * f for f in LEVELS[3:0:-1]), 0]
        widths = [4 * width, 2 * width, 3 * width // 2, width]
        self.up = Upward(2 * width * LEVELS[-1], skips, widths, channels)

    def forward(self, x: Tensor, structures: Tensor) -> Tensor:
        """Images (B, C, H, W) from images and structures (B, 1, H, W) in 0..1."""
        _, *skips, deepest = self.structure(structures)
        both = torch.cat([deepest, self.image(x)[-1]], 1)
        restored: Tensor = self.up(both, skips[::-1])
        return restored
