"""Optimisers and rhythms beyond Adam, as builders for ``Player``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def stable_adamw(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-4, eps: float = 1e-10,
) -> torch.optim.Optimizer:  # fmt: skip
    """Return StableAdamW with AMSGrad, as Dinomaly trains with.

    AdamW whose step is divided by the root mean square of gradient over denominator in a tensor,
    where that is above 1 (update clipping; Wortsman et al., NeurIPS 2023).

    Args:
        parameters: that it trains.
        lr: learning rate.
        betas: both momenta.
        weight_decay: decoupled; not clipped.
        eps: added to the denominator.
    """
    from normscan.networks.backbones import import_timm

    import_timm()
    from timm.optim import AdamWLegacy

    optimizer: torch.optim.Optimizer = AdamWLegacy(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=True,
        clipping_threshold=1.0,
    )  # fmt: skip
    return optimizer


def adamw_with(module: nn.Module, **changes: float) -> Callable[..., torch.optim.AdamW]:
    """Return a form of AdamW that trains one of the modules with options of its own.

    Args:
        module: such as an encoder that learns slowly.
        **changes: of its options.
    """
    mine = {id(p) for p in module.parameters()}

    def build(parameters: Iterable[nn.Parameter], **options: Any) -> torch.optim.AdamW:
        known = list(parameters)
        own: dict[str, Any] = {"params": [p for p in known if id(p) in mine], **changes}
        rest: dict[str, Any] = {"params": [p for p in known if id(p) not in mine]}
        return torch.optim.AdamW([own, rest], **options)

    return build


def nesterov(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:  # fmt: skip
    """Return SGD with Nesterov's momentum, the first of two that Adam takes."""
    return torch.optim.SGD(
        parameters, lr=lr, momentum=betas[0], weight_decay=weight_decay, nesterov=True
    )


def warm_cosine(
    warm: int = 100, last: float = 0.1, share: float = 0.1
) -> Callable[[int, int], float]:
    """Return a schedule that rises linearly and falls as a cosine.

    Args:
        warm: steps of the rise.
        last: factor at the end.
        share: of all steps that the rise takes at most.
    """

    def factor(step: int, steps: int) -> float:
        rise = max(1, min(warm, round(share * steps)))
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2

    return factor


def dropped(at: float = 0.8, factor: float = 0.1) -> Callable[[int, int], float]:
    """Return a schedule that multiplies the rate by a factor behind a share of the steps."""
    return lambda step, steps: 1.0 if step < at * steps else factor


def stairs(floors: int, factor: float = 0.1, ahead: float = 0.0) -> Callable[[int, int], float]:
    """Return a schedule that multiplies the rate by a factor behind each of so many equal parts.

    Args:
        floors: parts.
        factor: of each step down.
        ahead: share of all steps by which each comes early.
    """
    return lambda step, steps: factor ** int(floors * (step / steps + ahead) + 1e-9)


def still(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimiser that changes nothing, for a phase that only looks."""
    return torch.optim.SGD(parameters, lr=0.0)
