"""A hub on this computer: the model hub's own URL layout and headers, and faults on demand.

`python -m tests.hub FOLDER [--port N]` serves `FOLDER/<owner>/<name>/…`; benchmarks run it as a process of its own.
"""

import argparse
import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

_BLOCK_BYTES = 1 << 18
LFS_BYTES = 1000  # smaller files are served from the repository itself, as text files are


class Fault(NamedTuple):
    """What goes wrong with one request. `after` is in bytes of its body, `seconds` is a pause or a Retry-After.

    `again` ignores the range and cuts; `silent` answers nothing at all.
    """

    kind: Literal[
        "cut", "stall", "corrupt", "truncate", "longer", "status", "again", "no_range", "wrong_range", "silent"
    ]
    after: int = 0
    seconds: float = 0.0
    status: int = 503


class Asked(NamedTuple):
    """One request that came."""

    method: str
    path: str
    host: str
    range: str | None
    authorization: str | None


class Repo(NamedTuple):
    commit: str
    files: dict[str, bytes]
    sha256: dict[str, str]


Choose = Callable[[Asked], Fault | None]


class Hub:
    """Serves from construction to `close`. `faults` are taken by the next requests for bytes, in their order."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.choose: Choose | None = None
        self.token: str | None = None
        self.bytes_per_s: float | None = None
        self.headers: dict[str, str] = {}
        self.gone = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Publish a repository, or a new commit of it; returns the commit, which `main` then names."""
        sha256 = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        commit = hashlib.sha1(f"{name}{json.dumps(sha256)}".encode()).hexdigest()
        with self._lock:
            self.repos[f"{name}@{commit}"] = Repo(commit, files, sha256)
            self.refs[name, "main"] = commit
        return commit

    def take_fault(self, asked: Asked) -> Fault | None:
        """The fault for a request for bytes."""
        with self._lock:
            if self.faults:
                return self.faults.pop(0)
        return self.choose(asked) if self.choose else None

    def count(self, path: str, sent: int) -> None:
        with self._lock:
            self.sent[path] = self.sent.get(path, 0) + sent

    def total_sent(self) -> int:
        """Bytes of file content that left, over all requests."""
        with self._lock:
            return sum(self.sent.values())

    def close(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def git_sha1(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client was killed: that is what the tests are about
            self.close_connection = True

    def _answer(self) -> None:
        # As a proxy, it is asked for whole addresses; they are all its own.
        path = unquote(re.sub(r"^http://[^/]+", "", self.path).split("?")[0])
        asked = Asked(self.command, path, self.headers["Host"], self.headers["Range"], self.headers["Authorization"])
        self.hub.asked.append(asked)
        if match := re.fullmatch(r"/api/models/(.+)/revision/([^/]+)", path):
            self._revision(match[1], match[2])
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(asked, *match.groups())
        elif match := re.fullmatch(r"/lfs/([^@]+)@([0-9a-f]{40})/(.+)", path):
            self._content(asked, self.hub.repos[f"{match[1]}@{match[2]}"].files[match[3]], match[3], {})
        else:
            self._refuse(404, "RepoNotFound")

    def _find(self, name: str, revision: str) -> Repo | None:
        """The repository at a revision, or None after the refusal was sent."""
        if self.hub.token and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            return self._refuse(401, "GatedRepo")
        if (name, "main") not in self.hub.refs:
            return self._refuse(404, "RepoNotFound")
        repo = self.hub.repos.get(f"{name}@{self.hub.refs.get((name, revision), revision)}")
        return repo or self._refuse(404, "RevisionNotFound")

    def _revision(self, name: str, revision: str) -> None:
        if repo := self._find(name, revision):
            siblings = [{"rfilename": path} for path in repo.files]
            self._send(200, json.dumps({"id": name, "sha": repo.commit, "siblings": siblings}).encode())

    def _resolve(self, asked: Asked, name: str, revision: str, path: str) -> None:
        repo = self._find(name, revision)
        if repo is None:
            return
        if path not in repo.files:
            return self._refuse(404, "EntryNotFound")
        content = repo.files[path]
        headers = {"X-Repo-Commit": repo.commit} | self.hub.headers
        if len(content) < LFS_BYTES:
            return self._content(asked, content, path, {"ETag": f'"{git_sha1(content)}"'} | headers)
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
        headers = {
            "Location": f"{elsewhere}/lfs/{name}@{repo.commit}/{path}",
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{repo.sha256[path]}"',
        } | headers
        self._send(302, b"", headers)

    def _content(self, asked: Asked, content: bytes, path: str, headers: dict[str, str]) -> None:
        if asked.method == "HEAD":
            return self._send(200, content, headers)
        fault = self.hub.take_fault(asked)
        match fault.kind if fault else "":
            case "status":
                assert fault
                after = {"Retry-After": f"{fault.seconds:g}"} if fault.seconds else {}
                return self._send(fault.status, b"", after)
            case "silent":
                self.hub.gone.wait(fault.seconds if fault else 0)
                self.close_connection = True
                return
        start, code = 0, 200
        if (match := re.fullmatch(r"bytes=(\d+)-", asked.range or "")) and (
            not fault or fault.kind not in ("no_range", "again")
        ):
            start, code = int(match[1]), 206
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            shown = start + 1 if fault and fault.kind == "wrong_range" else start
            headers = {"Content-Range": f"bytes {shown}-{len(content) - 1}/{len(content)}"} | headers
        self._body(code, memoryview(content)[start:], path, headers, fault)

    def _body(self, code: int, body: memoryview, path: str, headers: dict[str, str], fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        limit = min(fault.after, len(body)) if fault else len(body)
        length = limit if kind == "truncate" else len(body) + (10 if kind == "longer" else 0)
        self.send_response(code)
        for key, value in {"Content-Length": str(length), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if kind == "corrupt":
            changed = bytearray(body)
            if changed:
                changed[min(limit, len(changed) - 1)] ^= 0xFF
            body = memoryview(changed)
        self._write(body[:limit] if kind in ("cut", "again", "stall", "truncate") else body, path)
        if kind == "stall" and fault:
            self.hub.gone.wait(fault.seconds)
        if kind in ("cut", "again", "stall", "longer"):
            self.close_connection = True

    def _write(self, body: memoryview, path: str) -> None:
        rate = self.hub.bytes_per_s
        block = min(_BLOCK_BYTES, max(1024, int(rate / 100))) if rate else _BLOCK_BYTES
        for begin in range(0, len(body), block):
            piece = body[begin : begin + block]
            self.wfile.write(piece)
            self.hub.count(path, len(piece))
            if rate and self.hub.gone.wait(len(piece) / rate):
                return

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, code: int, reason: str) -> None:
        self._send(code, json.dumps({"error": reason}).encode(), {"X-Error-Code": reason, "X-Error-Message": reason})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    hub = Hub(arguments.port)
    for folder in arguments.folder.glob("*/*"):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        name = f"{folder.parent.name}/{folder.name}"
        print(json.dumps({"repo": name, "commit": hub.add(name, files)}), flush=True)
    print(json.dumps({"url": hub.url}), flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
