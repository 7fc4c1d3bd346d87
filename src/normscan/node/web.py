"""The REST server: scans in by HTTP, what became of them out, and how the node is."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect

from normscan.errors import NormscanError
from normscan.io.files import sniff
from normscan.node.metrics import exposition
from normscan.node.process import Stop
from normscan.node.queue import Job
from normscan.node.store import Store
from normscan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("normscan.node")

TYPES = {
    "DICOM file": ".dcm",
    "zip archive": ".zip",
    "NIfTI": ".nii",
    "gzipped NIfTI": ".nii.gz",
    "PNG": ".png",
    "JPEG": ".jpg",
    "TIFF": ".tif",
    "NumPy array": ".npy",
}
"""What may be uploaded, by what its first bytes say: kinds that refer to no other file."""
RETRY = {"Retry-After": "30"}
ALIVE = 20.0  # s since the scoring process was last heard of


def serve(store: Store, stop: Stop) -> None:
    """Answer requests until told to stop.

    Raises:
        NormscanError: the port can't be listened on.
    """
    import uvicorn

    web = store.config.web
    assert web is not None
    settings = uvicorn.Config(
        application(store), web.host, web.port, log_config=None, access_log=False,
        limit_concurrency=256, timeout_graceful_shutdown=20, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(settings)

    async def run() -> None:
        async def watch() -> None:
            while not stop:
                await asyncio.sleep(0.2)
            server.should_exit = True

        watching = asyncio.create_task(watch())
        await server.serve()
        watching.cancel()

    server.capture_signals = _no_signals  # type: ignore[method-assign]
    log.info("answering on http://%s:%s", web.host, web.port)
    try:
        asyncio.run(run())
    except SystemExit:
        raise NormscanError(f"{web.host}:{web.port}: can't be listened on.") from None


@contextmanager
def _no_signals() -> Iterator[None]:
    """The node's own handlers stay."""
    yield


def application(store: Store) -> FastAPI:
    """Return the application of a node's folder."""
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

    web = store.config.web
    assert web is not None
    known = [hashlib.sha256(token.encode()).digest() for token in web.tokens()]
    app = FastAPI(title="normscan", version=__version__, docs_url=None, redoc_url=None)

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        digest = hashlib.sha256(given.encode()).digest()
        same = [hmac.compare_digest(digest, each) for each in known]  # each in constant time
        if True not in same:
            raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN")

    def job_of(key: str) -> Job:
        job = store.queue.find(key)
        if job is None:
            raise HTTPException(404, "no such scan")
        return job

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed: %s", type(error).__name__)
        return JSONResponse({"detail": "the node failed; its log says more"}, 500)

    @app.post("/scans", status_code=202, dependencies=[Depends(allowed)])
    async def upload(request: Request) -> dict[str, Any]:
        """Take a scan: the body is the file, or a zip of a DICOM series. The same is one job."""
        return await _upload(store, request)

    @app.get("/scans/{key}", dependencies=[Depends(allowed)])
    def scan(key: str) -> dict[str, Any]:
        """Say what became of a scan."""
        return told(store, job_of(key))

    @app.get("/scans/{key}/files/{name}", dependencies=[Depends(allowed)])
    def file(key: str, name: str) -> FileResponse:
        """Return a file of the results."""
        folder = store.results(job_of(key).key)
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or not (folder / name).is_file():
            raise HTTPException(404, "no such file")
        return FileResponse(folder / name, filename=name)

    @app.get("/scans/{key}/{what}", dependencies=[Depends(allowed)])
    def result(key: str, what: str, part: int = 0) -> FileResponse:
        """Return the ``map``, ``mask``, ``overlay``, ``report`` or ``page`` of a scan, or of a part of it."""
        job = job_of(key)
        if what not in WANTED or not 0 <= part < len(job.result.get("parts", ())):
            raise HTTPException(404, f"there is no such result; the scan is {job.state}")
        start = job.result["parts"][part]["name"] + WANTED[what]
        for path in sorted(store.results(job.key).iterdir()):
            if path.name.startswith(start) and path.suffix != ".dcm":
                return FileResponse(path, filename=path.name)
        raise HTTPException(404, "the scan has no such result")

    @app.get("/healthz")
    def healthy() -> dict[str, bool]:
        """Say that the server and its database answer."""
        store.queue.counts()
        return {"ok": True}

    @app.get("/readyz")
    def ready() -> JSONResponse:
        """Say whether scans are taken and scored."""
        alive = (
            time.time() - store.queue.tallies().get(("beat", "score"), 0) < ALIVE + web.timeout / 60
        )
        state = {"scoring": alive, "room": store.has_room()}
        return JSONResponse(state, 200 if all(state.values()) else 503)

    @app.get("/metrics", dependencies=[Depends(allowed)])
    def metrics() -> PlainTextResponse:
        """Return the numbers that Prometheus collects."""
        text, kind = exposition(store)
        return PlainTextResponse(text, media_type=kind)

    return app


WANTED = {
    "map": "_map",
    "mask": "_mask",
    "overlay": "_overlay",
    "report": "_finding",
    "page": ".pdf",
}


def told(store: Store, job: Job) -> dict[str, Any]:
    """Return what is said of a job."""
    folder = store.results(job.key)
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return {
        "id": job.key, "state": job.state, "reason": job.reason, "tries": job.tries,
        "result": len(job.result.get("made", [])), "parts": job.result.get("parts", []),
        "files": files,
    }  # fmt: skip


async def _upload(store: Store, request: Request) -> dict[str, Any]:
    """Write the body to disk, hashed on the way, so that memory stays flat; then queue it."""
    web, queue = store.config.web, store.queue
    assert web is not None
    limit = int(web.largest_mb * 1e6)

    def refuse(status: int, outcome: str, detail: str) -> HTTPException:
        queue.count("uploads", outcome)
        return HTTPException(status, detail, RETRY if status == 503 else None)

    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limit:
        raise refuse(413, "too_large", f"at most {limit} bytes")
    if queue.waiting() >= web.most_waiting:
        raise refuse(503, "full", "too many scans wait already; come again")
    if not store.has_room():
        raise refuse(503, "full", "the disk quota is used up; come again")
    part = store.incoming / f"{secrets.token_hex(8)}.upload"
    try:
        try:
            async with asyncio.timeout(web.timeout):
                key, size = await _body(request, part, limit)
        except TimeoutError:
            raise refuse(408, "slow", "the upload took too long") from None
        except ClientDisconnect:
            raise refuse(400, "broken_off", "the upload broke off") from None
        if size > limit:
            raise refuse(413, "too_large", f"at most {limit} bytes")
        kind = await asyncio.to_thread(sniff, part)
        if kind not in TYPES:
            raise refuse(415, "unknown", f"not one of: {', '.join(TYPES)}")
        await asyncio.to_thread(_queue, store, part, key, TYPES[kind])
    finally:
        part.unlink(missing_ok=True)
    return {"id": key}


async def _body(request: Request, part: Path, limit: int) -> tuple[str, int]:
    """Write the body; return its SHA-256 and its bytes, or how many were too many."""
    size, digest = 0, hashlib.sha256()
    with part.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest(), size


def _queue(store: Store, part: Path, key: str, suffix: str) -> None:
    if store.queue.find(key) is not None:
        store.queue.count("uploads", "known")
        return
    size = store.keep(part, key, f"upload{suffix}")
    # Where a file lay there already, a process died before its row was written.
    size = size or (store.scan(key) / f"upload{suffix}").stat().st_size
    store.queue.arrive_once(key, "rest", size)
    store.queue.count("uploads", "kept")
