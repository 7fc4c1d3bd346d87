"""Benchmarks: protocols of the literature as data, a runner that resumes, and a ranked table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscan.benchmark.protocol import Protocol as Protocol
    from normscan.benchmark.protocol import load as load
    from normscan.benchmark.protocol import protocols as protocols
    from normscan.benchmark.runner import run as run

_LAZY = {"Protocol": "protocol", "load": "protocol", "protocols": "protocol", "run": "runner"}
__all__ = ["Protocol", "load", "protocols", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'normscan.benchmark' has no attribute '{name}'")
    return getattr(import_module(f"normscan.benchmark.{_LAZY[name]}"), name)
