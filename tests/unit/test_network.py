"""Connections of the trainer to buckets, registries and large files of the Hub."""

import pytest
import urllib3
from tests.unit.login_proxy import LOGIN, login_proxy

from lora_trainer.storage.network import http_pool


def test_a_proxy_gets_the_login_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what goes through it as it is, and for tunnels; urllib3 leaves that to its users."""
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with login_proxy() as (address, answers):
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{LOGIN}@{address}")
        assert http_pool("http://bucket.example").request("GET", "http://bucket.example/x", retries=False).status == 200
        with pytest.raises(urllib3.exceptions.ProxyError, match="502"):
            http_pool("https://bucket.example").request("GET", "https://bucket.example/x", retries=False)
    assert answers == [("GET", True), ("CONNECT", True)]
