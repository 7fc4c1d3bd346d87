"""What may stand beside a scan, and how a method uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Use:
    """How a method uses what stands beside a scan, such as its ``target``.

    Attributes:
        parts: parts of the cohort whose scans must have it, see ``Phase.part``.
        prediction: a scan without it is refused (``needed``) or predicted without it (``welcome``);
            ``unused``: it is not even read.
    """

    parts: tuple[str, ...] = ("healthy", "val")
    prediction: Literal["needed", "welcome", "unused"] = "unused"

    @property
    def at_prediction(self) -> bool:
        """Whether it is read at prediction."""
        return self.prediction != "unused"
