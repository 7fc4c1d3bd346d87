"""The server of the viewer: this machine only, one folder only, for whoever holds the token."""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from normscan.display import is_raster
from normscan.errors import ArgumentError, NormscanError, OutputError
from normscan.io.shown import as_nifti
from normscan.version import __version__
from normscan.viewer import corrections, folder, readings, volumes
from normscan.viewer.folder import Results

PAGE = Path(str(files("normscan.viewer"))) / "page"
NOT_BUILT = (
    "The viewer's page is not built. Wheels of normscan bring it along; in a checkout, `make viewer` "
    "builds it (Node 20 or newer)."
)
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; connect-src 'self' blob: data:; "
    "font-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SPENT = (
    "<!doctype html><meta charset='utf-8'><title>normscan</title><p>This address was used already, or "
    "it is not the one that <code>normscan view</code> printed. Start it again for a new one.</p>"
)

Kind = Literal["scan", "map", "restoration"]


class Said(BaseModel):
    """A verdict as the page sends it."""

    reader: str = Field(max_length=1000)
    scan: str
    verdict: str
    note: str = Field("", max_length=100_000)


def create_app(results: Results, token: str, port: int) -> FastAPI:
    """Return the server.

    Args:
        results: what it shows.
        token: opens the page once; the browser is then known by a cookie.
        port: on which it will listen; it is part of the cookie's name, so that viewers of several
            runs don't shut each other out.

    Raises:
        ArgumentError: the page was not built.
    """
    if not (PAGE / "index.html").is_file():
        raise ArgumentError(NOT_BUILT)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.middleware("http")(_guard(token, port))
    app.add_exception_handler(NormscanError, _told)
    _about_run(app, results)
    kept = volumes.Volumes()
    _about_scans(app, results, kept)
    _corrections(app, results, kept)
    _verdicts(app, results, readings.Journal(results.place.home / readings.JOURNAL))
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _guard(token: str, port: int) -> Callable[..., Awaitable[Response]]:
    """Let in who has the token, once, and then who has the cookie; nobody by another host's name."""
    session, cookie, unused = secrets.token_urlsafe(32), f"normscan-{port}", {token}
    hosts = {f"{host}:{port}" for host in ("127.0.0.1", "localhost")}

    async def guard(request: Request, call_next: Callable[..., Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if request.headers.get("host") not in hosts:  # a page that has its name point here
            return Response("Unknown host.", 421)
        if origin is not None and origin.partition("://")[2] not in hosts:
            return Response("Unknown origin.", 403)
        given = request.query_params.get("token")
        if request.url.path == "/" and given is not None:
            if _spend(unused, given):
                answer: Response = RedirectResponse("/", 303)
                answer.set_cookie(cookie, session, httponly=True, samesite="strict")
                return answer
            if not _same(request.cookies.get(cookie), session):
                return HTMLResponse(SPENT, 403)
            return RedirectResponse("/", 303)
        if not _same(request.cookies.get(cookie), session):
            return HTMLResponse(SPENT, 403)
        answer = await call_next(request)
        answer.headers.update(HEADERS)
        if request.url.path.startswith("/assets/"):  # their names change with what they hold
            answer.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return answer

    return guard


def _same(given: str | None, wanted: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), wanted.encode())


def _spend(unused: set[str], given: str) -> bool:
    """Take the token out, if that is it."""
    if not any(_same(given, token) for token in list(unused)):
        return False
    unused.clear()
    return True


def _told(request: Request, error: Exception) -> Response:
    code = 507 if isinstance(error, OutputError) else 422
    return JSONResponse({"detail": str(error)}, code)


def _about_run(app: FastAPI, results: Results) -> None:
    @app.get("/api/run")
    def run() -> dict[str, Any]:
        place, told = results.place, folder.about(results.place)
        notes = [folder.newer(told.get("version")), *results.notes()]
        if place.findings is None:
            notes.append(
                "There are no findings here, only an evaluation: the worklist has no maps."
            )
        return {
            "title": place.title,
            "method": told.get("method"),
            "chosen": place.chosen,
            "notes": [note for note in notes if note],
            "version": __version__,
        }

    @app.get("/api/worklist")
    def worklist() -> dict[str, Any]:
        rows = results.rows()
        columns = folder.columns_of(rows.values())
        lines = [[name, *(_plain(row.get(c)) for c in columns)] for name, row in rows.items()]
        return {"columns": ["scan", *columns], "rows": lines}


def _plain(value: Any) -> Any:
    """Return a cell as JSON knows it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _about_scans(app: FastAPI, results: Results, kept: volumes.Volumes) -> None:
    # Names come as queries: they may hold anything, and only those of the worklist lead to a file.
    def file_of(name: str, kind: Kind) -> Path:
        path = results.volume(name, kind)
        if path is None:
            raise HTTPException(404, f"There is no {kind} of this scan.")
        return path

    @app.get("/api/scan")
    def scan(name: str) -> dict[str, Any]:
        row = results.rows().get(name)
        if row is None:
            raise HTTPException(404, "There is no such scan in the worklist.")
        found = results.finding(name) or {}
        shapes, problems = results.volumes(name)
        components = [each for each in found.get("components") or [] if "peak_index" in each]
        ends, raster = None, False
        if "map" in shapes:
            try:
                read = kept.read(file_of(name, "map"))
            except NormscanError as error:  # damaged behind its header
                del shapes["map"]
                problems.append(str(error))
            else:
                raster = is_raster(read.affine)
                ends = volumes.map_range(read, found.get("pixel_threshold"))
                for each in components:
                    each["at"] = volumes.place_of(read, each["peak_index"])
        made_by = (found.get("provenance") or {}).get("normscan")
        return {
            "name": name,
            "row": {k: _plain(v) for k, v in row.items()},
            "finding": found,
            "components": components,
            "volumes": shapes,
            "range": ends,
            "raster": raster,
            "picture": results.picture(name) is not None,
            "problems": [*problems, *filter(None, [folder.newer(made_by)])],
        }

    @app.get("/api/volume.nii")
    def volume(name: str, kind: Kind) -> Response:
        data = as_nifti(kept.read(file_of(name, kind)))
        return Response(data, media_type="application/octet-stream")

    @app.get("/api/picture.png")
    def picture(name: str) -> Response:
        path = results.picture(name)
        if path is None:
            raise HTTPException(404, "There is no overlay picture of this scan.")
        return Response(path.read_bytes(), media_type="image/png")

    @app.get("/api/plane.png")
    def plane(
        name: str, axis: int = 2, index: int = 0, low: float = 0.0, high: float = 1.0,
        opacity: float = 0.7, radiological: bool = True,
    ) -> Response:  # fmt: skip
        shapes, _ = results.volumes(name)
        shown = kept.read(file_of(name, "scan" if "scan" in shapes else "map"))
        over = kept.read(file_of(name, "map")) if "map" in shapes else None
        scale = (low, max(high, low + 1e-9))
        share = min(max(opacity, 0.0), 1.0)
        drawn = volumes.as_plane(shown, axis, index, over, scale, share, radiological)
        return Response(drawn, media_type="image/png")


def _corrections(app: FastAPI, results: Results, kept: volumes.Volumes) -> None:
    @app.post("/api/correction")
    async def correct(request: Request, name: str, reader: str) -> dict[str, Any]:
        path, folder = results.volume(name, "map"), results.place.findings
        if path is None or folder is None:
            raise HTTPException(404, "There is no map of this scan.")
        map = kept.read(path)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > corrections.most(map):
                raise HTTPException(413, "The mask is larger than the map.")
        return corrections.save(folder, name, reader, bytes(body), map)


def _verdicts(app: FastAPI, results: Results, journal: readings.Journal) -> None:
    @app.get("/api/verdicts")
    def verdicts() -> dict[str, Any]:
        entries, torn = journal.entries()
        return {"entries": entries, "unreadable": torn}

    @app.post("/api/verdicts")
    def add(said: Said) -> dict[str, Any]:
        row = results.rows().get(said.scan)
        if row is None:
            raise HTTPException(404, "There is no such scan in the worklist.")
        return journal.add(said.reader, said.scan, said.verdict, said.note, row.get("anomalous"))

    @app.get("/api/verdicts.csv")
    def table() -> Response:
        name = {"Content-Disposition": 'attachment; filename="verdicts.csv"'}
        text = readings.as_csv(journal.entries()[0])
        return Response(text, media_type="text/csv; charset=utf-8", headers=name)

    @app.get("/api/agreement")
    def agree() -> list[dict[str, Any]]:
        return readings.agreement(journal.entries()[0], results.rows())
