"""What a node must refuse and live: broken objects, broken protocol, broken requests."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from normscan.node.config import Config
from tests.support import malformed
from tests.support import node as N


def bodies(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every malformed file that the tests of reading know."""
    for number, case in enumerate(malformed.cases()):
        place = folder / str(number)
        place.mkdir(parents=True)
        case.make(place)
        for path in sorted(place.rglob("*")):
            if path.is_file():
                yield case.name, path.read_bytes()


def store_raw(
    config: Config, contents: list[bytes], sop_class: str = MRImageStorage
) -> Counter[str]:
    """Send data sets as they are, broken or not, behind correct commands; count the answers."""
    from pynetdicom import AE
    from pynetdicom.dimse_primitives import C_STORE

    assert config.dicom is not None
    answers: Counter[str] = Counter()
    link: Any = None
    ae = AE("CALLER")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 15
    ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
    for content in contents:
        if link is None or not link.is_established:
            link = ae.associate("127.0.0.1", config.dicom.port, ae_title="NORMSCAN")
            if not link.is_established:
                answers["not let in"] += 1
                continue
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID = sop_class
        request.AffectedSOPInstanceUID = generate_uid()
        body = content[132:] if content[128:132] == b"DICM" else content
        request.DataSet = BytesIO(without_meta(body))
        # The association's own loop would take the answer away.
        link._reactor_checkpoint.clear()
        while not link._is_paused and link.is_established:
            time.sleep(0.001)
        link.dimse.send_msg(request, link.accepted_contexts[0].context_id)
        _, answer = link.dimse.get_msg(block=True)
        link._reactor_checkpoint.set()
        status = getattr(answer, "Status", None)
        answers["cut off" if status is None else f"0x{status:04X}"] += 1
    if link is not None and link.is_established:
        link.release()
    return answers


def without_meta(body: bytes) -> bytes:
    """Leave out the elements of group 2, which don't travel."""
    at = 0
    while body[at : at + 2] == b"\x02\0" and at + 8 <= len(body):
        long = body[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        size = struct.unpack_from("<I" if long else "<H", body, at + (8 if long else 6))[0]
        at += (12 if long else 8) + size
    return body[at:]


def protocol(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield bytes that are no upper-layer protocol, or break it (PS3.8 9.3)."""
    for _ in range(20):
        yield "noise", rng.bytes(int(rng.integers(1, 4000)))
    yield "http", b"GET / HTTP/1.1\r\nHost: SECRET\r\n\r\n"
    yield "tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    for kind in range(1, 8):
        for size in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            yield "wrong length", struct.pack(">BBI", kind, 0, size) + rng.bytes(100)
    head = struct.pack(">HH16s16s32x", 1, 0, b"NORMSCAN".ljust(16), b"CALLER".ljust(16))
    for cut in (1, 20, 60, len(head)):
        yield "half a request", struct.pack(">BBI", 1, 0, len(head)) + head[:cut]
    item = struct.pack(">BBH", 0x10, 0, 0xFFFF) + b"1.2.840.10008.3.1.1.1"
    yield "item too long", struct.pack(">BBI", 1, 0, len(head + item)) + head + item


def shout(port: int, data: bytes) -> str:
    """Send bytes to a port; return how it ended."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as link:
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            return "answered" if link.recv(100) else "closed"
    except TimeoutError:
        return "left waiting"
    except OSError:
        return "closed"


def crowd(config: Config, count: int) -> Counter[str]:
    """Open more associations than are allowed, and hold them; count how they ended."""
    from pynetdicom import AE

    assert config.dicom is not None
    ended: Counter[str] = Counter()
    held = []
    ae = AE("CALLER")
    ae.acse_timeout = ae.connection_timeout = 10
    ae.add_requested_context(CTImageStorage)
    for _ in range(count):
        link = ae.associate("127.0.0.1", config.dicom.port, ae_title="NORMSCAN")
        ended["accepted" if link.is_established else "rejected"] += 1
        held.append(link)
    for link in held:
        if link.is_established:
            link.release()
    return ended


def requests() -> Iterator[tuple[str, str, dict[str, str], bytes, tuple[int, ...]]]:
    """Yield what a web server must refuse: method, path, headers, body, status codes that do."""
    good = {"Authorization": f"Bearer {N.TOKEN}"}
    for token in ("", "Bearer", "Bearer SECRET", f"Basic {N.TOKEN}", f"Bearer {N.TOKEN}x"):
        headers = {"Authorization": token} if token else {}
        yield "POST", "/scans", headers, b"SECRET", (401,)
        yield "GET", "/metrics", headers, b"", (401,)
        yield "GET", "/scans/SECRET", headers, b"", (401,)
    ways = (
        "../token",
        "..%2f..%2ftoken",
        "%2e%2e%2ftoken",
        "..\\token",
        "%00",
        "a" * 3000,
        "'--",
        ".",
    )
    for way in ways:
        yield "GET", f"/scans/{way}", good, b"", (400, 404)
        yield "GET", f"/scans/{'0' * 64}/files/{way}", good, b"", (400, 404)
        yield "GET", f"/{way}", good, b"", (400, 404)
    for length in ("-1", "99999999999999", "x", "1e3"):
        yield "POST", "/scans", {**good, "Content-Length": length}, b"", (400, 413)
    for method in ("PUT", "DELETE", "PATCH"):
        yield method, "/scans", good, b"", (405,)
    for body in (
        b"",
        b"#!/bin/sh\n",
        b"<xml/>",
        os.urandom(500),
        b"GIF89a" + bytes(50),
        b"%PDF-1.4",
    ):
        yield "POST", "/scans", good, body, (415,)


def ask(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, bytes]:
    """Send a request byte by byte as it is given, without a client that would mend it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: node", "Connection: close"]
    if "Content-Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        answer = b""
        while block := link.recv(65536):
            answer += block
    return int(answer.split(b" ", 2)[1]) if answer else 0, answer
