"""What answers in the API server's place, or breaks off: its cause and what to do, in one sentence."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.certificates import make_certificate
from tests.unit.client.test_commands import kubeconfig

from lora_client.__main__ import main

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def answering(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            """Keep quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Keep quiet."""

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def page(code: int, **headers: str) -> Answer:
    """A login page, or the way to one."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = b"<html>log in</html>"
        handler.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def cut(handler: BaseHTTPRequestHandler) -> None:
    """No answer: the connection ends."""
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        (page(200, Content_Type="text/html; charset=utf-8"), " answers with text/html, which no API server does: a p"),
        (page(200), " answers with no content type, which no API server does: a proxy or a login page is in between;"),
        (page(302, Location="https://sso.example/x?y"), " is redirected to sso.example: a proxy or a login page is in"),
        (cut, " does not answer (it closed the connection): check the network and the context"),
    ],
)
def test_what_is_in_between_is_named(
    answer: Answer,
    want: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not taken for an empty run, nor for a defect of the client."""
    with answering(answer) as port:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}")))
        assert main(["list"]) == main(["status", "tone"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert f"http://127.0.0.1:{port}{want}" in first
    assert first == second


def test_a_name_that_nobody_knows_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words, not in those of Python."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", "http://no-such-host.invalid")))
    assert main(["list"]) == 1
    assert "no-such-host.invalid does not answer (its name cannot be resolved): check" in capsys.readouterr().err


def test_a_certificate_that_is_not_trusted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server answers, so that neither the network nor the context is to blame."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path))
    with answering(page(200), context) as port:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", f"https://127.0.0.1:{port}")))
        assert main(["watch", "tone"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"The API server https://127.0.0.1:{port} cannot be asked, since the server's certificate is not" in line
    assert "self-signed certificate): name its authority in the kubeconfig (certificate-authority)" in line
