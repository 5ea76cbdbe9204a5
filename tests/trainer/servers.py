"""Real servers for tests, on 127.0.0.1: an S3 gateway over a folder, a registry, and a proxy that spoils answers."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import minio
from tests.ports import free_port

from hub.faults import Fault, Faults
from localcluster import settings, tools
from localcluster.console import Console

ACCESS, SECRET = "AKIDTEST", "SECRET-of-the-tests"


@contextlib.contextmanager
def process(command: Sequence[str | Path], log: Path, port: int, **environment: str) -> Iterator[None]:
    """A server that listens on `port` until the end of the block."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        )
    try:
        _wait_until_it_listens(server, port, log)
        yield
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_it_listens(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"no server on port {port}: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")


@contextlib.contextmanager
def bucket_server(root: Path) -> Iterator[str]:
    """A versitygw whose buckets are the folders below `root`/buckets; gives its address."""
    port = free_port()
    for name in ("buckets", "accounts", "metadata"):
        (root / name).mkdir(parents=True)
    program = tools.ensure(tools.VERSITYGW, settings.cache_directory(), Console()) / "versitygw"
    command: list[str | Path] = [
        program,
        "--port",
        f"127.0.0.1:{port}",
        "--access",
        ACCESS,
        "--secret",
        SECRET,
        "--quiet",
    ]
    command += ["--iam-dir", root / "accounts", "posix", "--sidecar", root / "metadata", root / "buckets"]
    with process(command, root / "versitygw.log", port):
        yield f"http://127.0.0.1:{port}"


def client(address: str) -> minio.Minio:
    """An administrator's client of a bucket server."""
    host = address.removeprefix("http://")
    return minio.Minio(endpoint=host, access_key=ACCESS, secret_key=SECRET, secure=False, region="us-east-1")


HTPASSWD = "pusher:$2b$04$wYVyVybMIVtKR3kJ90llNOuDaUgTs9Fxlqze.CjOdd7/t4By0weJ2"
"""Of the password `PASSWORD-of-the-tests`."""


@contextlib.contextmanager
def registry_server(root: Path, *, htpasswd: str | None = None) -> Iterator[str]:
    """A docker-registry; gives its host and port. With `htpasswd` it asks for a name and a password."""
    port = free_port()
    root.mkdir(parents=True)
    config = [
        "version: 0.1",
        f"http: {{addr: '127.0.0.1:{port}'}}",
        f"storage: {{filesystem: {{rootdirectory: '{root / 'store'}'}}, delete: {{enabled: true}}}}",
        "log: {level: error}",
    ]
    if htpasswd is not None:
        (root / "htpasswd").write_text(htpasswd, encoding="utf-8")
        config.append(f"auth: {{htpasswd: {{realm: tests, path: '{root / 'htpasswd'}'}}}}")
    (root / "registry.yaml").write_text("\n".join(config), encoding="utf-8")
    with process(["docker-registry", "serve", root / "registry.yaml"], root / "registry.log", port):
        yield f"127.0.0.1:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for."""

    path: str
    authorization: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A server with one answer to every GET, and what it was asked."""

    url: str
    requests: list[Request]


@contextlib.contextmanager
def answering(document: object) -> Iterator[Answering]:
    """Answer every GET with this JSON."""
    asked: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(Request(path=self.path, authorization=self.headers.get("Authorization", "")))
            body = json.dumps(document).encode()
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Answering(url=f"http://127.0.0.1:{server.server_address[1]}", requests=asked)
    finally:
        server.shutdown()
        server.server_close()


class Proxy:
    """Passes requests on to `upstream` and spoils the answers that a fault hits; `with Proxy(url) as proxy:`.

    With a certificate (a file with its key) it speaks TLS.
    """

    def __init__(self, upstream: str, certificate: Path | None = None) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.faults = Faults()
        self.requests: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._server = _ProxyServer(("127.0.0.1", 0), self)
        self._scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def inject(self, fault: Fault) -> None:
        """Queue a fault."""
        self.faults.add(fault)

    def count(self, method: str, part: str = "") -> int:
        """Requests of a method whose path holds `part`."""
        return sum(n for name, n in self.requests.items() if name.startswith(f"{method} ") and part in name)

    def sent(self, part: str) -> int:
        """Bytes of answers to GET whose path holds `part`."""
        return sum(n for name, n in self.received.items() if name.startswith("GET ") and part in name)

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _ProxyServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        super().__init__(address, _ProxyHandler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up here on purpose."""


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _ProxyServer

    def pass_on(self) -> None:
        """Answer a request of any method."""
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = f"{self.command} {self.path}"
        with proxy.lock:
            proxy.requests[name] += 1
        fault = proxy.faults.take(self.command, self.path)
        if fault is not None and fault.status is not None:
            self._answer(fault.status, {"Content-Type": "text/plain", **fault.headers}, b"injected")
            return
        # A whole address on the request line: somebody takes this for the proxy to a host that does not exist.
        path = self.path.removeprefix(f"http://{urlsplit(self.path).netloc}")
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
        upstream.request(self.command, path, body=body or None, headers=dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault is not None and fault.flip_byte is not None and content:
            at = fault.flip_byte % len(content)
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        keep = None if fault is None else fault.cut_after_bytes
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in {"transfer-encoding", "connection"}}
        with proxy.lock:
            proxy.received[name] += len(content if keep is None else content[:keep])
        self._answer(answer.status, headers, content, keep)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, keep: int | None = None) -> None:
        self.send_response_only(status)
        for header, value in headers.items():
            if header.lower() != "content-length" or self.command == "HEAD":
                self.send_header(header, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if keep is None else content[:keep])
        if keep is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Keep quiet."""


@contextlib.contextmanager
def full_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A file system of a few KiB in memory, as `folder`; needs root, as the project's tests do."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


for _method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"):
    setattr(_ProxyHandler, f"do_{_method}", _ProxyHandler.pass_on)
