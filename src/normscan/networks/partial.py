"""Convolutions that see nothing of what is hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PartialConv(nn.Module):
    """A convolution of what is shown, scaled by how much of its window that is.

    Liu et al., ECCV 2018: W (x m) sum(1) / sum(m) + b, 0 where the window shows nothing. Beyond the
    border nothing is shown.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the window, odd.
        stride: of the windows.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Features and where they show anything.

        Args:
            x: (B, C, H, W).
            shown: (B, 1, H, W), 1 or 0.
        """
        window = torch.ones(1, 1, *self.conv.kernel_size, device=x.device, dtype=x.dtype)
        step, around = (
            self.conv.stride,
            (self.conv.kernel_size[0] // 2, self.conv.kernel_size[1] // 2),
        )
        seen = F.conv2d(shown, window, None, (step[0], step[1]), around)
        found = self.conv(x * shown)
        found = found * (window.numel() / seen.clamp_min(1))
        some = (seen > 0).to(x)
        return (found + self.bias[:, None, None]) * some, some


class HiddenPatchNetwork(nn.Module):
    """What an image says of a hidden patch, by partial convolutions with stride 2.

    Args:
        channels: of the image.
        width: of the first level; they double, up to 8 times.
        levels: that the image is halved to.
        dim: numbers that are said.
    """

    def __init__(self, channels: int, width: int, levels: int, dim: int) -> None:
        super().__init__()
        widths = [channels, *(width * 2 ** min(i, 3) for i in range(levels))]
        self.convs = nn.ModuleList(
            PartialConv(a, b, 3, 2) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.filling = PartialConv(widths[-1], widths[-1])
        self.out = nn.Sequential(
            nn.Linear(widths[-1], widths[-1]), nn.LeakyReLU(5e-3), nn.Linear(widths[-1], dim)
        )

    def forward(self, x: Tensor, shown: Tensor, centre: Tensor) -> Tensor:
        """Numbers (B, dim) of the hidden patches.

        Args:
            x: (B, C, H, W).
            shown: (B, 1, H, W), 0 in the patch.
            centre: (B, 2) its column and row, -1 to 1 from border to border.
        """
        for conv in self.convs:
            x, shown = conv(x, shown)
            x = F.leaky_relu(x, 5e-3)
        x, shown = self.filling(x, shown)
        read = F.grid_sample(
            x, centre[:, None, None].to(x), padding_mode="border", align_corners=False
        )
        found: Tensor = self.out(read[:, :, 0, 0])
        return found
