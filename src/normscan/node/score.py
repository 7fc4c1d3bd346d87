"""The scoring process: from a job's files to its results, in a process that may die."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.dicom import refusal, write_dicom
from normscan.dicom.superseding import report_uids, supersede
from normscan.errors import NormscanError, OutputError, ScanError
from normscan.io.dicom import SeriesInfo, find_series
from normscan.io.dicom.header import bare, clean
from normscan.io.dicom.source import find_sources, read_header
from normscan.node.config import Rule
from normscan.node.drift import DriftWatch
from normscan.node.process import Stop
from normscan.node.queue import PAUSES, TRIES, Job, LeaseLostError, NotYetError, holder
from normscan.node.rules import Facts, fitting
from normscan.node.store import Store
from normscan.node.whole import missing

if TYPE_CHECKING:
    from normscan.detector import Detector, Finding

log = logging.getLogger("normscan.node")
IDLE = 0.2
PACKED = (".dcm", ".zip")  # uploads that hold DICOM
DIED = f"the process that scored it died {TRIES} times: too little memory, or a fault of a decoder"


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        parts: what is told of each scan in it that was scored.
        refused: why others weren't.
    """

    parts: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """``done`` where anything was scored, else ``refused``."""
        return "done" if self.parts else "refused"

    @property
    def reason(self) -> str:
        """All reasons."""
        return " ".join(dict.fromkeys(self.refused))


def work(store: Store, stop: Stop) -> None:
    """Score what is due until told to stop."""
    from normscan.parallel import use_threads

    use_threads(store.config.threads)
    scorer = Scorer(store)
    for rule in store.config.rules:  # what is wrong with a detector shows before a scan comes
        scorer.detector(rule.detector)
    name = holder("score")
    log.info("scoring with %d rules", len(store.config.rules))
    while not stop:
        job = store.queue.claim("score", name)
        store.queue.beat("score")
        if job is None:
            stop.wait(IDLE)
        else:
            scorer.take(job)


class Scorer:
    """Scores jobs with the detectors of the rules.

    Args:
        store: of the node.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.config, self.queue = store, store.config, store.queue
        self.detector = cache(self._load)

    def _load(self, folder: Path) -> Detector:
        from normscan.detector import load

        return load(folder, self.config.device, trusted=self.config.trusted or None)

    def take(self, job: Job) -> None:
        """Bring a claimed job to its results, give it back for another try, or fail it."""
        if job.tries > TRIES:
            self._fail(job, job.reason or DIED)
            return
        try:
            with self.queue.held(job), self.store.making(job) as folder:
                outcome = self.outcome(job, folder)
                self._publish(job, outcome, folder)
        except LeaseLostError:
            log.warning("job %s was taken over by another process", job.key)
        except NotYetError as error:
            log.info("job %s: images are missing, it waits for %.0f s", job.key, error.wait)
            self.queue.later(job, error.wait, tried=False)
        except Exception as error:
            # Words of others than ours may hold values of a header.
            told = str(error) if isinstance(error, NormscanError) else type(error).__name__
            log.error("job %s, try %d: %s", job.key, job.tries, told)
            if job.tries >= TRIES:
                self._fail(job, told)
            else:
                self.queue.later(job, PAUSES[job.tries - 1])

    def _publish(self, job: Job, outcome: Outcome, folder: Path) -> None:
        made = self._supersede(job, folder)
        told = {"parts": outcome.parts, "refused": outcome.refused, "made": made}
        sent = self.config.destinations and any(folder.glob("*.dcm"))
        stage = "send" if sent and job.kind == "series" else "end"
        with self.queue.transaction():
            # The results move within the transaction: who lost the lease moves none.
            moved = self.queue.advance_within(
                job, stage, outcome=outcome.name, reason=outcome.reason, result=told,
                scored=time.time(), bytes=job.bytes,
            )  # fmt: skip
            if not moved:
                return
            size = self.store.publish(folder, job)
            self.queue.db.execute("update jobs set bytes = bytes + ? where id = ?", (size, job.id))
            self._count(outcome, job, stage)
            drifted = self._watch(outcome, job)
            # Rather twice in the audit log, after a death at this point, than never.
            for sentence in drifted:
                self.store.note("drift", job.key, said=sentence)
            self.store.note("scored", job.key, source=job.source, outcome=outcome.name,
                            tries=job.tries, reason=outcome.reason, parts=outcome.parts)  # fmt: skip
        for sentence in drifted:
            log.warning(sentence)
        log.info("job %s: %s %s", job.key, outcome.name, outcome.reason)

    def _supersede(self, job: Job, folder: Path) -> list[dict[str, Any]]:
        """Let results name those that they replace; return what was made of the job so far.

        UIDs follow from the images, so what is made of the same images is the same and replaces
        nothing.
        """
        files = sorted(folder.glob("*.dcm"))
        reports = [uids for uids in map(report_uids, files) if uids]
        before = [one for one in job.result.get("made", []) if one["reports"] != reports]
        if not reports:
            return before
        if before:
            said = (
                f"Result {len(before) + 1} of this series, of all {job.instances} objects that came. "
                f"It replaces the one before, which was of {before[-1]['objects']}."
            )
            earlier = [uids for one in before for uids in one["reports"]]
            supersede(files, earlier, len(before) + 1, said)
        return [*before, {"objects": job.instances, "reports": reports}]

    def _count(self, outcome: Outcome, job: Job, stage: str) -> None:
        for part in outcome.parts:
            self.queue.count("scored", part["rule"])
        if stage == "end":
            self.queue.count_end(job, outcome.name)

    def _watch(self, outcome: Outcome, job: Job) -> list[str]:
        """Hold the scores of new scans against those before; a scan counts once."""
        if job.scored:
            return []
        watch = DriftWatch(self.queue, self.config.drift)
        rules = {rule.name: rule for rule in self.config.rules}
        said = []
        for part in outcome.parts:
            threshold = self.detector(rules[part["rule"]].detector).scan_threshold
            healthy = [] if threshold is None else threshold.scores.tolist()
            said += watch.take(job, part, healthy)
        return said

    def _fail(self, job: Job, reason: str) -> None:
        with suppress(LeaseLostError), self.queue.transaction():
            if self.queue.advance_within(job, "end", outcome="failed", reason=reason):
                self.queue.count_end(job, "failed")
                self.store.note("failed", job.key, source=job.source, tries=TRIES, reason=reason)
                log.error("job %s failed: %s", job.key, reason)

    # --------------------------------------------------------------------- one job

    def outcome(self, job: Job, folder: Path) -> Outcome:
        """Score what can be scored of a job; write the results into a folder."""
        place, outcome = self.store.scan(job.key), Outcome()
        if job.kind == "upload":
            place = next(place.iterdir())
            if place.suffix not in PACKED:
                self._scan(place, str(place), "scan", None, folder, outcome)
                return outcome
        try:
            self._check_size(place)
            found = find_series(place)
        except ScanError as error:
            outcome.refused.append(_plain(error, place))
            return outcome
        pulled = {source.name for source in self.config.sources}
        if job.kind == "series" and job.source not in pulled:  # an archive knows what it has
            self._wait_for_all(job, found)
        for info in found:
            if info.usable:
                address = f"{place}#series={info.address}"
                self._scan(place, address, info.name, Facts.of(info), folder, outcome)
            else:
                outcome.refused.append(f"Left out: {info.reason}.")
        if not outcome.parts and self.config.refusals == "report":
            self._report(found, outcome, folder)
        return outcome

    def _wait_for_all(self, job: Job, found: list[SeriesInfo]) -> None:
        """Give a series back of which more is to be expected, as long as there is patience."""
        wait = job.arrived + self.config.patience - time.time()
        if wait > 0 and missing(found):
            raise NotYetError(wait)

    def _check_size(self, place: Path) -> None:
        """Refuse an archive that unpacks to more than the memory is meant for."""
        if self.config.web is None or place.suffix != ".zip":
            return
        unpacked = sum(source.size for source in find_sources(place))
        if unpacked > self.config.web.unpacked_mb * 1e6:
            raise ScanError(
                f"the archive unpacks to {unpacked / 1e6:.0f} MB; at most "
                f"{self.config.web.unpacked_mb:g} MB are allowed (unpacked_mb)."
            )

    def _scan(
        self, place: Path, address: str, name: str, facts: Facts | None, folder: Path,
        outcome: Outcome,
    ) -> None:  # fmt: skip
        """Score a scan by the first rule that fits and whose detector takes it.

        What comes without a header says nothing that rules look at: the quality gates alone decide.
        """
        rules = self.config.rules if facts is None else fitting(self.config.rules, facts)
        if not rules:
            outcome.refused.append("No rule fits its modality, description and body part.")
        reasons = []
        for rule in rules:
            try:
                finding = self.detector(rule.detector).predict(address)
            except ScanError as error:
                reasons.append(f"{rule.name}: {_plain(error, place)}")
                continue
            upload = place.is_file()
            finding.save(folder, name, overlay=upload, formats=self._formats(finding, upload))
            scanner = "" if facts is None else facts.scanner
            scanner = self.config.scanners.get(scanner, scanner)
            outcome.parts.append(told_of(finding, rule, name, scanner))
            return
        outcome.refused += reasons

    def _formats(self, finding: Finding, upload: bool) -> list[str]:
        formats = ["nifti", "pdf"] if upload else []
        if finding.scan.series is not None:
            formats.append("dicom" if self.config.map == "float32" else "dicom-uint16")
            formats += ["dicom-labelmap"] * (self.config.segments == "labelmap")
            formats += ["dicom-pdf"] * self.config.page
        return formats

    def _report(self, found: list[SeriesInfo], outcome: Outcome, folder: Path) -> None:
        """Write the report of a refusal; headers that are too broken for one are no failure."""
        sources = {plane.file.source: None for info in found for plane in info.planes}
        headers = clean([bare(read_header(source)[0]) for source in sources])
        try:
            write_dicom(folder, "refused", refusal(headers, outcome.reason))
        except OutputError as error:
            log.warning("no report of a refusal: %s", error)


def told_of(finding: Finding, rule: Rule, name: str, scanner: str) -> dict[str, Any]:
    """Return what the queue and the audit log keep of a finding."""
    return {
        "name": name,
        "rule": rule.name,
        "detector": str(finding.provenance.get("detector_sha256", ""))[:16],
        "scanner": scanner,
        "score": finding.score,
        "p_value": finding.p_value,
        "anomalous": finding.anomalous,
        "quality": None if finding.quality is None else finding.quality.status,
        "components": len(finding.components()),
        "seconds": round(finding.seconds, 3),
    }


def _plain(error: ScanError, place: Path) -> str:
    """Return the message without the node's folders and what only a command line has."""
    said = str(error).replace(str(place), "the series").replace(place.name, "the series")
    return said.partition(" Use force (--force)")[0]
