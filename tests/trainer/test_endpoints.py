"""The pages of a running trainer, as the kubelet, the operator and Prometheus ask for them."""

import socket
import urllib.error
import urllib.request

import pytest

from lora_trainer.host.endpoints import serve

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
