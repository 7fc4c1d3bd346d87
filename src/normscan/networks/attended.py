"""A variational autoencoder on ResNet-18 whose early features are an attention map (AMCons)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.autoencoder import CodedNetwork
from normscan.networks.resnet import BasicBlock


class DoublingBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, which may double the grid.

    Args:
        a: channels of the input.
        b: channels of the output.
        double: enlarge behind the first convolution and in the shortcut, which then has a 1x1
            convolution and a norm; else a and b are the same.
    """

    def __init__(self, a: int, b: int, double: bool) -> None:
        super().__init__()
        up = [nn.Upsample(scale_factor=2)] if double else []
        self.body = nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1), *up, nn.BatchNorm2d(b), nn.ReLU(),
            nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b),
        )  # fmt: skip
        shortcut = nn.Sequential(nn.Conv2d(a, b, 1), *up, nn.BatchNorm2d(b))
        self.shortcut = shortcut if double else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.relu(self.body(x) + self.shortcut(x))
        return result


class AttendedNetwork(CodedNetwork):
    """ResNet-18 from scratch to a dense code, and blocks that double the grid back.

    The stem is a 7x7 convolution of stride 2 alone, without pooling; four stages follow, of which
    the last three halve the grid. Linear output.

    Args:
        channels: of input and output.
        size: pixels along each axis, a multiple of 16.
        latent: numbers in the code.
        width: channels of the first stage (64), a multiple of 4.

    Raises:
        ArgumentError: the size is no multiple of 16.
    """

    def __init__(self, channels: int, size: int, latent: int, width: int = 64) -> None:
        super().__init__()
        if size % 16:
            raise ArgumentError(
                f"size={size} isn't a multiple of 16. Use size={size // 16 * 16 + 16}."
            )
        widths, w = [width, width, 2 * width, 4 * width, 8 * width], 4 * width
        stages = [
            nn.Sequential(BasicBlock(a, b, 2 if i else 1), BasicBlock(b, b))
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        ]
        stem = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.first = nn.Sequential(stem, stages[0])
        self.rest = nn.Sequential(*stages[1:], nn.Flatten())
        self.encoder = nn.Sequential(self.first, self.rest)
        side = size // 16
        self.heads = nn.ModuleList(nn.Linear(8 * width * side**2, latent) for _ in range(2))
        up: list[nn.Module] = [nn.Linear(latent, w * side**2), nn.Unflatten(1, (w, side, side))]
        for i in range(4):
            up += [
                DoublingBlock(w >> i, w >> i + 1, True),
                DoublingBlock(w >> i + 1, w >> i + 1, False),
            ]
        self.decoder = nn.Sequential(*up, nn.Conv2d(w >> 4, channels, 3, padding=1))

    def attended(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mean (B, 1, H / 2, W / 2) over the channels of the first stage, and the code's heads."""
        early = self.first(x)
        features = self.rest(early)
        return early.mean(1, keepdim=True), [head(features) for head in self.heads]

    def encode(self, x: Tensor) -> list[Tensor]:
        return self.attended(x)[1]
