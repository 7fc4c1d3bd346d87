"""The U-Net of guided diffusion and its encoding half (Dhariwal and Nichol 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import layer


@dataclass(frozen=True)
class Layout:
    """What distinguishes one U-Net of this kind from another.

    Attributes:
        width: channels of the first level.
        multipliers: of the width, one per level.
        blocks: residual blocks in a level.
        attention: levels with attention, counted from 0; the middle always has it.
        heads: of an attention layer.
        head_width: channels of a head, instead of ``heads``.
        attention_up: levels with attention on the way up, where they are others.
        scale_shift: the step scales and shifts the normalised features, else it is added.
        resample: inside residual blocks, or by a strided convolution and an enlargement.
        dropout: share of the features that are dropped in training.
        classes: of the image, told beside the step; 0 for none.
        groups: of a normalisation, at most the width.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...] = ()
    heads: int = 1
    head_width: int | None = None
    attention_up: tuple[int, ...] | None = None
    scale_shift: bool = True
    resample: Literal["residual", "conv"] = "residual"
    dropout: float = 0.0
    classes: int = 0
    groups: int = 32

    @property
    def multiple(self) -> int:
        """Of which the network takes sides."""
        return int(2 ** (len(self.multipliers) - 1))


def attended(cells: Sequence[int], size: int, levels: int) -> tuple[int, ...]:
    """The levels whose grid has so many cells along an axis."""
    return tuple(i for i in range(levels) if size // 2**i in cells)


def step_code(t: Tensor, width: int) -> Tensor:
    """Cosines and sines of the steps (B,), (B, width)."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].to(torch.get_default_dtype()) * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Two convolutions around what the step says, and a way past them."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, layout: Layout,
        way: Literal["up", "down"] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scale_shift, self.way, self.dims = layout.scale_shift, way, dims
        groups = min(layout.groups, layout.width)
        self.norm_in = nn.GroupNorm(groups, inputs)
        self.conv_in = layer("conv", dims, inputs, outputs, 3, padding=1)
        told = outputs * (2 if layout.scale_shift else 1)
        self.step = nn.Linear(4 * layout.width, told)
        self.norm_out = nn.GroupNorm(groups, outputs)
        self.drop = nn.Dropout(layout.dropout)
        self.conv_out = _zero(layer("conv", dims, outputs, outputs, 3, padding=1))
        same = inputs == outputs
        self.past = nn.Identity() if same else layer("conv", dims, inputs, outputs, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.way == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.way == "down":
            return F.avg_pool2d(x, 2) if self.dims == 2 else F.avg_pool3d(x, 2)
        return x

    def forward(self, x: Tensor, step: Tensor | None) -> Tensor:
        h = self.conv_in(self.resampled(F.silu(self.norm_in(x))))
        past: Tensor = self.past(self.resampled(x))
        if step is None:
            return past + self.conv_out(self.drop(F.silu(self.norm_out(h))))
        told = self.step(F.silu(step))
        told = told.reshape(*told.shape, *[1] * self.dims)
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + told)
        return past + self.conv_out(self.drop(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over all cells."""

    def __init__(self, channels: int, layout: Layout) -> None:
        super().__init__()
        self.heads = channels // layout.head_width if layout.head_width else layout.heads
        self.norm = nn.GroupNorm(min(layout.groups, layout.width), channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, step: Tensor | None) -> Tensor:
        flat = x.flatten(2)
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).transpose(2, 3)
            for part in self.qkv(self.norm(flat)).chunk(3, dim=1)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        return (flat + self.out(seen)).reshape(x.shape)


class Resample(nn.Module):
    """A strided convolution, or an enlargement and a convolution."""

    def __init__(self, dims: int, channels: int, way: Literal["up", "down"]) -> None:
        super().__init__()
        self.way = way
        stride = 2 if way == "down" else 1
        self.conv = layer("conv", dims, channels, channels, 3, padding=1, stride=stride)

    def forward(self, x: Tensor, step: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.way == "up" else x
        result: Tensor = self.conv(x)
        return result


class Stack(nn.Sequential):
    """Layers in a row that are all told the step."""

    def forward(self, x: Tensor, step: Tensor | None) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, step)
        return x


class GuidedEncoder(nn.Module):
    """The way down, and the middle.

    Args:
        dims: spatial axes, 2 or 3.
        inputs: channels of the image.
        layout: of the network.
    """

    def __init__(self, dims: int, inputs: int, layout: Layout) -> None:
        super().__init__()
        self.layout, width = layout, layout.width
        self.embed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )
        if layout.classes:
            self.label = nn.Embedding(layout.classes, 4 * width)
        self.first: Any = layer("conv", dims, inputs, width, 3, padding=1)
        self.down = nn.ModuleList()
        self.kept = [width]
        channels = width
        for level, multiplier in enumerate(layout.multipliers):
            for _ in range(layout.blocks):
                part = Stack(ResidualBlock(dims, channels, width * multiplier, layout))
                channels = width * multiplier
                if level in layout.attention:
                    part.append(Attention(channels, layout))
                self.down.append(part)
                self.kept.append(channels)
            if level < len(layout.multipliers) - 1:
                self.down.append(Stack(self._resample(dims, channels, "down")))
                self.kept.append(channels)
        self.middle = Stack(
            ResidualBlock(dims, channels, channels, layout),
            Attention(channels, layout),
            ResidualBlock(dims, channels, channels, layout),
        )
        self.channels = channels

    def _resample(self, dims: int, channels: int, way: Literal["up", "down"]) -> nn.Module:
        if self.layout.resample == "conv":
            return Resample(dims, channels, way)
        return ResidualBlock(dims, channels, channels, self.layout, way)

    def told(self, t: Tensor | None, label: Tensor | None) -> Tensor | None:
        """What the blocks are told of the steps (B,) and the classes (B,); nothing without steps."""
        if t is None:
            return None
        step: Tensor = self.embed(step_code(t, self.layout.width).to(self.first.weight.dtype))
        return step if label is None else step + self.label(label)

    def encoded(self, x: Tensor, step: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Features of the middle, and those that stand beside the way up."""
        x = self.first(x)
        kept = [x]
        for part in self.down:
            x = part(x, step)
            kept.append(x)
        return self.middle(x, step), kept


class GuidedUNet(GuidedEncoder):
    """U-Net whose blocks are told the step, (B, inputs, *spatial) to (B, outputs, *spatial).

    Args:
        dims: spatial axes, 2 or 3.
        inputs: channels of the image and of what is given beside it.
        outputs: channels of what it says.
        layout: of the network.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, layout: Layout) -> None:
        super().__init__(dims, inputs, layout)
        self.up = nn.ModuleList()
        kept, channels = list(self.kept), self.channels
        seen = layout.attention if layout.attention_up is None else layout.attention_up
        for level, multiplier in reversed(list(enumerate(layout.multipliers))):
            for i in range(layout.blocks + 1):
                part = Stack(
                    ResidualBlock(dims, channels + kept.pop(), layout.width * multiplier, layout)
                )
                channels = layout.width * multiplier
                if level in seen:
                    part.append(Attention(channels, layout))
                if level and i == layout.blocks:
                    part.append(self._resample(dims, channels, "up"))
                self.up.append(part)
        self.norm = nn.GroupNorm(min(layout.groups, layout.width), channels)
        self.last = _zero(layer("conv", dims, channels, outputs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        step = self.told(t, label)
        x, kept = self.encoded(x, step)
        for part in self.up:
            x = part(torch.cat([x, kept.pop()], dim=1), step)
        result: Tensor = self.last(F.silu(self.norm(x)))
        return result
