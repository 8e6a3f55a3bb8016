"""A small Hub on this machine: the routes of huggingface.co that huggingface_hub asks to download a model.

    with serve({"org/name": Repository({"config.json": b"{}"})}) as hub:
        hub.url        # for HF_ENDPOINT
        hub.requests   # what was asked, in order

Large files (`lfs`) are redirected to a second server, as the Hub redirects them to its storage.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

LARGE = (".safetensors", ".bin", ".onnx", ".msgpack", ".h5")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    range: str | None
    storage: bool  # asked of the second server


@dataclass
class Repository:
    """Files by path; `revisions` are further commits by branch or tag. `token` opens a private or gated one.

    `tag` is the task that the Hub states.
    """

    files: Mapping[str, bytes]
    revisions: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    tag: str | None = None

    def commits(self) -> dict[str, Mapping[str, bytes]]:
        """Every branch, tag and commit hash -> its files."""
        named = {"main": self.files, **self.revisions}
        return named | {commit_of(files): files for files in named.values()}


def commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted((name, _hash(content)) for name, content in files.items())).encode()).hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Hub:
    repositories: dict[str, Repository]
    url: str = ""
    storage_url: str = ""
    requests: list[Request] = field(default_factory=list)
    breaks: dict[str, int] = field(default_factory=dict)  # file name -> close the connection after so many bytes
    status: int = 0  # answer everything with this one

    def fetched(self) -> set[str]:
        """The files whose content was asked for since the last call."""
        found = {r.path.split("/", 5)[5] for r in self.requests if r.method == "GET" and "/resolve/" in r.path}
        found |= {r.path.rsplit("?", 1)[1] for r in self.requests if r.method == "GET" and r.storage}
        self.requests.clear()
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    storage: bool

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, token, self.headers.get("range"), self.storage))
        if self.hub.status:
            self.answer(self.hub.status, b"<html>out of order</html>")
        elif self.storage:
            digest, _, name = path.lstrip("/").partition("?")
            commits = [files for r in self.hub.repositories.values() for files in r.commits().values()]
            self.content(name, next(c for files in commits for c in files.values() if _hash(c) == digest))
        else:
            self.route(urlsplit(path).path.strip("/").split("/"), token)

    def route(self, parts: list[str], token: str | None) -> None:
        """/api/models/{org}/{name}[/revision/{rev} | /tree/{rev}] and /{org}/{name}/resolve/{rev}/{file}"""
        api = parts[:2] == ["api", "models"]
        org, name, *rest = parts[2:] if api else parts
        repository = self.hub.repositories.get(f"{org}/{name}")
        if repository is None or (repository.token and not repository.gated and token != repository.token):
            self.error(401, "RepoNotFound", "Repository not found")
            return
        commits = repository.commits()
        verb, revision, *file = rest or ["revision", "main"]
        if revision not in commits:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = commits[revision]
        if verb == "revision":
            siblings = [{"rfilename": path} for path in files]
            stated = {} if repository.tag is None else {"pipeline_tag": repository.tag}
            self.json({"id": f"{org}/{name}", "sha": commit_of(files), "siblings": siblings, **stated})
        elif verb == "tree":
            self.json([self.describe(path, content) for path, content in files.items()])
        elif repository.gated and token != repository.token:
            self.error(403, "GatedRepo", "Access to this model is restricted")
        elif (path := "/".join(file)) not in files:
            self.error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit_of(files)})
        else:
            self.resolve(path, files[path], commit_of(files))

    def describe(self, path: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content)}
        entry["oid"] = hashlib.sha1(content).hexdigest()
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": _hash(content), "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, path: str, content: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit}
        if path.endswith(LARGE):
            headers |= {
                "Location": f"{self.hub.storage_url}/{_hash(content)}?{path}",
                "X-Linked-Etag": f'"{_hash(content)}"',
                "X-Linked-Size": str(len(content)),
            }
            self.answer(302, b"", headers)
        else:
            self.content(path, content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def content(self, name: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole file, or the end of it when a range is asked for."""
        start = int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        stop = self.hub.breaks.get(name) if self.command == "GET" else None
        self.answer(206 if start else 200, content[start:], {**(headers or {}), **extra}, stop)

    def json(self, data: object) -> None:
        self.answer(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def answer(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, stop: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if stop is None else body[:stop])
        if stop is not None:
            self.close_connection = True


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    hub = Hub(repositories)
    servers = []
    for storage in (False, True):
        handler = type("Handler", (_Handler,), {"hub": hub, "storage": storage})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def point_at(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let huggingface_hub ask this Hub alone, without a token, and keep what it fetches in `cache`."""
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "no_token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the retries of a broken download


def files_of(folder: Path) -> dict[str, bytes]:
    """A checkpoint's folder as the files of a repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
