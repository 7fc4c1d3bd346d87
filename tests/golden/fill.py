"""Equal weights on both sides of a parity check, without a table of names.

Every tensor is filled from its shape alone: what a release calls its layers, and in which order it
declares them, doesn't matter. A record of a release was made with the same rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def wave(shape: tuple[int, ...]) -> Tensor:
    """sin(0.7 i + 0.1 n) with i the running index in the tensor and n its number of axes."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7 * index + 0.1 * len(shape)).reshape(shape)


def images(*shape: int) -> Tensor:
    """Images (B, C, *spatial) with values in 0..1 that single precision holds, float64."""
    return (0.5 + 0.5 * wave(shape)).float().double()


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Fill all parameters and the running statistics of normalisations.

    A weight gets ``wave / sqrt(fan_in)`` with ``fan_in`` the numbers of its first row (all of a
    vector's), a normalisation's scale ``1 + 0.1 sin(i)``, a running mean ``0.1 sin(i)`` and a
    running variance ``1 + 0.1 cos(i)``.
    """
    for part in module.modules():
        norm = "Norm" in type(part).__name__
        for name, parameter in part.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            if norm and name in ("weight", "gamma"):
                index = torch.arange(parameter.numel(), dtype=torch.float64).reshape(shape)
                value = 1 + 0.1 * torch.sin(index)
            else:
                fan_in = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
                value = wave(shape) / math.sqrt(max(1, fan_in))
            parameter.copy_(value)
        for name, turn in (("running_mean", torch.sin), ("running_var", torch.cos)):
            buffer = getattr(part, name, None)
            if isinstance(buffer, Tensor):
                index = torch.arange(buffer.numel(), dtype=torch.float64)
                buffer.copy_((name == "running_var") + 0.1 * turn(index))
