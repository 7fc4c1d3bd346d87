"""The command that shows the findings of a run in the browser."""

from __future__ import annotations

import secrets
import socket
import sys
import webbrowser
from collections.abc import Mapping
from typing import Any

from normscan.errors import ArgumentError

INSTALL = 'the viewer needs FastAPI and uvicorn: pip install "normscan[view]".'


def view(
    run: str,
    cohort: str | None = None,
    root: str | None = None,
    port: int = 0,
    browser: bool = True,
) -> None:
    """Show findings in the browser: a worklist, maps over scans, and what readers say of them.

    The page is served on this machine alone, from the one folder, until Ctrl-C.

    Args:
        run: run folder, a folder in which `normscan predict` or `evaluate` wrote, or one
            *_finding.json.
        cohort: table or folder whose labels, sites and further columns stand in the worklist, too.
        root: folder of the table's relative paths.
        port: to listen on; a free one by default.
        browser: open the page; else its address is only printed.
    """
    from normscan.viewer.folder import Results, locate

    place = locate(run)
    try:
        import uvicorn

        from normscan.viewer.app import create_app
    except ImportError as error:
        raise ArgumentError(f"{INSTALL} ({error})") from error
    results = Results(place, {} if cohort is None else _columns(cohort, root))
    listening = _listen(port)
    port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
    app = create_app(results, token, port)
    address = f"http://127.0.0.1:{port}/?token={token}"
    print(f"{len(results.rows())} scans. Open once, in one browser: {address}\nCtrl-C ends it.")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    if browser:
        webbrowser.open(address)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(port: int) -> socket.socket:
    """Return a socket of this machine alone."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ArgumentError(f"--port {port}: can't be listened on ({error}).") from error
    listening.listen(128)
    return listening


def _columns(cohort: str, root: str | None) -> Mapping[str, Mapping[str, Any]]:
    """Return what a cohort says of its scans, under the names that findings have."""
    from normscan.cohort import Cohort
    from normscan.cohort.table import unique_names

    rows = Cohort.read(cohort, root)
    names = unique_names([row.scan for row in rows])
    return {
        name: {
            **row.columns,
            "subject": row.subject,
            "label": None if row.label is None else bool(row.label),
            "split": row.split,
            "site": row.site,
        }
        for name, row in zip(names, rows, strict=True)
    }
