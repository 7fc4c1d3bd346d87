"""Training at several sites whose scans stay where they are, on Flower.

Everything is loaded at the first use of a name: Flower is an extra, ``normscan[federated]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscan.federated.run import Federation as Federation
    from normscan.federated.run import federate as federate

__all__ = ["Federation", "federate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'normscan.federated' has no attribute '{name}'")
    from normscan.federated import run

    return getattr(run, name)
