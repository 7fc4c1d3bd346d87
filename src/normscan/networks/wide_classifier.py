"""The wide residual classifier of small pictures (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError


class Block(nn.Module):
    """Norm, ReLU, convolution, twice, with dropout between, beside a shortcut.

    Args:
        a: channels of the input.
        b: channels of the output.
        stride: of the first convolution.
        dropout: probability.
    """

    def __init__(self, a: int, b: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(a), nn.BatchNorm2d(b)
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.shortcut = None if a == b else nn.Conv2d(a, b, 1, stride, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(self.norm1(x))
        y = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(seen)))))
        # Where the channels change, what is normed already takes the shortcut.
        result: Tensor = y + (x if self.shortcut is None else self.shortcut(seen))
        return result


class WideClassifier(nn.Module):
    """Three groups of blocks, a mean over the places, a linear layer.

    Args:
        channels: of the image.
        outputs: logits.
        depth: layers, 6 n + 4.
        width: times 16, 32 and 64 channels.
        dropout: probability in each block.

    Raises:
        ArgumentError: another depth.
    """

    def __init__(
        self, channels: int, outputs: int, depth: int = 40, width: int = 2, dropout: float = 0.3
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ArgumentError(f"depth={depth}: a wide classifier has 6 n + 4 layers, such as 40.")
        blocks, before = list[nn.Module](), 16
        for group in range(3):
            for number in range((depth - 4) // 6):
                after = 16 * width * 2**group
                blocks.append(Block(before, after, 2 if group and not number else 1, dropout))
                before = after
        self.first = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(before)
        self.last = nn.Linear(before, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, outputs)."""
        features = F.relu(self.norm(self.blocks(self.first(x))))
        result: Tensor = self.last(features.mean((2, 3)))
        return result
