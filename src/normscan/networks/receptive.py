"""How far a cell of a feature map sees, and a map enlarged by what its cells have seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Field(NamedTuple):
    """The receptive field of the cells of a layer.

    Attributes:
        extent: pixels that a cell sees along an axis.
        jump: pixels between two cells.
        start: place of the first cell's middle, from that of the first pixel.
    """

    extent: int = 1
    jump: int = 1
    start: float = 0.0


def field_of(layers: Iterable[nn.Module]) -> Field:
    """The field behind convolutions and poolings, one after the other; other layers see a cell each."""
    extent, jump, start = Field()
    for layer in layers:
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            continue
        kernel, stride, padding = (
            v if isinstance(v, int) else int(v[0])
            for v in (layer.kernel_size, layer.stride, layer.padding)
        )
        start += ((kernel - 1) / 2 - padding) * jump
        extent, jump = extent + (kernel - 1) * jump, jump * stride
    return Field(extent, jump, start)


def bell(length: int, deviation: float) -> Tensor:
    """A Gaussian whose peak is 1; of even length it has two in the middle, and all is halved."""
    places = torch.arange(length - 1 + length % 2, dtype=torch.float64)
    values = torch.exp(-0.5 * ((places - (len(places) - 1) / 2) / deviation).square())
    if length % 2:
        return values
    middle = len(values) // 2
    return torch.cat([values[: middle + 1], values[middle:]]) / 2


def enlarged(cells: Tensor, field: Field, size: tuple[int, int], deviation: float) -> Tensor:
    """Each cell as a Gaussian over what it has seen, summed (Liznerski et al. 2021).

    Args:
        cells: (B, 1, h, w).
        field: of these.
        size: pixels of the image.
        deviation: in pixels.

    Returns:
        (B, 1, *size).
    """
    line = bell(field.extent, deviation).to(cells)
    kernel = torch.outer(line, line)[None, None]
    whole = F.conv_transpose2d(cells, kernel, stride=field.jump)
    first = (field.extent - 1) // 2 - int(field.start)
    height, width = size
    missing = [max(0, first + n - m) for n, m in zip(size, whole.shape[2:], strict=True)]
    whole = F.pad(whole, (0, missing[1], 0, missing[0]))
    return whole[..., first : first + height, first : first + width]
