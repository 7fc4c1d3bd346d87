"""The page of the viewer in wheels: built once, never asked of who has no node."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("hatchling", reason="hatchling builds packages and isn't installed here")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Run the hook on an empty checkout; returns the commands it called and its warnings."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(target, version="standard", npm=True, page=False):
        called, warned = [], []
        (tmp_path / "web").mkdir(exist_ok=True)
        monkeypatch.setattr(module.shutil, "which", lambda name: "/usr/bin/npm" if npm else None)
        monkeypatch.setattr(module.subprocess, "run", lambda c, **_: called.append(c[1]))
        if page:
            folder = tmp_path / "src" / "normscan" / "viewer" / "page"
            folder.mkdir(parents=True)
            (folder / "index.html").write_text("")
        app = SimpleNamespace(display_warning=warned.append)
        hook = module.ViewerHook(str(tmp_path), {}, None, None, "", target, app)
        hook.initialize(version, {})
        return called, warned

    return run


def test_a_wheel_gets_the_page_built(built):
    assert built("wheel") == (["ci", "run"], [])


def test_a_source_distribution_brings_the_page_along(built):
    assert built("wheel", npm=False, page=True) == ([], [])


def test_an_editable_install_needs_no_npm(built):
    assert built("wheel", "editable", npm=False) == ([], [])


def test_without_npm_a_wheel_goes_without_the_page_and_a_release_is_refused(built):
    called, warned = built("wheel", npm=False)
    assert called == []
    assert "Node 20" in warned[0]
    with pytest.raises(RuntimeError, match="Node 20"):
        built("sdist", npm=False)


def test_the_lock_names_no_registry_and_every_file_by_its_hash():
    lock = (ROOT / "web" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    packages = json.loads(lock)["packages"]
    assert all("integrity" in each for name, each in packages.items() if name)


def test_what_the_image_copies_is_enough_to_build_from(tmp_path):
    """The last stage of the Dockerfile has what pip asks for: metadata come out of it alone."""
    import shutil

    from hatchling.builders.wheel import WheelBuilder

    stage = (ROOT / "Dockerfile").read_text().split("FROM ")[-1]
    for line in stage.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *names, _ = line.split()[1:]
            for name in names:
                if (ROOT / name).is_dir():
                    (tmp_path / name).symlink_to(ROOT / name)
                else:
                    shutil.copy(ROOT / name, tmp_path)
    builder = WheelBuilder(str(tmp_path))
    assert builder.metadata.core.name == "normscan" and builder.metadata.version
    assert builder.get_build_hooks(str(tmp_path)).keys() == {"custom"}
