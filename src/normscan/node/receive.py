"""The DICOM listener: C-ECHO and C-STORE, to disk and into the queue, and only then success."""

from __future__ import annotations

import logging
import re
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.dicom.identity import MAKER
from normscan.errors import NormscanError, ScanError
from normscan.io.dicom.instance import NO_IMAGE
from normscan.io.dicom.source import find_sources, read_header
from normscan.io.dicom.values import text
from normscan.node.process import Stop
from normscan.node.store import Store, key_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger("normscan.node")

SUCCESS, FULL, MISMATCH, UNREADABLE = 0x0000, 0xA700, 0xA900, 0xC000
SLACK = 2**20  # bytes of headers and protocol beside an object


def listen(store: Store, stop: Stop) -> None:
    """Listen until it is told to stop.

    Raises:
        NormscanError: the port can't be listened on.
    """
    from pynetdicom import _config

    store.clear_incoming(0)
    store.queue.postpone(store.config.quiet)
    # A large object goes to disk piece by piece, in the folder from which it can be renamed.
    _config.STORE_RECV_CHUNKED_DATASET = True
    tempfile.tempdir = str(store.incoming)
    dicom = store.config.dicom
    assert dicom is not None
    server = Listener(store).start()
    log.info("listening on %s:%s as %s", dicom.host, dicom.port, dicom.ae_title)
    try:
        while not stop.wait(5):
            store.clear_incoming(2 * dicom.timeout)
    finally:
        server.shutdown()


class Listener:
    """What answers callers.

    Args:
        store: of the node.
    """

    def __init__(self, store: Store) -> None:
        assert store.config.dicom is not None
        self.store, self.dicom = store, store.config.dicom
        self.limit = int(self.dicom.largest_mb * 1e6) + SLACK
        self.bytes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.lock = threading.Lock()

    def start(self) -> Any:
        """Return the running server."""
        from pydicom.uid import AllTransferSyntaxes
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

        ae = AE(self.dicom.ae_title)
        ae.maximum_associations = self.dicom.associations
        ae.network_timeout = ae.dimse_timeout = self.dicom.timeout
        ae.acse_timeout = min(30, self.dicom.timeout)
        ae.require_called_aet = True
        ae.require_calling_aet = list(self.dicom.callers)
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, AllTransferSyntaxes)
        tls = None if self.dicom.tls is None else self.dicom.tls.context(listening=True)
        try:
            return ae.start_server(
                (self.dicom.host, self.dicom.port),
                block=False,
                ssl_context=tls,
                evt_handlers=[
                    (evt.EVT_C_STORE, self.store_object),
                    (evt.EVT_DATA_RECV, self.measure),
                    (evt.EVT_DIMSE_RECV, self.whole),
                    (evt.EVT_REJECTED, self.rejected),
                ],
            )
        except OSError as error:
            raise NormscanError(
                f"{self.dicom.host}:{self.dicom.port}: can't be listened on ({error.strerror}). Is "
                "another node running, or the port below 1024?"
            ) from None

    def measure(self, event: Any) -> None:
        """Cut off who sends more than an object may have: there is no other way to say no midway."""
        with self.lock:
            size = self.bytes[event.assoc] = self.bytes.get(event.assoc, 0) + len(event.data)
        if size > self.limit:
            self.bytes[event.assoc] = 0
            self._count("too_large")
            log.warning("an object larger than %g MB was cut off", self.dicom.largest_mb)
            event.assoc.dul.socket.close()

    def whole(self, event: Any) -> None:
        """Begin to count anew behind a message."""
        with self.lock:
            self.bytes[event.assoc] = 0

    def rejected(self, event: Any) -> None:
        """Count who was turned away, by wrong AE titles or because too many call."""
        self._count("association_rejected")

    def store_object(self, event: Any) -> int:
        """Answer a C-STORE; the words of what goes wrong may hold values, so only its kind is told."""
        path = event.dataset_path
        try:
            caller = str(event.assoc.requestor.ae_title).strip()
            return self._keep(path, caller, str(event.request.AffectedSOPClassUID))
        except MismatchError:
            self._count("mismatch")
            return MISMATCH
        except ScanError:
            self._count("unreadable")
            log.warning("an object was refused: it is damaged or no DICOM")
            return UNREADABLE
        except OSError as error:
            self._count("disk")
            log.error("an object can't be kept: %s", error.strerror)
            return FULL
        except Exception as error:
            self._count("error")
            log.error("an object can't be kept: %s", type(error).__name__)
            return UNREADABLE

    def _keep(self, path: Path, caller: str, sop_class: str) -> int:
        if not self.store.has_room():
            self._count("full")
            log.error("the disk quota is used up: objects are refused until older ones are purged")
            return FULL
        admit(self.store, path, caller, sop_class)
        return SUCCESS

    def _count(self, outcome: str) -> None:
        self.store.queue.count("received", outcome)


class MismatchError(ScanError):
    """An object of another SOP class than was announced."""


def admit(store: Store, path: Path, source: str, sop_class: str = "") -> str:
    """Keep an object, or leave it out; return ``kept``, ``known`` or ``left_out``.

    Args:
        store: of the node.
        path: of the object, which is moved.
        source: who it is from.
        sop_class: that it was announced as, if it was.

    Raises:
        ScanError: damaged, no DICOM, without UIDs.
        MismatchError: of another SOP class than announced.
    """
    header, _ = read_header(find_sources(path)[0])
    instance, series = text(header, "SOPInstanceUID"), text(header, "SeriesInstanceUID")
    if not instance or not series:
        raise ScanError("an object without UIDs")
    if sop_class and text(header, "SOPClassUID") != sop_class:
        raise MismatchError("an object of another kind than announced")
    if reason := no_scan(header):
        store.queue.leave_out(key_of(series), source, reason)
        store.queue.count("received", "left_out")
        return "left_out"
    return take(store, path, source, series, instance)


def take(store: Store, path: Path, source: str, series: str, instance: str) -> str:
    """Keep an object of a series and put the series into the queue; return ``kept`` or ``known``."""
    key = key_of(series)
    if size := store.keep(path, key, f"{key_of(instance)}.dcm"):
        with store.queue.transaction():  # one commit, which waits for the disk
            store.queue.arrive(key, source, size, store.config.quiet)
            store.queue.count("received", "kept")
        return "kept"
    # It may have been kept by a process that died before the row was written.
    job = store.queue.find(key)
    if job is None or job.instances < sum(1 for _ in store.scan(key).iterdir()):
        store.queue.arrive(key, source, 0, store.config.quiet)
    store.queue.count("received", "known")
    return "known"


def no_scan(header: Dataset) -> str:
    """Return why an object is none to be scored, whatever the rules, or an empty string.

    The node's own results must not come round again, and of what is no image nothing is to be said.
    """
    if text(header, "Manufacturer") == MAKER:
        return "a result of normscan"
    sop_class = text(header, "SOPClassUID")
    for prefix, reason in NO_IMAGE.items():
        if re.match(re.escape(prefix) + r"(\.|$)", sop_class):
            return reason
    return ""
