"""The downloader against a server on this machine that misbehaves on request."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normscan import datasets
from normscan.datasets import fetch
from normscan.datasets import recipe as recipes
from normscan.errors import ArgumentError, OutputError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves ``files``; ``cuts`` lists after how many bytes each coming answer breaks off."""

    def __init__(self) -> None:
        self.files = {"/a.bin": CONTENT}
        self.cuts: list[int] = []
        self.codes: list[int] = []
        self.ranges = True
        self.tag = '"one"'
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Range", "")))
                if outer.codes:
                    self.send_error(outer.codes.pop(0))
                    return
                if self.path not in outer.files:
                    self.send_error(404)
                    return
                body, start = outer.files[self.path], 0
                wanted = self.headers.get("Range", "")
                same = self.headers.get("If-Range", outer.tag) == outer.tag
                if wanted and outer.ranges and same:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(200)
                self.send_header("ETag", outer.tag)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                end = min(len(body), start + outer.cuts.pop(0)) if outer.cuts else len(body)
                self.wfile.write(body[start:end])
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def offer(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a recipe ``toyset`` with one file of the server."""

    def make(path: str = "/a.bin", **url: Any) -> None:
        table = {
            "name": "x", "section": "x", "modality": "x", "task": "x", "access": "open", "how": "x",
            "licence": "x", "layout": "x", "labels": "x", "home": "https://example.org/toyset",
            "urls": [{"url": server.address + path, "file": path.strip("/"), **url}],
        }  # fmt: skip
        made = recipes.parse("toyset", {"toyset": table})
        monkeypatch.setattr(recipes, "_all", lambda: {"toyset": made})

    make()
    return make


def lock(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "toyset.lock.json").read_text())


def test_a_file_comes_whole_and_its_hash_is_pinned(
    server: Server, offer: Any, tmp_path: Path
) -> None:
    assert datasets.download("toyset", tmp_path / "d") == [tmp_path / "d" / "a.bin"]
    assert (tmp_path / "d" / "a.bin").read_bytes() == CONTENT
    assert lock(tmp_path / "d")["a.bin"]["sha256"] == SHA
    assert lock(tmp_path / "d")["a.bin"]["size"] == len(CONTENT)
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["a.bin", "toyset.lock.json"]
    datasets.download("toyset", tmp_path / "d")
    assert len(server.asked) == 1, "a whole file was fetched again"


def test_a_cut_connection_goes_on_where_it_stopped(
    server: Server, offer: Any, tmp_path: Path
) -> None:
    server.cuts = [100_000, 50_000]
    datasets.download("toyset", tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == ["", "bytes=100000-", "bytes=150000-"]


def test_a_killed_run_goes_on(server: Server, offer: Any, tmp_path: Path) -> None:
    server.cuts = [1000, 0, 0, 0, 0]
    with pytest.raises(OutputError, match=r"stopped after 5 tries .*a\.bin\.part.*run the command"):
        datasets.download("toyset", tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size == 1000
    datasets.download("toyset", tmp_path)
    assert server.asked[-1][1] == "bytes=1000-"
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_again(server: Server, offer: Any, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1000]
    datasets.download("toyset", tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_replaced_meanwhile_is_sent_whole(
    server: Server, offer: Any, tmp_path: Path
) -> None:
    server.cuts = [1000, 0, 0, 0, 0]
    with pytest.raises(OutputError):
        datasets.download("toyset", tmp_path)
    server.files["/a.bin"], server.tag = CONTENT[::-1], '"two"'
    datasets.download("toyset", tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_dropped(server: Server, offer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 400_000)
    datasets.download("toyset", tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, offer: Any, tmp_path: Path) -> None:
    server.codes = [503, 429]
    datasets.download("toyset", tmp_path)
    assert len(server.asked) == 3


def test_a_missing_file_says_where_to_look(server: Server, offer: Any, tmp_path: Path) -> None:
    offer("/gone.zip")
    with pytest.raises(OutputError, match=r"gone\.zip: the server says 404.*example\.org/toyset"):
        datasets.download("toyset", tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 7}])
def test_a_wrong_checksum_or_size_is_refused(
    server: Server, offer: Any, tmp_path: Path, url: dict[str, Any]
) -> None:
    offer(**url)
    with pytest.raises(OutputError, match=r"300000 bytes.*differ from the recipe"):
        datasets.download("toyset", tmp_path)
    assert not (tmp_path / "a.bin").exists() and not (tmp_path / "a.bin.part").exists()
    offer(sha256=SHA, size=len(CONTENT), md5=hashlib.md5(CONTENT).hexdigest())
    datasets.download("toyset", tmp_path)


def test_other_bytes_than_the_pinned_ones_are_refused(
    server: Server, offer: Any, tmp_path: Path
) -> None:
    datasets.download("toyset", tmp_path)
    (tmp_path / "a.bin").unlink()
    server.files["/a.bin"] = b"something else"
    with pytest.raises(OutputError, match=r"pinned hash in .*toyset\.lock\.json"):
        datasets.download("toyset", tmp_path)


def test_a_file_put_there_by_hand_is_checked(server: Server, offer: Any, tmp_path: Path) -> None:
    offer(sha256=SHA)
    (tmp_path / "a.bin").write_bytes(b"damaged")
    with pytest.raises(OutputError, match=r"a\.bin: 7 bytes"):
        datasets.download("toyset", tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"damaged", "a user's file was deleted"
    (tmp_path / "a.bin").write_bytes(CONTENT)
    datasets.download("toyset", tmp_path)
    assert server.asked == []


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_unpacked_inside_the_folder(
    server: Server, offer: Any, tmp_path: Path, kind: str
) -> None:
    def pack(names: list[str]) -> bytes:
        memory = io.BytesIO()
        if kind == "zip":
            with zipfile.ZipFile(memory, "w") as archive:
                for name in names:
                    archive.writestr(name, b"hello")
        else:
            with tarfile.open(fileobj=memory, mode="w") as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = 5
                    archive.addfile(member, io.BytesIO(b"hello"))
        return memory.getvalue()

    folder = tmp_path / "in" / "d"
    server.files[f"/good.{kind}"] = pack(["sub/x.txt"])
    offer(f"/good.{kind}", unpack=True)
    datasets.download("toyset", folder)
    assert (folder / "sub" / "x.txt").read_bytes() == b"hello"
    assert lock(folder)[f"good.{kind}"]["unpacked"] is True
    server.files[f"/bad.{kind}"] = pack(["../../escaped.txt"])
    offer(f"/bad.{kind}", unpack=True)
    if kind == "tar":
        with pytest.raises(OutputError, match=r"bad\.tar: can't be unpacked"):
            datasets.download("toyset", folder)
    else:
        datasets.download("toyset", folder)
    assert not list(tmp_path.glob("escaped.txt")) and not list(tmp_path.glob("in/escaped.txt"))


def test_a_damaged_archive_or_lock_is_named(server: Server, offer: Any, tmp_path: Path) -> None:
    server.files["/broken.zip"] = b"PK\x03\x04 no archive"
    offer("/broken.zip", unpack=True)
    with pytest.raises(OutputError, match=r"broken\.zip: can't be unpacked"):
        datasets.download("toyset", tmp_path)
    (tmp_path / "toyset.lock.json").write_text("{")
    with pytest.raises(OutputError, match=r"toyset\.lock\.json: is no lock file"):
        datasets.download("toyset", tmp_path)


def test_other_addresses_than_http_are_refused(offer: Any, tmp_path: Path) -> None:
    offer(url=(tmp_path / "x").as_uri())
    with pytest.raises(ArgumentError, match="only http"):
        datasets.download("toyset", tmp_path)


def test_an_unreachable_server(
    server: Server, offer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TRIES", 2)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(OutputError, match="stopped after 2 tries"):
        datasets.download("toyset", tmp_path)


def test_progress_is_told(server: Server, offer: Any, tmp_path: Path) -> None:
    seen = []

    class Bar:
        def update(self, name: str, done: int, total: int | None, text: str = "") -> None:
            seen.append((name, done, total))

    server.files["/a.bin"] = CONTENT * 10
    datasets.download("toyset", tmp_path, progress=Bar())  # type: ignore[arg-type]
    assert seen[-1] == ("a.bin", 2, 2) and len(seen) >= 3
