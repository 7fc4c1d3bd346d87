"""How many samples a closed form was fitted to, so that further ones can join."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError

APART = (
    "a detector that all healthy scans calibrate holds a fit without each fold, which can't be merged. "
    "Fit with --calibration split, or with --refit."
)


def told(count: Tensor) -> list[int]:
    """Return the numbers of samples that ``Counted`` keeps.

    Raises:
        ArgumentError: nobody knows them.
    """
    if not count.all():
        raise ArgumentError(
            "this detector doesn't say how many images it was fitted to: an earlier version stored it. "
            "Fit it anew."
        )
    return [int(n) for n in count]


class Counted(nn.Module):
    """A module with the buffer ``count``, which detectors of earlier versions were stored without.

    It holds a number for each member: one, or after ``fit_folds`` one without each fold.
    """

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        state_dict.setdefault(f"{prefix}count", torch.zeros(1, dtype=torch.long))
        super()._load_from_state_dict(state_dict, prefix, *others, **named)

    def counted(self) -> list[int]:
        """The number of samples of each member.

        Raises:
            ArgumentError: nobody knows it.
        """
        return told(self.count)

    def count_as(self, *numbers: int) -> None:
        """Keep the number of samples of each member."""
        self.count = torch.tensor(numbers)
