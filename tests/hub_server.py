"""A hub on the loopback interface: the endpoints that reading a checkpoint needs, and ways to misbehave."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from dogfit.checkpoints import HubConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves and how; tests change the fields while it runs."""

    repositories: dict[str, dict[str, bytes]]
    """Repository -> file name -> content; one commit, known as `main` and `v1`."""
    ranges: bool = True
    """False: the server answers every GET with the whole file."""
    fail: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers for the next requests for files, one each."""
    fail_always: tuple[int, dict[str, str]] | None = None
    fail_api: tuple[int, dict[str, str]] | None = None
    """The same for requests for the listing of a repository."""
    cut: int = 0
    """How many of the next file requests are cut off half way."""
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range header of every request."""
    sent: int = 0
    """Bytes of file contents sent."""
    endpoint: str = ""
    """Address of the running server."""
    config: HubConfig | None = None
    """How dogfit is to read from it."""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the hub on a free port; `hub.endpoint` is its address."""

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.state
        path = unquote(self.path.split("?")[0])
        hub.log.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/"))
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if hub.fail_always or hub.fail:
            return self._fail(*(hub.fail_always or hub.fail.pop(0)))
        if revision not in (COMMIT, "main", "v1"):
            return self._fail(404, {"X-Error-Code": "RevisionNotFound"})
        content = hub.repositories.get(repository, {}).get(name)
        if content is None:
            return self._fail(404, {"X-Error-Code": "EntryNotFound"})
        return self._file(content, body)

    def _api(self, path: str) -> None:
        hub = self.state
        repository, _, revision = path.partition("/revision/")
        if hub.fail_api:
            return self._fail(*hub.fail_api)
        if repository not in hub.repositories:
            return self._fail(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("", COMMIT, "main", "v1"):
            return self._fail(404, {"X-Error-Code": "RevisionNotFound"})
        record = {
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "tags": ["timm", "license:apache-2.0"],
            "siblings": [{"rfilename": name} for name in hub.repositories[repository]],
        }
        return self._send(200, json.dumps(record).encode(), {"Content-Type": "application/json"})

    def _file(self, content: bytes, body: bool) -> None:
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        span = self.headers.get("Range")
        if span is None or not self.state.ranges:
            return self._send(200, content, headers, body)
        first, last = span.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, content[start:stop], headers, body)

    def _fail(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, b"", headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body or not content:
            return
        if self.state.cut and "X-Repo-Commit" in headers:
            self.state.cut -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        if "X-Repo-Commit" in headers:
            self.state.sent += len(content)
        self.wfile.write(content)
