"""Translator and judge of CycleGAN (Zhu et al., ICCV 2017), and its store of earlier pictures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from normscan.networks.together import gathered


def normed(conv: nn.Module, channels: int, affine: bool = False) -> list[nn.Module]:
    """A convolution, instance norm by the statistics of each image, also at test, and ReLU."""
    return [conv, nn.InstanceNorm2d(channels, affine=affine), nn.ReLU()]


class Residual(nn.Module):
    """Two 3x3 convolutions with instance norm beside the identity.

    Args:
        channels: of the input and the output.
        dropout: share of the features that are dropped between both.
        borders: what lies beyond the border, ``reflect`` for mirrored features or ``zeros``.
        affine: the norms learn scale and shift, in place of the convolutions' bias.
    """

    def __init__(
        self,
        channels: int,
        dropout: float = 0.0,
        borders: Literal["reflect", "zeros"] = "reflect",
        affine: bool = False,
    ) -> None:
        super().__init__()
        first, second = (
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode=borders, bias=not affine)
            for _ in range(2)
        )
        between = [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(
            *normed(first, channels, affine), *between, second,
            nn.InstanceNorm2d(channels, affine=affine),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.layers(x)
        return changed


class ResidualTranslator(nn.Module):
    """Images of one domain to images of another, in -1..1.

    Args:
        channels: of the images.
        width: channels of the first convolution; the widest has four times as many.
        blocks: residual blocks on a quarter of the grid.
        dropout: share of the features that are dropped in each block.
    """

    def __init__(self, channels: int, width: int, blocks: int, dropout: float = 0.0) -> None:
        super().__init__()

        def wide(a: int, b: int) -> nn.Conv2d:
            return nn.Conv2d(a, b, 7, padding=3, padding_mode="reflect")

        parts = normed(wide(channels, width), width)
        for a in (width, 2 * width):
            parts += normed(nn.Conv2d(a, 2 * a, 3, 2, 1), 2 * a)
        parts += [Residual(4 * width, dropout) for _ in range(blocks)]
        for a in (4 * width, 2 * width):
            parts += normed(nn.ConvTranspose2d(a, a // 2, 3, 2, 1, output_padding=1), a // 2)
        self.layers = nn.Sequential(*parts, wide(width, channels), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Translate (B, C, H, W), sides multiples of 4."""
        translated: Tensor = self.layers(x)
        return translated


class PatchJudge(nn.Module):
    """A number for each patch of an image, 1 for real ones (PatchGAN with instance norm).

    Args:
        channels: of the image.
        width: channels of the first convolution; they double up to eight times as many.
        halvings: convolutions of stride 2.
    """

    def __init__(self, channels: int, width: int, halvings: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(halvings + 1)]
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if i < halvings - 1 else 1
            parts += [nn.Conv2d(a, b, 4, stride, 1), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        judged: Tensor = self.layers(x)
        return judged


def begin(network: nn.Module, std: float = 0.02) -> None:
    """Draw the weights of all convolutions from N(0, std), as the authors do; biases stay."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, std)


class Pool(nn.Module):
    """Translated images of earlier updates, half of which a judge sees instead of the newest.

    Shrivastava et al., CVPR 2017: until it is full it takes in what comes and gives it back; from
    then on each image is exchanged for a stored one with probability one half.

    Several processes put the images of all of them into it, so that it is the same in each.

    Args:
        shape: (C, *spatial) of an image.
        room: number of images that it holds.
    """

    images: Tensor
    held: Tensor
    gathered = ("images", "held")

    def __init__(self, shape: tuple[int, ...], room: int = 50) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(room, *shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, new: Tensor, chance: Tensor) -> Tensor:
        """Images (B, C, *spatial), each new or stored; those that aren't given back are stored.

        Args:
            new: (B, C, *spatial).
            chance: (B, 2) uniform in [0, 1): whether an image is exchanged, and for which one.
        """
        every, mine = gathered(new)
        chance, _ = gathered(chance[: len(new)])
        room, given = len(self.images), every.clone()
        for i, image in enumerate(every):
            held = int(self.held)
            if held < room:
                self.images[held] = image
                self.held += 1
            elif chance[i, 0] > 0.5:
                place = int(room * chance[i, 1])
                given[i] = self.images[place]
                self.images[place] = image
        return given[mine]
