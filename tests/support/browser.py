"""Debian's Chromium for the tests of pages, and a viewer to open in it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# WebGL by software: few machines that run tests have a graphics card.
DRAWN = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def reason() -> str | None:
    """Why pages can't be opened here, or None."""
    if CHROMIUM is None:
        return "Chromium isn't installed"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright isn't installed"
    return None


@contextlib.contextmanager
def chromium(playwright: Any, profile: Path, *flags: str, **options: Any) -> Iterator[Any]:
    """Start a browser with a profile of its own; yields a context that makes pages."""
    context = playwright.chromium.launch_persistent_context(
        str(profile), executable_path=CHROMIUM, headless=True, args=[*FLAGS, *flags], **options
    )
    context.set_default_timeout(30_000)
    try:
        yield context
    finally:
        context.close()


@contextlib.contextmanager
def viewer(run: Path, *options: str) -> Iterator[str]:
    """Serve a run in a process of its own; yields the address that the command prints."""
    command = [sys.executable, "-m", "normscan.cli.main", "view", str(run), "--browser", "no"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http" not in line:
                pytest.fail(f"the viewer did not start: {line}")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait(30)
