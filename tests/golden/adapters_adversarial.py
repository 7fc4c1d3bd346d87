"""What the records of the adversarial systems compare beside parameters, maps and scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.golden.records import Check, batch_of


class Falling:
    """Stands for ``Rng``: uniform numbers fall from 0.9 to 0.1 over the batch."""

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        falling = torch.linspace(0.9, 0.1, shape[0], dtype=torch.float64)
        return falling.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def labelled_loss(method: Any, check: Check) -> Tensor:
    """The loss of four images, the first and the last one healthy."""
    label = torch.tensor([0, 1, 1, 0])
    batch = replace(batch_of(check), rng=Falling(), label=label)  # type: ignore[arg-type]
    terms = method.train().loss(batch, check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)
