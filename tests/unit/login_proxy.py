"""A proxy that wants a user and a password, and is the server behind it, too."""

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER, PASSWORD = "bob", "s#cret/é"
LOGIN = "bob:s%23cret%2F%C3%A9"
"""Both, as they stand in an address."""
_HEADER = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """What is asked for without TLS."""
        self._answer(200)

    def do_CONNECT(self) -> None:
        """A tunnel, which ends here."""
        self._answer(502)

    def _answer(self, status: int) -> None:
        known = self.headers.get("Proxy-Authorization") == _HEADER
        self.server.answers.append((self.command, known))  # type: ignore[attr-defined]
        self.send_response(status if known else 407)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Keep quiet."""


@contextmanager
def login_proxy() -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Its address, without a login, and the method of each request with whether that had one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    answers: list[tuple[str, bool]] = []
    server.answers = answers  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", answers
    finally:
        server.shutdown()
        server.server_close()
