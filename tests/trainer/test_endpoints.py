"""The pages of a running trainer, as the kubelet, the operator and Prometheus ask for them."""

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from lora_trainer.host import endpoints
from lora_trainer.host.endpoints import MOST_AT_ONCE, serve

HOSTS = ("127.0.0.1", *(("[::1]",) if socket.has_dualstack_ipv6() else ()))


@pytest.mark.parametrize("host", HOSTS)
def test_pages_are_served_to_either_kind_of_address(host: str) -> None:
    """In a cluster of IPv6 alone the probe would else have every healthy pod killed."""
    server = serve(0, {"/healthz": lambda: ("text/plain", b"ok\n"), "/sick": lambda: None})
    assert server is not None
    try:
        with urllib.request.urlopen(f"http://{host}:{server.server_port}/healthz", timeout=300) as answer:
            assert answer.read() == b"ok\n"
        for path, status in (("sick", 503), ("none", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://{host}:{server.server_port}/{path}", timeout=300)
            assert caught.value.code == status
            caught.value.close()
        assert serve(server.server_port, {}) is None, "a port that is taken is no reason to fail"
    finally:
        server.shutdown()
        server.server_close()


def test_connections_that_ask_for_nothing_take_no_more_threads_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without network policies each pod of the cluster can open them, and the kubelet kills a pod without an answer."""
    monkeypatch.setattr(endpoints._Handler, "timeout", 600)
    before = threading.active_count()
    server = serve(0, {"/healthz": lambda: ("text/plain", b"ok\n")})
    assert server is not None
    with contextlib.ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        address = ("127.0.0.1", server.server_port)
        silent = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(3 * MOST_AT_ONCE)]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/healthz", timeout=300) as answer:
                assert answer.read() == b"ok\n"
        assert [one.recv(1) for one in silent[:MOST_AT_ONCE]] == [b""] * MOST_AT_ONCE, "the oldest are ended"
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)
        end_s = time.monotonic() + 60
        while threading.active_count() > before + 1 + MOST_AT_ONCE:
            assert time.monotonic() < end_s
            time.sleep(0.01)
