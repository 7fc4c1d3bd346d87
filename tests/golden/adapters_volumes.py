"""What the records of systems on volumes compare beside maps, losses and parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.golden.fill import grain
from tests.golden.records import Check

SHAPE = (256, 2048, 4, 4)


class Told(nn.Module):
    """What a network would say of the 128 slices of two volumes, in its stead."""

    strides = (1,)

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"layer4": self.features}


def _both(method: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Slices' features, those of changed volumes being the same channels backwards; deepest ones."""
    return grain(SHAPE), torch.zeros(2, 1, 128, 4, 4), grain((2, 512, 4, 4, 4))


def told_by_slices(method: Any, check: Check) -> Tensor:
    features, volumes, deep = _both(method)
    method.slices = Told(features)
    told: Tensor = method.told_by_slices(volumes, deep)
    return told


def agreement(method: Any, check: Check) -> Tensor:
    """With 20 as the price of misses."""
    features, volumes, deep = _both(method)
    method.train().miss.fill_(20)
    told = iter((features, features.flip(1)))
    method.told_by_slices = lambda volumes, like: type(method).told_by_slices(
        _with(method, next(told)), volumes, like
    )
    terms: dict[str, Tensor] = method.further(volumes, volumes, deep, deep.flip(1))
    return terms["agreement"].detach().reshape(1)


def _with(method: Any, features: Tensor) -> Any:
    method.slices = Told(features)
    return method
