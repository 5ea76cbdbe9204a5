"""What is denied is mended by a Secret on a cluster, and by the environment where there is none."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.servers import Proxy

from hub.faults import Fault
from lora_trainer.errors import TrainerError, TransientError
from lora_trainer.spec.uri import HubUri, OciUri, S3Uri
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.oci import Registry
from lora_trainer.storage.publisher_hub import HubPublisher
from lora_trainer.storage.roles import Role
from lora_trainer.storage.s3 import connect

Ask = Callable[[str, Path], object]
REPOSITORY = HubUri(repo="org/tiny")


def hub(address: str, home: Path) -> Hub:
    """A client without a token, which does not wait."""
    return Hub(environment={"HF_ENDPOINT": address}, cache=home, sleep=lambda seconds: None)


def ask_hub(address: str, home: Path) -> object:
    """For a model."""
    return hub(address, home).repository(REPOSITORY, Role.MODEL)


def publish_there(address: str, home: Path) -> None:
    """Whether a result may be."""
    HubPublisher(hub=hub(address, home), uri=REPOSITORY, uid="uid-1", run_name="run").check()


def ask_with_two_words(_address: str, home: Path) -> object:
    """For nothing, since that is no token."""
    return Hub(environment={"HF_TOKEN": "hf_a b"}, cache=home, sleep=lambda seconds: None).token(Role.MODEL)


def publish_as(who: Mapping[str, Any]) -> Ask:
    """Whether its owner may publish."""

    def ask(_address: str, home: Path) -> object:
        known = Hub(environment={"HF_TOKEN": "hf_a"}, cache=home, sleep=lambda seconds: None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Hub, "call", lambda *_, **__: who)
            HubPublisher(hub=known, uri=REPOSITORY, uid="uid-1", run_name="run").check()
        return None

    return ask


def ask_bucket(address: str, _home: Path) -> object:
    """For an object."""
    connection = connect(Role.DATASET, {"AWS_ENDPOINT_URL_S3": address}, backoff_s=0.01)
    return connection.items(S3Uri(bucket="data", key="chats"))


def ask_with_half_a_pair(address: str, _home: Path) -> object:
    """For nothing, since the other key is missing."""
    return connect(Role.DATASET, {"AWS_ENDPOINT_URL_S3": address, "AWS_ACCESS_KEY_ID": "AKID"})


def ask_registry(address: str, _home: Path) -> object:
    """For a tag."""
    host = address.removeprefix("http://")
    return Registry(
        OciUri(registry=host, repository="a/b", tag="v1"), {"LORA_OCI_PLAIN_HTTP": host}, backoff_s=0.01
    ).manifest("v1")


@pytest.mark.parametrize(
    ("ask", "status", "what"),
    [
        (ask_hub, 401, "HF_TOKEN"),
        (ask_hub, 404, "HF_TOKEN"),
        (ask_hub, 429, "HF_TOKEN"),
        (publish_there, 401, "HF_TOKEN"),
        (ask_with_two_words, 401, "HF_TOKEN"),
        (publish_as({"auth": {"accessToken": {"role": "read"}}}), 401, "HF_TOKEN"),
        (publish_as({"name": "bob"}), 401, "HF_TOKEN"),
        (ask_bucket, 403, "them"),
        (ask_with_half_a_pair, 403, "it"),
        (ask_registry, 403, "OUTPUT_DOCKER_CONFIG_JSON"),
    ],
)
def test_without_a_cluster_credentials_go_into_the_environment(
    ask: Ask, status: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Secret is nothing there, and what `hf auth login` and the like stored is not sent; in a pod none of that is."""

    def said() -> str:
        with pytest.raises(TrainerError) as caught:
            ask(server.url, tmp_path)
        return str(caught.value)

    with Proxy("http://127.0.0.1:9") as server:
        server.inject(Fault(path="*", status=status, times=None))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        on_a_cluster = said()
        assert "secretRef" in on_a_cluster
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
        by_hand = f"; without a cluster set {what} in the environment (a stored login is not used)"
        assert said() == on_a_cluster + by_hand


@pytest.mark.parametrize(
    ("ask", "value"),
    [
        (ask_hub, "config.hubEndpoint"),
        (ask_bucket, "config.s3Endpoint"),
        (ask_registry, "config.ociPlainHTTPRegistries"),
    ],
)
def test_in_a_pod_a_server_out_of_reach_is_a_matter_of_the_chart(
    ask: Ask, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever creates a run sets no variable there."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(TransientError) as caught:
        ask("http://127.0.0.1:9", tmp_path)
    said = str(caught.value)
    assert f"have the administrator set {value} " in said
    assert "(defaults.environment)" in said
    assert not [name for name in ("HF_ENDPOINT", "AWS_ENDPOINT_URL_S3", "LORA_OCI_PLAIN_HTTP") if name in said]
