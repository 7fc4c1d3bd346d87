"""The DICOM listener: C-ECHO and C-STORE, to disk and into the queue, and only then success."""

from __future__ import annotations

import logging
import re
import socket
import tempfile
import threading
import weakref
from contextlib import suppress
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
PIECE = 2**17  # bytes in which an object comes; of 2**14, the default, each wakes two threads
SLACK = 2**20  # bytes of headers and protocol beside an object


def listen(store: Store, stop: Stop) -> None:
    """Listen until it is told to stop.

    Raises:
        NormscanError: the port can't be listened on.
    """
    from pynetdicom import _config

    store.clear_incoming(0)
    # What is on the disk is in the queue, or comes into it at the next start: rows needn't wait
    # for the disk as well.
    recover(store)
    store.queue.postpone(store.config.quiet)
    store.queue.synchronous = "normal"
    # A large object goes to disk piece by piece, in the folder from which it can be renamed.
    _config.STORE_RECV_CHUNKED_DATASET = True
    tempfile.tempdir = str(store.incoming)
    dicom = store.config.dicom
    assert dicom is not None
    listener = Listener(store)
    server = listener.start()
    log.info("listening on %s:%s as %s", dicom.host, dicom.port, dicom.ae_title)
    try:
        while not stop.wait(min(5, max(0.1, store.config.quiet / 3))):
            store.clear_incoming(2 * dicom.timeout)
            listener.hold()
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
        self.latest: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
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
        ae.maximum_pdu_size = PIECE
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
                    (evt.EVT_DATA_SENT, self.answered),
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
        acknowledge(event.assoc.dul.socket)
        with self.lock:
            size = self.bytes[event.assoc] = self.bytes.get(event.assoc, 0) + len(event.data)
        if size > self.limit:
            self.bytes[event.assoc] = 0
            self._count("too_large")
            log.warning("an object larger than %g MB was cut off", self.dicom.largest_mb)
            event.assoc.dul.socket.close()

    def answered(self, event: Any) -> None:
        """Be quick with the first piece of what comes next: an answer lets TCP take its time."""
        acknowledge(event.assoc.dul.socket)

    def whole(self, event: Any) -> None:
        """Begin to count anew behind a message."""
        with self.lock:
            self.bytes[event.assoc] = 0

    def hold(self) -> None:
        """Let a series wait while the association on which its last object came is open.

        Who is silent for longer than ``timeout`` is cut off, so that nothing waits for ever.
        """
        with self.lock:
            open_ = [key for link, key in self.latest.items() if link.is_established]
        for key in open_:
            self.store.queue.hold(key, self.store.config.quiet)

    def rejected(self, event: Any) -> None:
        """Count who was turned away, by wrong AE titles or because too many call."""
        self._count("association_rejected")

    def store_object(self, event: Any) -> int:
        """Answer a C-STORE; the words of what goes wrong may hold values, so only its kind is told."""
        path = event.dataset_path
        try:
            return self._keep(path, event.assoc, str(event.request.AffectedSOPClassUID))
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

    def _keep(self, path: Path, link: Any, sop_class: str) -> int:
        if not self.store.has_room():
            self._count("full")
            log.error("the disk quota is used up: objects are refused until older ones are purged")
            return FULL
        caller = str(link.requestor.ae_title).strip()
        key = admit(self.store, path, caller, sop_class)
        with self.lock:
            self.latest[link] = key
        return SUCCESS

    def _count(self, outcome: str) -> None:
        self.store.queue.count("received", outcome)


def acknowledge(link: Any) -> None:
    """Acknowledge at once what came, where the system can (Linux).

    An object comes as a small message and its data, from some senders the head of each apart. They
    hold the next piece until the last is acknowledged (Nagle's algorithm), which TCP puts off for
    40 ms: 20 objects/s.
    """
    if link.socket is not None and hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):  # gone meanwhile
            link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class MismatchError(ScanError):
    """An object of another SOP class than was announced."""


def admit(store: Store, path: Path, source: str, sop_class: str = "") -> str:
    """Keep an object and put its series into the queue, or leave it out; return the job's key.

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
    else:
        take(store, path, source, series, instance)
    return key_of(series)


def take(store: Store, path: Path, source: str, series: str, instance: str) -> None:
    """Keep an object of a series and put the series into the queue."""
    key, name = key_of(series), f"{key_of(instance)}.dcm"
    if size := store.keep(path, key, name):
        with store.queue.transaction():
            # The job may have been purged in between, and its folder with it.
            (store.scan(key) / name).stat()
            store.queue.arrive(key, source, size, store.config.quiet)
            store.queue.count("received", "kept")
        return
    recount(store, key, source)
    store.queue.count("received", "known")


def recover(store: Store) -> None:
    """Put what was kept before a power cut into the queue, where its row was lost."""
    for folder in (store.folder / "scans").iterdir():
        if not any(folder.glob("upload.*")):
            recount(store, folder.name, "")


def recount(store: Store, key: str, source: str) -> None:
    """Let the row of a series know all objects that lie in its folder."""
    sizes = [path.stat().st_size for path in store.scan(key).iterdir()]
    job = store.queue.find(key)
    missing = len(sizes) - (0 if job is None else job.instances)
    if missing > 0:
        size = sum(sizes) if job is None else 0
        store.queue.arrive(key, source, size, store.config.quiet, missing)


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
