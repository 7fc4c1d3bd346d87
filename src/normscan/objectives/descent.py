"""Moving images down an energy, all images of a batch at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normscan.objectives.gradients import input_gradient
from normscan.progress import steps_of


def total_variation(x: Tensor, corner: float = 0.0) -> Tensor:
    """Sum of |dx| over neighbours along each axis and over the channels, (B,).

    Args:
        x: (B, C, *spatial).
        corner: differences below it have a slope in proportion, sqrt(dx^2 + corner^2) - corner, so
            that rounding has none.
    """
    steps = [x.diff(dim=axis) for axis in range(2, x.ndim)]
    if corner:
        steps = [(d.square() + corner**2).sqrt() - corner for d in steps]
    return torch.stack([d.abs().flatten(1).sum(1) for d in steps]).sum(0)


def searched(
    error: Callable[[Tensor], Tensor],
    code: Tensor,
    steps: int,
    optimizer: Callable[..., torch.optim.Optimizer],
) -> Tensor:
    """Codes (B, n) after so many steps of an optimiser, each moved by its own slope alone.

    Args:
        error: codes to (B,), each from its own code alone.
        code: (B, n) where they begin.
        steps: how many.
        optimizer: builds the rule of a step; each number must be moved by its own slopes alone.
    """
    moving = code.detach().clone()
    rule = optimizer([moving])
    for _ in steps_of("finding the code", steps):
        _, moving.grad = input_gradient(error, moving)
        rule.step()
    return moving


@dataclass(frozen=True)
class Descent:
    """How images are moved.

    Attributes:
        steps: number of them.
        rates: of the first steps and of the others.
        first_steps: how many are the first.
        limit: to which each pixel's slope is cut.
        optimizer: the rule of a step; each pixel must be moved by its own slopes alone.
    """

    steps: int
    rates: tuple[float, float]
    first_steps: int = 100
    limit: float = float("inf")
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD

    def __call__(
        self, energy: Callable[[Tensor], Tensor], x: Tensor, where: Tensor, **options: Any
    ) -> Tensor:
        """Return the images (B, C, *spatial) after all steps.

        Args:
            energy: images to (B,), each from its own image alone.
            x: (B, C, *spatial) where they begin.
            where: (B, 1, *spatial) bool, the pixels that may move.
            **options: of the optimiser.
        """
        moving = x.detach().clone()
        rule = self.optimizer([moving], lr=self.rates[0], **options)
        for step in steps_of("restoring", self.steps):
            _, slope = input_gradient(energy, moving)
            moving.grad = slope.clamp(-self.limit, self.limit) * where
            rule.param_groups[0]["lr"] = self.rates[step >= self.first_steps]
            rule.step()
        return moving.detach()
