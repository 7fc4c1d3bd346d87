"""Benchmarks: protocols of the literature as data, a runner that resumes, and a ranked table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.benchmark.protocol import Protocol as Protocol
    from normscan.benchmark.protocol import load as load
    from normscan.benchmark.protocol import protocols as protocols
    from normscan.benchmark.runner import run as run

__all__ = ["Protocol", "load", "protocols", "run"]

__getattr__ = lazily(
    __name__,
    {"Protocol": "protocol", "load": "protocol", "protocols": "protocol", "run": "runner"},
)
