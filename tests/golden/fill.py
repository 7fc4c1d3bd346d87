"""Equal weights on both sides of a parity check, without a table of names.

Every tensor is filled from its shape alone: what a release calls its layers, and in which order it
declares them, doesn't matter. A record of a release was made with the same rule.

Waves make matrices of rank two, so that little is left of a signal behind many layers, and batch
norms in training mode then blow up what is rounding. Deep networks take ``grain`` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def wave(shape: tuple[int, ...]) -> Tensor:
    """sin(0.7 i + 0.1 n) with i the running index in the tensor and n its number of axes."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7 * index + 0.1 * len(shape)).reshape(shape)


PERIOD = 1_000_003


def grain(shape: tuple[int, ...]) -> Tensor:
    """2 r / 1000003 - 1 with r = (7919 i i + 104729 i) mod 1000003: like noise, but exact."""
    numbers = math.prod(shape)
    index = torch.arange(min(numbers, PERIOD))
    once = 2 * ((7919 * index + 104729) * index % PERIOD).double() / PERIOD - 1
    return once.repeat(-(-numbers // PERIOD))[:numbers].reshape(shape)


RULES: dict[str, Callable[[tuple[int, ...]], Tensor]] = {"wave": wave, "grain": grain}


def images(*shape: int, rule: str = "wave") -> Tensor:
    """Images (B, C, *spatial) with values in 0..1 that single precision holds, float64."""
    return (0.5 + 0.5 * RULES[rule](shape)).float().double()


@torch.no_grad()
def fill(module: nn.Module, rule: str = "wave") -> None:
    """Fill all parameters and the running statistics of normalisations.

    A weight gets ``rule / sqrt(fan_in)`` with ``fan_in`` the numbers of its first row (all of a
    vector's), a normalisation's scale ``1 + 0.1 sin(i)``, a running mean ``0.1 sin(i)`` and a
    running variance ``1 + 0.1 cos(i)``.
    """
    known: dict[tuple[int, ...], Tensor] = {}  # many tensors have the same shape
    for part in module.modules():
        norm = "Norm" in type(part).__name__
        for name, parameter in part.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            if norm and name in ("weight", "gamma"):
                index = torch.arange(parameter.numel(), dtype=torch.float64).reshape(shape)
                value = 1 + 0.1 * torch.sin(index)
            else:
                fan_in = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
                if shape not in known:
                    known[shape] = RULES[rule](shape) / math.sqrt(max(1, fan_in))
                value = known[shape]
            parameter.copy_(value)
        for name, turn in (("running_mean", torch.sin), ("running_var", torch.cos)):
            buffer = getattr(part, name, None)
            if isinstance(buffer, Tensor):
                index = torch.arange(buffer.numel(), dtype=torch.float64)
                buffer.copy_((name == "running_var") + 0.1 * turn(index))
