"""How the node is, as Prometheus reads it: from the database, so that no process has to be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from normscan.node.drift import streams
from normscan.node.queue import BUCKETS
from normscan.node.store import Store

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

COUNTERS = {
    "received": ("outcome", "DICOM objects and calls that came"),
    "uploads": ("outcome", "uploads that came"),
    "scored": ("rule", "scans that were scored"),
    "ended": ("outcome", "jobs that ended"),
    "sending": ("outcome", "attempts to send results"),
    "restarted": ("part", "processes that died and were started again"),
}
STATES = ("waiting", "scoring", "sending", "done", "refused", "failed")


class Numbers:
    """Collects the numbers at each request.

    Args:
        store: of the node.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; their labels come from the configuration and fixed words alone."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        queue, tallies = self.store.queue, self.store.queue.tallies()
        jobs = GaugeMetricFamily("normscan_jobs", "jobs by state", labels=["state"])
        counts = queue.counts()
        for state in STATES:
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        for name, (label, text) in COUNTERS.items():
            family = CounterMetricFamily(f"normscan_{name}", text, labels=[label])
            for (known, value), number in tallies.items():
                if known == name:
                    family.add_metric([value], number)
            yield family
        yield self._seconds(tallies)
        gauges: dict[str, tuple[str, Any]] = {
            "bytes": ("of scans and results", queue.size()),
            "quota_bytes": ("that they may take", self.store.config.quota),
            "oldest_seconds": (
                "since the last object of the job that waits longest",
                self._oldest(),
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"normscan_{name}", text, value)

        yield from self._drift()

    def _drift(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        names = ["detector", "scanner"]
        scans = GaugeMetricFamily("normscan_drift_scans", "in the window", labels=names)
        evidence = GaugeMetricFamily(
            "normscan_drift_evidence", "log10 of the evidence of a change", labels=[*names, "test"]
        )
        alarm = GaugeMetricFamily(
            "normscan_drift_alarm", "1 after an alarm", labels=[*names, "test"]
        )
        for stream in streams(self.store.queue):
            scans.add_metric([stream.detector, stream.scanner], stream.scans)
            for test, value in stream.evidence.items():
                labels = [stream.detector, stream.scanner, test]
                evidence.add_metric(labels, value)
                alarm.add_metric(labels, float(test in stream.since))
        yield from (scans, evidence, alarm)

    def _seconds(self, tallies: dict[tuple[str, str], float]) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        found, total = [], 0.0
        for bucket in (*(f"{b:g}" for b in BUCKETS), "+Inf"):
            total += tallies.get(("seconds", bucket), 0)
            found.append((bucket, total))
        text = "from the last object of a job to its end"
        family = HistogramMetricFamily("normscan_seconds", text)
        family.add_metric([], found, tallies.get(("seconds", "sum"), 0))
        return family

    def _oldest(self) -> float:
        row = self.store.queue.db.execute(
            "select min(arrived) from jobs where stage != 'end'"
        ).fetchone()
        return 0.0 if row[0] is None else max(0.0, time.time() - row[0])


def exposition(store: Store) -> tuple[str, str]:
    """Return the metrics as text, and its content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Numbers(store))
    return generate_latest(registry).decode(), CONTENT_TYPE_LATEST
