"""Translator and critic with a branch for each of two classes, of DeScarGAN (Wolleb et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.norms import OwnNorm2d


def _conv(a: int, b: int, end: nn.Module | None = None) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, padding=1), OwnNorm2d(b), end or nn.ReLU()]


def _double(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(*_conv(a, b), *_conv(b, b))


def _enlarged(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), *_conv(a, b))


class BranchedTranslator(nn.Module):
    """Images to images of one of two classes: a U-Net whose last convolutions are each class's own.

    It is told the class, too, by planes beside the image. The finest level has no skip. The output
    is normalised before tanh.

    Args:
        channels: of the images.
        width: channels of the first level; the fourth has eight times as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.down = nn.ModuleList(
            _double(a, b) for a, b in zip([channels + 2, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(_enlarged(a, b) for a, b in pairs)
        self.merge = nn.ModuleList(_double(a, b) for a, b in pairs[:-1])
        self.branches = nn.ModuleList(
            nn.Sequential(*_conv(width, width), *_conv(width, channels, nn.Tanh()))
            for _ in range(2)
        )
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                assert part.bias is not None
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, target: int) -> Tensor:
        """Translate (B, C, H, W), sides multiples of 8, to class 0 or 1."""
        planes = x.new_zeros(len(x), 2, *x.shape[2:])
        planes[:, target] = 1
        x = torch.cat([x, planes], dim=1)
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=False):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        translated: Tensor = self.branches[target](self.up[-1](x))
        return translated


class BranchedCritic(nn.Module):
    """Images to numbers, high for real ones of a class, and to logits of two classes.

    Args:
        channels: of the image.
        size: pixels along each axis, a multiple of 2**halvings.
        width: channels of the first convolution; the widest has sixteen times as many.
        halvings: 2 to 6, one of them before the logits only.

    Raises:
        ArgumentError: the size is no such multiple.
    """

    def __init__(self, channels: int, size: int, width: int, halvings: int = 6) -> None:
        super().__init__()
        cells, rest = divmod(size, 2**halvings)
        if rest or not cells or not 2 <= halvings <= 6:
            raise ArgumentError(
                f"size={size} can't be halved {halvings} times by this critic: give a multiple of "
                "2**halvings, and 2 to 6 halvings."
            )

        def convs(*widths: int) -> list[nn.Module]:
            found: list[nn.Module] = []
            for a, b in zip(widths, widths[1:], strict=False):
                found += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
            return found

        n = [width * k for k in (1, 2, 4, 8, 16)]
        stages = [(channels, n[0]), (n[0], n[1]), (n[1], n[2], n[2]), (n[2], n[3], n[3])]
        stages += [(n[3], n[3], n[3])]
        parts: list[nn.Module] = []
        for stage in stages[: halvings - 1]:
            parts += [*convs(*stage), nn.MaxPool2d(2)]
        wide, half = n[4], nn.MaxPool2d(2)
        self.features = nn.Sequential(*parts, *convs(stages[halvings - 2][-1], wide))
        # As in the release the last one has a border of its own bias around.
        self.real = nn.ModuleList(
            nn.Sequential(*convs(wide, wide, wide), nn.Conv2d(wide, 1, 1, padding=1))
            for _ in range(2)
        )
        self.classes = nn.Sequential(
            *convs(wide, wide, wide), half, nn.Flatten(), nn.Linear(wide * cells**2, 2 * width),
            nn.ReLU(), nn.Dropout(0.1), nn.Linear(2 * width, 2),
        )  # fmt: skip
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                assert part.bias is not None
                nn.init.xavier_normal_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
        """Numbers (B, 1, h, w) of class 0 or 1, and logits (B, 2)."""
        features = self.features(x)
        return self.real[target](features), self.classes(features)
