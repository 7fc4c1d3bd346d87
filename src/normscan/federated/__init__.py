"""Training at several sites whose scans stay where they are, on Flower.

Everything is loaded at the first use of a name: Flower is an extra, ``normscan[federated]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.federated.run import Federation as Federation
    from normscan.federated.run import federate as federate

__all__ = ["Federation", "federate"]

__getattr__ = lazily(__name__, {"Federation": "run", "federate": "run"})
