"""A Hugging Face hub in a thread: the part of its API that huggingface_hub uses to send and fetch.

Written from the requests that the library makes: repositories with branches and commits, large
files by the basic transfer of Git LFS, metadata in the headers of ``resolve``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Commits by their ids, each all its files; branches are names of commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        told = json.dumps([len(self.commits), branch, sorted(files)]).encode()
        sha = hashlib.sha1(told).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class Hub:
    """The hub and what tests turn: ``cuts`` transfers of large files break off half way."""

    url: str = ""
    token: str = "hf_test"
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    cuts: int = 0
    fetched: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, code: int, value: Any = None, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, what: str) -> None:
        self._answer(404, {"error": what}, X_Error_Code=what, X_Error_Message=what)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        return None if repo is None or (repo.private and not self._known()) else repo

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._information(found[1], found[2] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3])
        return self._missing("EntryNotFound")

    def _information(self, name: str, revision: str) -> None:
        if (repo := self._repo(name)) is None:
            return self._missing("RepoNotFound")
        if (found := repo.files(revision)) is None:
            return self._missing("RevisionNotFound")
        sha, files = found
        siblings = [
            {"rfilename": n, "size": len(c), "blobId": hashlib.sha1(c).hexdigest()}
            for n, c in files.items()
        ]
        self._answer(200, {"id": name, "modelId": name, "sha": sha, "private": repo.private,
                           "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def _file(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None:
            return self._missing("RepoNotFound")
        if (found := repo.files(revision)) is None:
            return self._missing("RevisionNotFound")
        sha, files = found
        if path not in files:
            return self._missing("EntryNotFound")
        content = files[path]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": sha}
        begin = 0
        if said := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin = int(said[1])
            headers["Content_Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if self.command == "GET":
            self.hub.fetched.append(f"{path}+{begin}" if begin else path)
            if self.hub.cuts and path.endswith(".safetensors"):
                self.hub.cuts -= 1
                return self._cut(content[begin:])
        self._answer(206 if begin else 200, content[begin:], **headers)

    def _cut(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def do_PUT(self) -> None:
        oid, body = self.path.rpartition("/")[2], self._body()
        if self.hub.cuts:
            self.hub.cuts -= 1
            self.close_connection = True
            self.connection.close()
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.stored[oid] = body
        self._answer(200)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.hub.asked.append(f"POST {path}")
        if not self._known():
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            repo = self.hub.repos[found[1]]
            if found[2] in repo.branches:
                return self._answer(409, {"error": "exists"})
            repo.branches[found[2]] = repo.branches["main"]
            return self._answer(200)
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            modes = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return self._answer(200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(found[1], found[2], body)
        return self._missing("EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        hidden = asked.get("private") or asked.get("visibility") == "private"
        repo = self.hub.repos[name] = Repo(bool(hidden))
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.commits[repo.branches[branch]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(branch, files)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """Serve an empty hub on this machine."""
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": made}))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
