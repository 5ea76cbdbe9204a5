"""`/progress`, `/metrics` and `/healthz` of a running trainer."""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

log = logging.getLogger(__name__)
Page = Callable[[], tuple[str, bytes] | None]
"""Gives the content type and the body of a page, or None where the trainer is not well (503)."""
MOST_AT_ONCE = 32
"""The most connections that are open at once. Each has a thread, and whoever reaches the pod can open one."""


class _Handler(BaseHTTPRequestHandler):
    pages: Mapping[str, Page]
    timeout = 10

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(404)
            return
        content = page()
        if content is None:
            self.send_error(503)
            return
        content_type, body = content
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of http.server
        log.debug(format, *args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    # A pod's address is of either kind, by the cluster.
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, handler: type[_Handler]) -> None:
        self._open: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__(("", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See `ThreadingHTTPServer`. Of too many connections the oldest is ended, so that silent ones keep nobody out,
        such as the kubelet's probe."""
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > MOST_AT_ONCE else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """See `TCPServer`: each request ends so."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        """See `HTTPServer`."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that went away in mid-answer is its own business and no reason for a stack trace in the log.
        log.debug("request of %s failed", client_address, exc_info=True)


def serve(port: int, pages: Mapping[str, Page]) -> ThreadingHTTPServer | None:
    """Serve in the background until `shutdown`; None, with a warning, where the port is taken: a run needs no port."""
    handler = type("Handler", (_Handler,), {"pages": dict(pages)})
    try:
        server = _Server(port, handler)
    except OSError as error:
        log.warning("no /progress and /metrics on port %d: %s", port, error.strerror)
        return None
    threading.Thread(target=server.serve_forever, name="endpoints", daemon=True).start()
    return server
