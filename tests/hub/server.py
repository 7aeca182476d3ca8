"""The parts of the Hugging Face hub that downloads use, on loopback, with faults.

    with Hub() as hub:
        revision = hub.add("model", "owner/name", {"config.json": b"{}", "model.safetensors": weights})
        hub.fault(r"/resolve/.*safetensors", Reset(after=1000), times=2)
        ...                                    # HF_ENDPOINT=hub.endpoint
        hub.requests                           # what was asked for

Served: revision, tree (in pages) and paths-info of the API, and resolve with ETag, X-Repo-Commit, X-Linked-Size,
X-Linked-Etag and Range. Files that end as `LFS` says lie on a second server, the CDN: resolve redirects to an address
there whose signature holds for `hub.signature_s` seconds. A repository may be gated or private; `hub.tokens` maps
tokens to the repositories that they may read.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".parquet", ".bin", ".gz", ".zst", ".model")
PAGE_FILES = 1000
_CHUNK = 1 << 16


@dataclass
class Status:
    """An answer of this code in place of the content."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Reset:
    """The connection is reset when `after` bytes of the body were sent."""

    after: int = 0


@dataclass
class Truncate:
    """The connection is closed in good order when `after` bytes of the body were sent."""

    after: int = 0


@dataclass
class Corrupt:
    """Some bytes in the middle of the body are flipped."""


@dataclass
class Hang:
    """Nothing is sent for `seconds` when `after` bytes of the body were."""

    seconds: float
    after: int = 0


@dataclass
class IgnoreRange:
    """The whole content comes whatever range was asked for."""


@dataclass
class Drip:
    """The body comes in pieces of `size` bytes, `seconds` apart."""

    size: int
    seconds: float


Fault = Status | Reset | Truncate | Corrupt | Hang | IgnoreRange | Drip


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `host` is "hub" or "cdn"."""

    host: str
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class _Repository:
    revision: str
    files: dict[str, bytes]
    access: str = "open"
    lfs: tuple[str, ...] = LFS

    def entry(self, name: str) -> dict[str, Any]:
        """A file as the tree lists it."""
        data = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": name}
        if name.endswith(self.lfs):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    fault: Fault
    times: float
    skip: int


class Hub:
    """A hub and its CDN, each on a port of loopback of its own, from `with` to its end."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.tokens: dict[str, set[str]] = {}
        self.signature_s = 3600.0
        self._repositories: dict[tuple[str, str], _Repository] = {}
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._servers = [_Server(("127.0.0.1", 0), host, self) for host in ("hub", "cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def add(
        self, kind: str, repo: str, files: dict[str, bytes], access: str = "open", lfs: tuple[str, ...] = LFS
    ) -> str:
        """Publish a repository ("model" or "dataset"; open, gated or private) and return its commit.

        Files whose names end in one of `lfs` are on the CDN.
        """
        content = json.dumps([kind, repo, {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}])
        revision = hashlib.sha1(content.encode()).hexdigest()
        self._repositories[f"{kind}s", repo] = _Repository(revision, dict(files), access, lfs)
        return revision

    def fault(self, pattern: str, fault: Fault, times: float = 1, skip: int = 0) -> None:
        """Answer the next `times` requests whose "METHOD host path" matches `pattern` so, `skip` of them left out."""
        self._rules.append(_Rule(re.compile(pattern), fault, times, skip))

    def heal(self) -> None:
        """Forget all faults and requests."""
        self._rules.clear()
        self.requests.clear()

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose "METHOD host path" matches `pattern`."""
        return [r for r in self.requests if re.search(pattern, f"{r.method} {r.host} {r.path}")]

    def repository(self, kind: str, repo: str) -> _Repository | None:
        """What was published under this name."""
        return self._repositories.get((kind, repo))

    def note(self, request: Request) -> Fault | None:
        """Record a request and return the fault that it meets."""
        with self._lock:
            self.requests.append(request)
            for rule in self._rules:
                if rule.times > 0 and rule.pattern.search(f"{request.method} {request.host} {request.path}"):
                    if rule.skip > 0:
                        rule.skip -= 1
                        continue
                    rule.times -= 1
                    return rule.fault
        return None

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], host: str, hub: Hub):
        self.host = host
        self.hub = hub
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that a test stopped say nothing."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        token = authorization.removeprefix("Bearer ") or None
        fault = self.server.hub.note(
            Request(self.server.host, self.command, self.path, self.headers.get("Range"), token)
        )
        if isinstance(fault, Status):
            self._json({"error": "fault"}, fault.code, **fault.headers)
        elif self.server.host == "cdn":
            self._stored(fault)
        else:
            self._hub(token, body, fault)

    do_HEAD = do_POST = do_GET

    def _hub(self, token: str | None, body: bytes, fault: Fault | None) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        api = re.fullmatch(
            r"/api/(datasets|models)/([^/]+/[^/]+)/(revision|tree|paths-info)/([0-9a-z]+)(?:/(.*))?", path
        )
        resolve = re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([0-9a-z]+)/(.+)", path)
        if api:
            kind, repo, what, revision, below = api.groups()
        elif resolve:
            kind, repo, revision, below = resolve.groups()
            kind, what = kind or "models", "resolve"
        else:
            self._refuse(404, "EntryNotFound", "no such page")
            return
        found = self._readable(kind, repo, token, revision)
        if found is None:
            return
        if what == "revision":
            siblings = [{"rfilename": name} for name in sorted(found.files)]
            self._json({"_id": "0", "id": repo, "sha": found.revision, "private": False, "siblings": siblings})
        elif what == "tree":
            self._tree(address.path, found, query, fault)
        elif what == "paths-info":
            names = json.loads(body)["paths"]
            self._json([found.entry(name) for name in names if name in found.files])
        elif below not in found.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._resolve(address.path, found, below, fault)

    def _readable(self, kind: str, repo: str, token: str | None, revision: str) -> _Repository | None:
        """The repository if this token may read it at this revision; refuses and returns None otherwise."""
        hub = self.server.hub
        found = hub.repository(kind, repo)
        if token is not None and token not in hub.tokens:
            self._refuse(401, None, "Invalid credentials in Authorization header")
            return None
        allowed = token is not None and repo in hub.tokens[token]
        if found is None or (found.access == "private" and not allowed):
            self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
        elif found.access == "gated" and not allowed:
            self._refuse(401 if token is None else 403, "GatedRepo", "Access to this repository is restricted.")
        elif revision not in (found.revision, "main"):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return found
        return None

    def _tree(self, path: str, found: _Repository, query: dict[str, list[str]], fault: Fault | None) -> None:
        first = int(query.get("cursor", ["0"])[0])
        names = sorted(found.files)
        folders = sorted({name.rpartition("/")[0] for name in names if "/" in name}) if first == 0 else []
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]
        entries += [found.entry(name) for name in names[first : first + PAGE_FILES]]
        headers = {}
        if first + PAGE_FILES < len(names):
            address = f"{self.server.hub.endpoint}{path}?recursive=true&cursor={first + PAGE_FILES}"
            headers["Link"] = f'<{address}>; rel="next"'
        self._send(json.dumps(entries).encode(), {"Content-Type": "application/json"} | headers, fault)

    def _resolve(self, path: str, found: _Repository, name: str, fault: Fault | None) -> None:
        entry = found.entry(name)
        headers = {"X-Repo-Commit": found.revision, "Accept-Ranges": "bytes"}
        if "lfs" not in entry:
            self._send(found.files[name], headers | {"ETag": f'"{entry["oid"]}"'}, fault)
            return
        expires = time.time() + self.server.hub.signature_s
        self.send_response(302)
        self.send_header("Location", f"{self.server.hub.cdn}{path}?Expires={expires:.3f}&Signature=c2VjcmV0")
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("X-Linked-Size", str(entry["size"]))
        self.send_header("X-Linked-Etag", f'"{entry["lfs"]["oid"]}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _stored(self, fault: Fault | None) -> None:
        address = urlsplit(self.path)
        match = re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", unquote(address.path))
        if float(parse_qs(address.query)["Expires"][0]) < time.time() or match is None:
            self._json({"error": "Request has expired"}, 403)
            return
        kind, repo, name = match.groups()
        found = self.server.hub.repository(kind or "models", repo)
        assert found is not None
        digest = hashlib.sha256(found.files[name]).hexdigest()
        self._send(found.files[name], {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}, fault)

    def _send(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        start, code = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and not isinstance(fault, IgnoreRange):
            start, code = int(wanted[1]), 206
            if start >= len(content):
                self._json({}, 416, **{"Content-Range": f"bytes */{len(content)}"})
                return
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        if isinstance(fault, Corrupt):
            middle = len(body) // 2
            body = body[:middle] + bytes(byte ^ 255 for byte in body[middle : middle + 64]) + body[middle + 64 :]
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(body, fault)

    def _write(self, body: bytes, fault: Fault | None) -> None:
        sent = getattr(fault, "after", len(body))
        size, seconds = (fault.size, fault.seconds) if isinstance(fault, Drip) else (_CHUNK, 0.0)
        for first in range(0, sent, size):
            self.wfile.write(body[first : min(first + size, sent)])
            time.sleep(seconds)
        if isinstance(fault, Hang):
            time.sleep(fault.seconds)
            self.wfile.write(body[sent:])
        if isinstance(fault, Reset):
            # A linger time of zero sends a reset in place of the end of the stream.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if isinstance(fault, Reset | Truncate):
            self.close_connection = True

    def _refuse(self, code: int, error: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": error} if error else {})
        self._json({"error": message}, code, **headers)

    def _json(self, value: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for key, text in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
