"""Methods that have no graph, and why: the one place that says so."""

from __future__ import annotations

REASONS: dict[str, str] = {}
