"""Results back to the archives by C-STORE, again and again until they are taken."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from normscan.errors import NormscanError
from normscan.node.config import Destination, Stow
from normscan.node.daily import write_due
from normscan.node.process import Stop
from normscan.node.queue import Job, LeaseLostError, holder
from normscan.node.store import Store

log = logging.getLogger("normscan.node")

LONGEST = 600.0  # s between two attempts
PURGE_EVERY = 600.0
TAKEN = {0x0000, 0xB000, 0xB006, 0xB007}  # success, and warnings of an object that was kept


def deliver(store: Store, stop: Stop) -> None:
    """Send what is due, and delete what is old, until told to stop."""
    name = holder("send")
    purged = float("-inf")
    while not stop:
        if time.monotonic() - purged > PURGE_EVERY:
            store.purge(store.config.retention)
            _page(store)
            purged = time.monotonic()
        job = store.queue.claim("send", name)
        if job is None:
            stop.wait(0.2)
            continue
        with store.queue.held(job):
            take(store, job)


def _page(store: Store) -> None:
    """Write the page of the day that ended; one that can't be written stops no result."""
    try:
        write_due(store)
    except Exception as error:
        log.error("the page of the day can't be written: %s", type(error).__name__)


def take(node: Store, job: Job) -> None:
    """Send the results of a claimed job; where an archive doesn't take them, give it back."""
    queue, config = node.queue, node.config
    try:
        for destination in config.destinations:
            send(sorted(node.results(job.key).glob("*.dcm")), destination)
    except NormscanError as error:
        queue.count("sending", "failed")
        if time.time() - job.scored > config.give_up:
            reason = f"no archive took the results in {config.give_up / 3600:.3g} hours: {error}"
            _end(node, job, "failed", reason)
            return
        wait = backoff(job.tries)
        log.warning("job %s: %s Again in %.0f s.", job.key, error, wait)
        queue.later(job, wait)
        return
    queue.count("sending", "taken")
    _end(node, job, job.outcome, job.reason)


def _end(store: Store, job: Job, outcome: str, reason: str) -> None:
    waited = time.time() - job.arrived
    try:
        store.queue.advance(job, "end", outcome=outcome, reason=reason)
    except LeaseLostError:
        return  # sent twice, but the archive has it once: the UIDs are the same
    store.queue.count_end(job, outcome)
    facts: dict[str, Any] = {"outcome": outcome, "seconds": round(waited, 3)}
    store.note("sent" if outcome != "failed" else "failed", job.key, **facts)


def backoff(tries: int) -> float:
    """Return the s to wait after so many attempts: 1, 2, 4, ... up to ten minutes."""
    return float(min(2.0 ** (max(tries, 1) - 1), LONGEST))


def send(files: list[Path], to: Destination | Stow) -> None:
    """Send DICOM files to an archive.

    Raises:
        NormscanError: it doesn't answer, doesn't accept, or doesn't keep one of them.
    """
    if isinstance(to, Stow):
        from normscan.node.dicomweb import stow

        stow(files, to)
    else:
        store(files, to)


def store(files: list[Path], to: Destination) -> None:
    """Send DICOM files by C-STORE.

    Raises:
        NormscanError: it doesn't answer, doesn't accept, or doesn't keep one of them.
    """
    from pydicom import dcmread
    from pynetdicom import AE

    datasets = [dcmread(path) for path in files]
    ae = AE(to.calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 30
    for kind in sorted(
        {(str(d.SOPClassUID), str(d.file_meta.TransferSyntaxUID)) for d in datasets}
    ):
        ae.add_requested_context(*kind)
    tls = None if to.tls is None else (to.tls.context(listening=False), to.host)
    association = ae.associate(to.host, to.port, ae_title=to.ae_title, tls_args=tls)
    where = f"{to.ae_title} at {to.host}:{to.port}"
    if not association.is_established:
        how = "rejected the call" if association.is_rejected else "does not answer"
        raise NormscanError(f"the archive {where} {how}.")
    try:
        for dataset in datasets:
            status = association.send_c_store(dataset).get("Status")
            if status not in TAKEN:
                code = "no answer" if status is None else f"status 0x{status:04X}"
                raise NormscanError(f"the archive {where} did not keep a result ({code}).")
    except (ValueError, RuntimeError):
        raise NormscanError(f"the archive {where} takes no objects of this kind.") from None
    finally:
        association.release()
