"""Networks behind the saliency of counterfactuals: a noise-aware classifier, an autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.guided import GuidedEncoder, Layout


class AttentionPool(nn.Module):
    """One query, the mean of all cells, looks at them (Radford et al. 2021), (B, outputs)."""

    def __init__(self, cells: int, channels: int, outputs: int, head_width: int) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.place = nn.Parameter(torch.randn(channels, cells + 1) / channels**0.5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        flat = torch.cat([flat.mean(-1, keepdim=True), flat], -1) + self.place
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).transpose(2, 3)
            for part in self.qkv(flat).chunk(3, dim=1)
        )
        seen = F.scaled_dot_product_attention(q[:, :, :1], k, v).transpose(2, 3).flatten(1, 2)
        result: Tensor = self.out(seen)[:, :, 0]
        return result


class NoisyClassifier(GuidedEncoder):
    """The encoding half of a guided U-Net with a pool of attention, (B, C, H, W) to (B, classes).

    Args:
        channels: of the image.
        size: pixels along each axis.
        classes: number of them.
        layout: of the network.
    """

    def __init__(self, channels: int, size: int, classes: int, layout: Layout) -> None:
        super().__init__(2, channels, layout)
        self.norm = nn.GroupNorm(min(layout.groups, layout.width), self.channels)
        width = layout.head_width or self.channels // layout.heads
        cells = (size // layout.multiple) ** 2
        self.pool = AttentionPool(cells, self.channels, classes, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, _ = self.encoded(x, self.told(t, None))
        result: Tensor = self.pool(F.silu(self.norm(x)))
        return result


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class _Block(nn.Module):
    """Two convolutions with batch norms; the second one may enlarge, the first one may shrink."""

    def __init__(self, inputs: int, outputs: int, down: int = 1, up: int = 1) -> None:
        super().__init__()
        # On the way up the first convolution keeps the width.
        inner = inputs if up > 1 else outputs
        grow: list[nn.Module] = [nn.Upsample(scale_factor=up)] if up > 1 else []
        self.first = nn.Sequential(_conv(inputs, inner, 3, down), nn.BatchNorm2d(inner), nn.ReLU())
        self.second = nn.Sequential(*grow, _conv(inner, outputs, 3), nn.BatchNorm2d(outputs))
        same = inputs == outputs and down == up == 1
        past = nn.Sequential(*grow, _conv(inputs, outputs, 1, down), nn.BatchNorm2d(outputs))
        self.past = nn.Identity() if same else past

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.past(x))


class ShallowAutoencoder(nn.Module):
    """Residual autoencoder with a code of few channels on a quarter of the grid.

    Args:
        channels: of the image.
        stem: channels of the first convolution.
        widths: channels of the three stages; the last ones are the code's.
    """

    def __init__(
        self, channels: int, stem: int = 128, widths: tuple[int, int, int] = (6, 12, 16)
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.encoder = nn.Sequential(
            _conv(channels, stem, 3), nn.BatchNorm2d(stem), nn.ReLU(), _Block(stem, a), _Block(a, a),
            _Block(a, b, down=2), _Block(b, b), _Block(b, c, down=2), _Block(c, c),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            _Block(c, c, up=2), _Block(c, c), _Block(c, b, up=2), _Block(b, b), _Block(b, b),
            _Block(b, b), _conv(b, channels, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.encoder(x))
        return result
