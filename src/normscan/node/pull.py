"""Series out of archives: news make it quick, a sweep makes it complete.

An archive's word that a series is complete may be lost (it restarts before it says so), so every
few minutes all series of the last days are held against the queue.
"""

from __future__ import annotations

import logging
import shutil
import time
from typing import Any

from normscan.errors import NormscanError, ScanError
from normscan.node.config import Config, Source
from normscan.node.dicomweb import Archive, Offered, archive
from normscan.node.process import Stop
from normscan.node.receive import admit
from normscan.node.rules import fitting
from normscan.node.store import Store, key_of

log = logging.getLogger("normscan.node")

NEWS_EVERY = 2.0  # s
LONGEST = 300.0  # s between attempts on an archive that is away


def pull(store: Store, stop: Stop) -> None:
    """Ask all sources until told to stop."""
    shutil.rmtree(store.folder / "pulling", ignore_errors=True)
    pullers = [Puller(store, source, archive(source)) for source in store.config.sources]
    while not stop.wait(0.2):
        for puller in pullers:
            puller.turn(stop)


class Puller:
    """Asks one source.

    Args:
        store: of the node.
        source: of the configuration.
        asked: the archive.
    """

    def __init__(self, store: Store, source: Source, asked: Archive) -> None:
        self.store, self.source, self.archive = store, source, asked
        self.seen: dict[str, int] = {}
        self.swept = self.next = float("-inf")
        self.pause = NEWS_EVERY

    def turn(self, stop: Stop) -> None:
        """Ask for news, or sweep, when it is time to; an archive that is away is asked less often."""
        if time.monotonic() < self.next:
            return
        try:
            if time.monotonic() - self.swept > self.source.every:
                self.sweep(stop)
                self.swept = time.monotonic()
            self.news(stop)
            self.pause = NEWS_EVERY
        except NormscanError as error:
            self.pause = min(2 * self.pause, LONGEST)
            log.warning("%s: %s Again in %.0f s.", self.source.name, error, self.pause)
        self.next = time.monotonic() + self.pause

    def news(self, stop: Stop) -> None:
        """Take the series that the archive calls complete; the mark is kept across restarts."""
        mark = int(self.store.queue.tallies().get(("cursor", self.source.name), 0))
        found, new = self.archive.news(mark)
        for series in found:
            if stop:
                return
            if self.wanted(series):
                self.take(series)
        if new != mark:
            self.store.queue.count("cursor", self.source.name, new - mark)

    def sweep(self, stop: Stop) -> None:
        """Take the series that the queue doesn't know, once their number of objects stands still."""
        seen = {}
        for series in self.archive.sweep():
            if stop:
                return
            if not self.wanted(series):
                continue
            seen[series.uid] = series.count
            if self.seen.get(series.uid) == series.count:
                self.take(series)
        self.seen = seen

    def wanted(self, series: Offered) -> bool:
        """Whether a rule may fit, and the queue has less of it."""
        if not any(may_fit(self.store.config, series)):
            return False
        job = self.store.queue.find(key_of(series.uid))
        return job is None or (0 < job.instances < series.count)

    def take(self, series: Offered) -> None:
        """Fetch a series as a whole, then put it into the queue: half a series is none."""
        if not self.store.has_room():
            raise NormscanError("the disk quota is used up.")
        folder = self.store.folder / "pulling" / key_of(series.uid)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        try:
            self.archive.fetch(series, folder)
            for path in sorted(folder.iterdir()):
                try:
                    admit(self.store, path, self.source.name)
                except ScanError:
                    self.store.queue.count("received", "unreadable")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def may_fit(config: Config, series: Offered) -> list[bool]:
    """Return for each rule whether it may fit, by what is known without fetching the series."""
    facts, known = series.facts, []
    for rule in config.rules:
        loose: dict[str, Any] = {} if facts.body_part else {"body_part": []}
        if "\n" not in facts.description:  # the protocol's name isn't told
            loose["description"] = ""
        known.append(bool(fitting([rule.model_copy(update=loose)], facts)))
    return known
