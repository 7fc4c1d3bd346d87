"""How many samples a closed form was fitted to, so that further ones can join."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError


class Counted(nn.Module):
    """A module with the buffer ``count``, which detectors of earlier versions were stored without.

    It is one number, or one for each fold that is left out.
    """

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        state_dict.setdefault(f"{prefix}count", torch.zeros((), dtype=torch.long))
        super()._load_from_state_dict(state_dict, prefix, *others, **named)

    def counted(self) -> Tensor:
        """The number of samples (K,), one for each fold that is left out, else a single one.

        Raises:
            ArgumentError: nobody knows it.
        """
        if not bool(self.count.all()):
            raise ArgumentError(
                "this detector doesn't say how many images it was fitted to: an earlier version "
                "stored it. Fit it anew."
            )
        return self.count.reshape(-1)
