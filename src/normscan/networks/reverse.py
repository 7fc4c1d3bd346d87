"""Reverse distillation: the embedding of a backbone's stages, and a decoder that mirrors them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.backbones import Backbone

Up = Literal["transposed", "bilinear"]


@dataclass(frozen=True)
class Stage:
    """A stage of a residual network.

    Attributes:
        channels: of its output.
        width: channels of the 3 x 3 convolutions in its blocks.
        blocks: number of its blocks.
        bottleneck: whether they are bottlenecks; else basic blocks.
    """

    channels: int
    width: int
    blocks: int
    bottleneck: bool


def stages_of(backbone: Backbone, size: int, deepest: int = 1) -> list[Stage]:
    """The tapped stages of a backbone, the finest first, so that a decoder can mirror them.

    The decoder's blocks end in a ReLU as those of ResNet do, so other networks, whose features may be
    negative, can't be mirrored.

    Args:
        backbone: each tap at twice the stride of the one before.
        size: pixels along each axis of its images.
        deepest: further halvings of the grid behind the last tap.

    Raises:
        ArgumentError: no stages of a ResNet, other strides, one tap only, or a size that isn't a
            multiple of the deepest stride.
    """
    strides = backbone.strides
    if len(strides) < 2 or any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
        raise ArgumentError(
            f"the taps {', '.join(backbone.taps)} have the strides {strides}; reverse distillation "
            "takes two or more, each twice the one before. Choose the stages in their order."
        )
    unit = strides[-1] * 2**deepest
    if size % unit:
        near = max(unit, round(size / unit) * unit)
        raise ArgumentError(f"size={size} is no multiple of {unit}. Use size={near}.")
    children = dict(backbone.network.named_children())
    result = []
    for tap, channels in zip(backbone.taps, backbone.channels, strict=True):
        blocks = list(children[tap].children()) if tap in children else []
        inner: Any = getattr(blocks[0], "conv2", None) if blocks else None
        if not isinstance(inner, nn.Conv2d):
            raise ArgumentError(
                f"the tap '{tap}' is no stage of a ResNet, which alone can be mirrored. Use a ResNet, "
                "such as resnet18.tv_in1k or wide_resnet50_2.tv_in1k, with taps such as layer1."
            )
        bottleneck = hasattr(blocks[0], "conv3")
        result.append(Stage(channels, inner.out_channels, len(blocks), bottleneck))
    return result


def trainable_copy(
    backbone: Backbone, batch_norm: Literal["frozen", "train"] = "frozen"
) -> Backbone:
    """A copy of a backbone, with the same weights, that learns."""
    result = copy.deepcopy(backbone)
    result.trainable, result.batch_norm = True, batch_norm
    return result.requires_grad_(True)


def with_momentum(module: nn.Module, momentum: float) -> None:
    """Set the momentum of all batch norms of a module."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = momentum


def initialise(module: nn.Module) -> None:
    """Kaiming's normal weights by fan-out for the convolutions, as in ResNet; others stay."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def convolved(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps (or halves) the grid, batch norm and ReLU."""
    return nn.Sequential(
        _conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class ResidualBlock(nn.Module):
    """ResNet's block (He et al., CVPR 2016), which keeps, halves or doubles the grid.

    Args:
        inputs: channels.
        stage: whose block it is.
        step: ``keep``; ``half`` by a stride in the (first) 3 x 3 convolution; ``transposed``, where a
            2 x 2 transposed convolution takes its place (RD4AD); ``bilinear``, with an enlargement
            before the second convolution (EDC). The shortcut does likewise.
    """

    def __init__(
        self, inputs: int, stage: Stage, step: Literal["keep", "half"] | Up = "keep"
    ) -> None:
        super().__init__()
        width, outputs = stage.width, stage.channels

        def resized(a: int, b: int, kernel: int) -> list[nn.Module]:
            if step == "transposed":
                return [nn.ConvTranspose2d(a, b, 2, 2, bias=False)]
            return [_conv(a, b, kernel, 2 if step == "half" else 1)]

        def unit(*parts: nn.Module, channels: int) -> list[nn.Module]:
            return [*parts, nn.BatchNorm2d(channels)]

        up: list[nn.Module] = []
        if step == "bilinear":
            up = [nn.Upsample(scale_factor=2, mode="bilinear")]
        relu = nn.ReLU(inplace=True)
        if stage.bottleneck:
            main = [
                *unit(_conv(inputs, width, 1), channels=width), relu, *up,
                *unit(*resized(width, width, 3), channels=width), relu,
                *unit(_conv(width, outputs, 1), channels=outputs),
            ]  # fmt: skip
        else:
            main = [
                *unit(*resized(inputs, width, 3), channels=width), relu, *up,
                *unit(_conv(width, outputs, 3), channels=outputs),
            ]  # fmt: skip
        self.main = nn.Sequential(*main)
        same = step == "keep" and inputs == outputs
        shortcut = [] if same else unit(*resized(inputs, outputs, 1), *up, channels=outputs)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, channels, h', w')."""
        return torch.relu(self.main(x) + self.shortcut(x))


def group(inputs: int, stage: Stage, step: Literal["half"] | Up) -> nn.Sequential:
    """The blocks of a stage, of which the first changes the grid."""
    rest = [ResidualBlock(stage.channels, stage) for _ in range(stage.blocks - 1)]
    return nn.Sequential(ResidualBlock(inputs, stage, step), *rest)


class OneClassEmbedding(nn.Module):
    """One-class bottleneck embedding of RD4AD (Deng and Li, CVPR 2022).

    Each stage is brought to the grid and channels of the deepest by 3 x 3 convolutions of stride 2;
    together they go through one more residual stage with twice the channels at half the grid, with
    as many blocks as the first stage (ResNet's layer4).

    Args:
        stages: of the backbone, the finest first.

    Attributes:
        channels: of the embedding.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        widths = [s.channels for s in stages]
        self.paths = nn.ModuleList(
            nn.Sequential(
                *(
                    convolved(a, b, stride=2)
                    for a, b in zip(widths[i:], widths[i + 1 :], strict=False)
                )
            )
            for i in range(len(widths))
        )
        last = stages[-1]
        deepest = replace(
            last, channels=2 * last.channels, width=2 * last.width, blocks=stages[0].blocks
        )
        self.group = group(len(stages) * last.channels, deepest, "half")
        self.channels = deepest.channels
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, channels, h / 2, w / 2) from the stages, the deepest of which has (h, w) cells."""
        paths = zip(self.paths, features, strict=True)
        embedding: Tensor = self.group(torch.cat([path(f) for path, f in paths], dim=1))
        return embedding


class ReverseDecoder(nn.Module):
    """Maps with the channels and grids of a backbone's stages, from the deepest to the finest.

    Args:
        inputs: channels of what is decoded, at half the grid of the deepest stage.
        stages: to mirror, the finest first.
        up: how a group's first block doubles the grid.
        counts: blocks of each group, the finest first; those of the stages by default.
    """

    def __init__(
        self, inputs: int, stages: Sequence[Stage], up: Up, counts: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        counts = counts or [s.blocks for s in stages]
        mirrored = [replace(s, blocks=n) for s, n in zip(stages, counts, strict=True)]
        sources = [*(s.channels for s in stages[1:]), inputs]
        self.groups = nn.ModuleList(group(a, s, up) for a, s in zip(sources, mirrored, strict=True))
        initialise(self)

    def forward(
        self, x: Tensor, between: Callable[[int, Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Maps by stage, the finest first.

        Args:
            x: (B, inputs, h, w).
            between: number of a stage and its map to what the next group gets; the map by default.
        """
        maps: list[Tensor] = []
        for level in reversed(range(len(self.groups))):
            x = self.groups[level](x)
            maps.insert(0, x)
            if between and level:
                x = between(level, x)
        return maps


def reverse_pair(stages: Sequence[Stage]) -> tuple[OneClassEmbedding, ReverseDecoder]:
    """RD4AD's embedding and decoder; its groups have as many blocks as the stages in reverse."""
    embedding = OneClassEmbedding(stages)
    counts = [s.blocks for s in reversed(stages)]
    return embedding, ReverseDecoder(embedding.channels, stages, "transposed", counts)
