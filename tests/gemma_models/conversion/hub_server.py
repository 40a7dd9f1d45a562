"""A server that speaks what of the Hugging Face hub a download needs: a revision's commit, its files, and each file."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_" + "s3cret" * 6
COMMIT = "c0ffee" * 6 + "abcd"


@dataclass
class Hub:
    """``models``: folders by name. ``gated``: open to TOKEN alone. ``cut``: how many times a file breaks off half-way.

    ``held``: while it is clear, the second half of weights is not sent. ``seen``: (method, path, range) of each
    request.
    """

    endpoint: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    held: threading.Event = field(default_factory=threading.Event)
    halfway: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)

    def got(self, name: str) -> list[str | None]:
        """The ranges in which a file was asked for."""
        return [span for method, path, span in self.seen if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def hub() -> Iterator[Hub]:
    state = Hub()
    state.held.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            state.seen.append((self.command, self.path, self.headers.get("Range")))
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([\w-]+/[\w.-]+)(?:/(revision|tree)/(.+))?", path):
                name, kind, revision = found.groups()
                if self.refused(name, revision):
                    return
                folder = state.models[name]
                files = [entry(path) for path in sorted(folder.iterdir())]
                self.send(json.dumps(files if kind == "tree" else {"id": name, "sha": COMMIT, "siblings": []}).encode())
            elif found := re.fullmatch(r"/([\w-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
                name, revision, file = found.groups()
                if not self.refused(name, revision):
                    self.send((state.models[name] / file).read_bytes(), file)
            else:
                self.send(b"", status=404)

        def refused(self, name: str, revision: str | None) -> bool:
            given = self.headers.get("Authorization")
            if given not in (None, f"Bearer {TOKEN}", "Bearer hf_other"):
                self.send(b"", status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
            elif name in state.gated and given != f"Bearer {TOKEN}":
                headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted."}
                self.send(b"", status=401 if given is None else 403, headers=headers)
            elif name not in state.models:  # what is private and what is not there are the same to a stranger
                code = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                self.send(b"", status=401 if given is None else 404, headers=code)
            elif revision not in (None, "main", COMMIT):
                code = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
                self.send(b"", status=404, headers=code)
            else:
                return False
            return True

        def send(
            self, body: bytes, file: str | None = None, status: int = 200, headers: dict[str, str] | None = None
        ) -> None:
            sent, span = body, re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if file is not None and span:
                status, sent = 206, body[int(span[1]) :]
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if file is not None:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {span[1]}-{len(body) - 1}/{len(body)}")  # type: ignore[index]
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if self.command == "HEAD":
                return
            half = len(sent) // 2
            if file is not None and state.cut.get(file):
                state.cut[file] -= 1
                self.wfile.write(sent[:half])
                self.close_connection = True
                return
            if file is not None and file.endswith(".safetensors") and not state.held.is_set():
                self.wfile.write(sent[:half])
                self.wfile.flush()
                state.halfway.set()
                state.held.wait(30)
                sent = sent[half:]
            self.wfile.write(sent)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.held.set()
        server.shutdown()
        server.server_close()
        thread.join()


def entry(path: Path) -> dict[str, object]:
    body = path.read_bytes()
    return {"type": "file", "path": path.name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}  # noqa: S324
