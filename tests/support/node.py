"""A small hospital on loopback: a detector, series of patients, an archive that takes results."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes, generate_uid

from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.node.config import Config
from normscan.node.process import command_of
from normscan.node.store import Store
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

PLANES = G.make_planes(G.oblique(), 2.0, count=6, shape=(12, 14), spacing=(2, 2))
TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = "Geheim^Planted"
PATIENT = {
    "PatientName": SECRET, "PatientID": "P-4711-GEHEIM", "PatientBirthDate": "19510203",
    "AccessionNumber": "ACC-GEHEIM", "ReferringPhysicianName": "Arzt^Geheim",
    "InstitutionName": "Klinik Geheim", "PatientComments": "Geheim",
}  # fmt: skip
"""Identity that must stay in the objects; ``GEHEIM`` in any case is looked for elsewhere."""


def head(seed: int, lesion: float = 0.0, planes: G.Planes = PLANES) -> np.ndarray:
    """(n, rows, columns) of a disc with noise, and a bright block."""
    row, column = np.indices((12, 14))
    disc = np.hypot((row - 5.5) / 5.5, (column - 6.5) / 6.5) < 1
    count = len(planes.positions)
    values = disc * (400 + np.random.default_rng(seed).normal(0, 8, (count, 12, 14)))
    values[2:4, 4:7, 5:9] += lesion
    return values


def make_detector(folder: Path) -> Path:
    """Return the run folder of a detector of such heads."""
    for k in range(8):
        D.write_series(
            folder / f"h{k}", PLANES, head(k), "MR", f"h{k}", header={"PatientID": f"P{k}"}
        )
    lines = [f"h{k},h{k},0,{'train' if k < 3 else 'val'}" for k in range(8)]
    (folder / "cohort.csv").write_text("\n".join(["path,subject,label,split", *lines]))
    settings = {"size": 14, "crop": "none", "scaling": "none"}
    detector = Detector(
        "mean_image", dims=3, preprocess=settings, fpr=0.3, calibration="split", cache=False
    )
    detector.fit(Cohort.read(folder / "cohort.csv"), folder / "run")
    return folder / "run"


def series(
    folder: Path, name: str, seed: int = 99, lesion: float = 400.0, **header: Any
) -> list[Path]:
    """Write a series of a patient whose identity is known by ``SECRET``."""
    study = {"StudyInstanceUID": generate_uid(entropy_srcs=["study", name])}
    described = {"SeriesDescription": "t1 axial", "BodyPartExamined": "HEAD"}
    return D.write_series(
        folder / name, PLANES, head(seed, lesion), "MR", name,
        header={**PATIENT, **study, **described, **header},
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def write_config(folder: Path, run: Path, archive: int | None = None, **more: str) -> Path:
    """Write node.toml for a node that any CALLER may call; ``more`` are lines of its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f'folder = "{folder / "state"}"', "quiet = 0.3" * ("quiet" not in more.get("top", "")),
        more.get("top", ""),
        "[dicom]", f"port = {free_port()}", 'callers = ["CALLER"]', more.get("dicom", ""),
        "[[rules]]", 'name = "heads"', f'detector = "{run}"', 'modality = ["MR"]',
        'body_part = ["HEAD"]', more.get("rules", ""),
    ]  # fmt: skip
    if archive is not None:
        lines += [
            "[[destinations]]",
            'host = "127.0.0.1"',
            f"port = {archive}",
            'ae_title = "PACS"',
        ]
    if "web" in more:
        (folder / "token").write_text(TOKEN + "\n")
        lines += ["[web]", f"port = {free_port()}", 'token_file = "token"', more["web"]]
    lines += [more.get("end", "")]
    path = folder / "node.toml"
    path.write_text("\n".join(lines))
    return path


class Archive:
    """Takes objects and keeps them by their UID; a second sending of one changes nothing."""

    def __init__(self, port: int | None = None, status: int = 0) -> None:
        from pynetdicom import AE, AllStoragePresentationContexts, evt

        self.port, self.status = port or free_port(), status
        self.objects: dict[str, Dataset] = {}
        self.received: list[str] = []
        ae = AE("PACS")
        ae.network_timeout = 20
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, AllTransferSyntaxes)
        handlers = [(evt.EVT_C_STORE, self._keep)]
        self.server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def _keep(self, event: Any) -> int:
        if self.status:
            return self.status
        data = event.dataset
        data.file_meta = event.file_meta
        self.received.append(str(data.SOPInstanceUID))
        self.objects.setdefault(str(data.SOPInstanceUID), data)
        return 0

    def of(self, modality: str) -> list[Dataset]:
        return [d for d in self.objects.values() if d.Modality == modality]

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()


def call(
    config: Config, files: Iterable[Path], calling: str = "CALLER", called: str = "NORMSCAN",
    tls: Any = None, port: int | None = None,
) -> list[int | None] | str:  # fmt: skip
    """Send files to the node; return the statuses, or how the call ended."""
    from pynetdicom import AE

    data = [pydicom.dcmread(path, force=True) for path in files]
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 10
    for kind in sorted({(str(d.SOPClassUID), str(d.file_meta.TransferSyntaxUID)) for d in data}):
        ae.add_requested_context(*kind)
    assert config.dicom is not None
    at = ("127.0.0.1", port or config.dicom.port)
    link = ae.associate(*at, ae_title=called, tls_args=tls)
    if not link.is_established:
        return "rejected" if link.is_rejected else "aborted"
    statuses: list[int | None] = []
    for one in data:
        statuses.append(link.send_c_store(one).get("Status"))
        if not link.is_established:
            return [*statuses, None]
    link.release()
    return statuses


def written(folder: Path) -> bytes:
    """All names and contents below a folder, but DICOM and the database's own."""
    said = b""
    for path in folder.rglob("*"):
        said += str(path.relative_to(folder)).encode() + b"\n"
        if path.is_file() and path.suffix != ".dcm":
            said += path.read_bytes()
    return said


class Running:
    """The node as processes of its own.

    Args:
        path: of its configuration.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, Config.read(path)
        self.log = path.with_suffix(".log").open("ab")
        self.store = Store(self.config)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            command_of(str(self.path), "all"), stderr=self.log, stdout=self.log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def listening(self, seconds: float = 120) -> None:
        assert self.config.dicom is not None
        port = self.config.dicom.port

        def open_() -> bool:
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0

        wait_for(open_, seconds)

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.log.close()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def in_thread(function: Callable[..., Any], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread
