"""A page a day: what the node did, and whether scans still look like those before."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from normscan.node.drift import streams
from normscan.node.queue import Job
from normscan.node.store import Store

MOST_REASONS = 12


def write_page(store: Store, day: str, path: Path | None = None) -> Path:
    """Write the page of a day (UTC), by default into ``pages`` in the node's folder."""
    from normscan.report.drift import write_drift_page

    path = path or store.folder / "pages" / f"{day}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    jobs = store.queue.jobs("stage = 'end'")
    ended = [job for job in jobs if begin <= job.ended < begin + 86400]
    reasons = Counter(job.reason for job in ended if job.reason and job.outcome != "done")
    return write_drift_page(
        path,
        day=day,
        outcomes={name: sum(job.outcome == name for job in ended)
                  for name in ("done", "refused", "failed")},
        rules=dict(sorted(Counter(part["rule"] for part in _parts(ended)).items())),
        reasons=reasons.most_common(MOST_REASONS),
        streams=[
            {
                "detector": each.detector, "scanner": each.scanner, "scans": each.scans,
                "evidence": each.evidence, "scores": each.scores,
                "since": {test: _date(since) for test, since in each.since.items()},
            }
            for each in streams(store.queue)
        ],
        p_values=[part["p_value"] for part in _parts(jobs) if part["p_value"] is not None],
        alpha=store.config.drift.alpha,
    )  # fmt: skip


def write_due(store: Store) -> Path | None:
    """Write the page of the day that ended, unless it is there."""
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    if (store.folder / "pages" / f"{yesterday}.html").exists():
        return None
    return write_page(store, yesterday)


def today() -> str:
    """Return the day, in UTC as in the audit log."""
    return _date(time.time())


def _parts(jobs: Iterable[Job]) -> list[dict[str, float | str | None]]:
    return [part for job in jobs for part in job.result.get("parts", ())]


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
