"""Results as artefacts in a real registry, with a proxy in front of it that spoils answers."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import urllib3
from tests.trainer import servers
from tests.trainer.servers import Proxy
from tests.trainer.test_manifest import write_adapter

from hub.faults import Fault
from lora_trainer.errors import AccessDeniedError, ConfigError, DamagedError, StorageError, TransientError
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import OciUri
from lora_trainer.storage.manifest import check_digests, read_manifest
from lora_trainer.storage.network import READ_S
from lora_trainer.storage.oci import Registry
from lora_trainer.storage.publisher_oci import OciPublisher
from lora_trainer.storage.sealed import MANIFEST

PASSWORD = "PASSWORD-of-the-tests"
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An open registry's host and port."""
    with servers.registry_server(tmp_path_factory.mktemp("oci") / "open") as host:
        yield host


@pytest.fixture
def proxy(registry: str) -> Iterator[Proxy]:
    """The way to it."""
    with Proxy(f"http://{registry}") as proxy:
        yield proxy


def publisher(proxy: Proxy, repository: str, uid: str = "uid-1", **environment: str) -> OciPublisher:
    """The output of a run, which does not wait long."""
    host = proxy.url.removeprefix("http://")
    uri = OciUri(registry=host, repository=repository, tag="v1")
    variables = {"LORA_OCI_PLAIN_HTTP": f"other:1, {host}", **environment}
    return OciPublisher(registry=Registry(uri, variables, backoff_s=0.01), uri=uri, uid=uid)


def document(place: OciPublisher, reference: str) -> Any:
    """A manifest in the registry."""
    content = place.registry.manifest(reference)
    return None if content is None else json.loads(content)


def test_a_result_becomes_an_artefact_with_the_usual_media_types(proxy: Proxy, tmp_path: Path) -> None:
    """One layer for each file, titles for `oras pull`, pulled back whole by its digest."""
    place = publisher(proxy, "acme/tone")
    place.check()
    folder = write_adapter(tmp_path / "staged")
    assert place.published() is None
    published = place.publish(folder)
    assert published.uri == f"{place.uri}@{published.digest}"
    manifest = document(place, published.digest)
    assert manifest == document(place, "v1")
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    layers = {
        layer["annotations"]["org.opencontainers.image.title"]: layer["mediaType"] for layer in manifest["layers"]
    }
    assert layers == {
        "adapter_model.safetensors": "application/vnd.cncf.model.weight.v1.raw",
        "merged/model.safetensors": "application/vnd.cncf.model.weight.v1.raw",
        MANIFEST: "application/vnd.cncf.model.weight.config.v1.raw",
    }
    assert place.published() == published
    assert publisher(proxy, "acme/tone", "uid-2").published() is None
    place.fetch(published, tmp_path / "back")
    check_digests(tmp_path / "back", read_manifest(tmp_path / "back"))
    assert (tmp_path / "back" / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()


def test_publishing_again_sends_no_file_again_and_gives_the_same_digest(proxy: Proxy, tmp_path: Path) -> None:
    """The blobs are there."""
    folder = write_adapter(tmp_path / "staged")
    first = publisher(proxy, "acme/again").publish(folder)
    uploads = proxy.count("PUT", "/blobs/uploads/")
    assert uploads == 4
    assert publisher(proxy, "acme/again").publish(folder) == first
    assert proxy.count("PUT", "/blobs/uploads/") == uploads


def test_a_tag_of_another_is_not_moved(proxy: Proxy, tmp_path: Path) -> None:
    """A second run gets a tag of its own."""
    first = publisher(proxy, "acme/taken").publish(write_adapter(tmp_path / "a", "uid-1"))
    second = publisher(proxy, "acme/taken", "uid-2").publish(write_adapter(tmp_path / "b", "uid-2"))
    assert f":v1-{run_suffix('uid-2')}@sha256:" in second.uri
    assert publisher(proxy, "acme/taken", "uid-1").published() == first
    assert publisher(proxy, "acme/taken", "uid-2").published() == second
    content = publisher(proxy, "acme/taken").registry.manifest("v1")
    assert content is not None
    third = publisher(proxy, "acme/taken", "uid-3")
    third.registry.put_manifest(f"v1-{run_suffix('uid-3')}", content)
    with pytest.raises(StorageError, match="both hold something already: nothing is overwritten"):
        third.check()


def test_a_tag_that_holds_an_image_for_several_architectures_is_not_moved(proxy: Proxy, tmp_path: Path) -> None:
    """To who accepts no index a registry says that there is no such tag."""
    place = publisher(proxy, "acme/image")
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    body = json.dumps(index).encode()
    assert place.registry._request("PUT", "manifests/v1", headers={"Content-Type": INDEX}, body=body).status == 201
    published = place.publish(write_adapter(tmp_path / "staged"))
    assert f":v1-{run_suffix('uid-1')}@sha256:" in published.uri
    assert document(place, "v1") == index


@pytest.mark.parametrize("path", ["*/blobs/uploads/*", "*/manifests/sha256:*"])
def test_a_registry_that_fails_for_a_moment_is_asked_again(proxy: Proxy, tmp_path: Path, path: str) -> None:
    """Blobs and manifests alike."""
    proxy.inject(Fault(path=path, method="PUT", status=503, headers={"Retry-After": "0"}, times=2))
    folder = write_adapter(tmp_path / "staged", path)
    assert publisher(proxy, "acme/flaky", path).publish(folder).digest
    assert proxy.faults.pending() == []


def test_a_tag_is_written_after_everything_else(proxy: Proxy, tmp_path: Path) -> None:
    """Where the upload fails for good there is none; nothing is lost, the next attempt publishes."""
    folder = write_adapter(tmp_path / "staged", "uid-last")
    place = publisher(proxy, "acme/last", "uid-last")
    proxy.inject(Fault(path="*/blobs/uploads/*", method="PUT", status=500, skip=2, times=None))
    kept = "with a checkpoint claim nothing is lost: the next attempt uploads the same result"
    with pytest.raises(StorageError, match=kept) as caught:
        place.publish(folder)
    assert (caught.value.code, caught.value.reason) == (74, Reason.UPLOAD_FAILED)
    assert document(place, "v1") is None
    proxy.faults.replace([])
    assert document(place, place.publish(folder).digest) == document(place, "v1")


def test_a_blob_that_comes_back_wrong_is_not_tagged(proxy: Proxy, tmp_path: Path) -> None:
    """Everything is pulled back by digest before the tag."""
    place = publisher(proxy, "acme/wrong")
    proxy.inject(Fault(path="*/blobs/sha256:*", method="GET", flip_byte=1, times=None))
    with pytest.raises(StorageError, match="comes back with other bytes") as caught:
        place.publish(write_adapter(tmp_path / "staged"))
    assert caught.value.reason is Reason.UPLOAD_FAILED
    assert document(place, "v1") is None


def test_a_blob_whose_way_back_is_cut_is_pulled_again(proxy: Proxy, tmp_path: Path) -> None:
    """Nothing is sent again for that."""
    proxy.inject(Fault(path="*/blobs/sha256:*", method="GET", cut_after_bytes=3))
    assert publisher(proxy, "acme/cut").publish(write_adapter(tmp_path / "staged", "cut")).digest
    assert proxy.faults.pending() == []
    assert proxy.count("PUT", "acme/cut/blobs/uploads/") == 4


@pytest.mark.parametrize("arrived", [True, False])
def test_an_upload_whose_answer_is_lost_is_asked_for_before_it_is_sent_again(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, arrived: bool
) -> None:
    """To the upload itself a registry says that it knows none: it stored the file, or gave it up. To store a large one
    may take it minutes."""
    request = urllib3.HTTPConnectionPool._make_request
    uploads: list[str] = []
    waits: list[float] = []

    def lose(pool: Any, connection: Any, method: str, url: str, **options: Any) -> Any:
        if method != "PUT" or "/blobs/uploads/" not in url:
            return request(pool, connection, method, url, **options)
        uploads.append(url)
        waits.append(options["timeout"].read_timeout)
        if len(uploads) > 1:
            return request(pool, connection, method, url, **options)
        answer = request(pool, connection, method if arrived else "DELETE", url, **options)
        assert answer.status == (201 if arrived else 204)
        raise urllib3.exceptions.ProtocolError("Connection aborted")

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "_make_request", lose)
    monkeypatch.setattr("lora_trainer.storage.oci._STORED_BYTES_PER_S", 0.1)
    name = f"acme/lost-{arrived}".lower()
    assert publisher(proxy, name).publish(write_adapter(tmp_path / "staged", name)).digest
    assert len(uploads) == len(set(uploads)) == (4 if arrived else 5)
    assert min(waits) > READ_S + 30


def test_a_file_that_changed_after_the_verification_is_not_published(proxy: Proxy, tmp_path: Path) -> None:
    """Beside a manifest that denies it."""
    folder = write_adapter(tmp_path / "staged", "changed")
    (folder / "adapter_model.safetensors").write_bytes(b"weights of changeD")
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors has sha256"):
        publisher(proxy, "acme/changed", "changed").publish(folder)
    assert proxy.count("PUT", "acme/changed/") == 0


@pytest.mark.parametrize(
    ("status", "reason", "sentence"),
    [
        (403, Reason.OUTPUT_ACCESS_DENIED, r"refuses an upload with no credentials \(403\); name in output\.secretRef"),
        (413, Reason.STORAGE_FULL, r"has no room for an upload \(413\)"),
        (507, Reason.STORAGE_FULL, "free space or raise the quota"),
        (405, Reason.UPLOAD_FAILED, r"refuses an upload \(405\)"),
        (404, Reason.STORAGE_ERROR, "knows no repository acme/refused; create it there"),
    ],
)
def test_a_refusal_is_reported_before_the_training(proxy: Proxy, status: int, reason: Reason, sentence: str) -> None:
    """In the place's test, with the remedy."""
    proxy.inject(Fault(path="*/blobs/uploads/", method="POST", status=status))
    with pytest.raises((StorageError, AccessDeniedError), match=sentence) as caught:
        publisher(proxy, "acme/refused").check()
    assert caught.value.reason is reason


def test_a_registry_that_is_not_there_is_transient() -> None:
    """Nobody listens, or TLS is spoken to a registry without it."""
    uri = OciUri(registry="127.0.0.1:9", repository="a/b", tag="v1")
    place = OciPublisher(registry=Registry(uri, {}, backoff_s=0.01), uri=uri, uid="uid-1")
    with pytest.raises(TransientError, match=r"LORA_OCI_PLAIN_HTTP \(for a registry without TLS\)"):
        place.check()


def docker_config(host: str, password: str) -> str:
    """What kubectl create secret docker-registry writes."""
    pair = base64.b64encode(f"pusher:{password}".encode()).decode()
    return json.dumps({"auths": {f"https://{host}": {"auth": pair}, "other.example": {"auth": "!"}}})


def test_a_registry_with_accounts_takes_the_secrets_pair(tmp_path: Path) -> None:
    """Name and password from the Docker configuration; a wrong one is 77 and is not shown."""
    closed = servers.registry_server(tmp_path / "closed", htpasswd=servers.HTPASSWD)
    with closed as host, Proxy(f"http://{host}") as proxy:
        own = proxy.url.removeprefix("http://")
        right = publisher(proxy, "acme/closed", OUTPUT_DOCKER_CONFIG_JSON=docker_config(own, PASSWORD))
        right.check()
        assert right.publish(write_adapter(tmp_path / "staged")) == right.published()
        wrong = {
            "with these credentials": docker_config(own, "WRONG"),
            "with no credentials": docker_config("elsewhere.example", PASSWORD),
        }
        for sentence, config in wrong.items():
            with pytest.raises(AccessDeniedError, match=sentence) as caught:
                publisher(proxy, "acme/closed", OUTPUT_DOCKER_CONFIG_JSON=config).check()
            assert caught.value.reason is Reason.OUTPUT_ACCESS_DENIED
            assert "WRONG" not in str(caught.value)
            assert PASSWORD not in str(caught.value)


def test_a_secret_that_is_no_docker_configuration_is_reported(proxy: Proxy) -> None:
    """Without its content."""
    host = proxy.url.removeprefix("http://")
    for text in (json.dumps({"auths": {host: {"auth": "p@ssw*rd"}}}), '{"auths": ["SECRET"]}', "SECRET"):
        with pytest.raises(ConfigError, match=r"\.dockerconfigjson is not a Docker configuration") as caught:
            publisher(proxy, "acme/tone", OUTPUT_DOCKER_CONFIG_JSON=text)
        assert "SECRET" not in str(caught.value)
        assert "p@ssw" not in str(caught.value)


def test_a_bearer_challenge_is_answered_with_a_token(proxy: Proxy) -> None:
    """As the large registries ask for it; the token, not the password, goes to the registry."""
    with servers.answering({"token": "T0KEN"}) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token",service="registry.test"'}
        proxy.inject(Fault(path="/v2/acme/bearer/manifests/v1", method="GET", status=401, headers=challenge))
        host = proxy.url.removeprefix("http://")
        place = publisher(proxy, "acme/bearer", OUTPUT_DOCKER_CONFIG_JSON=docker_config(host, PASSWORD))
        place.check()
        (request,) = tokens.requests
    assert request.path == "/token?scope=repository%3Aacme%2Fbearer%3Apull%2Cpush&service=registry.test"
    assert request.authorization.startswith("Basic ")


@dataclass
class Answers:
    """A stand-in of the connections to a registry with TLS that asks for a token, and notes which addresses saw which
    login."""

    realm: str
    location: str
    seen: list[tuple[str, str]] = field(default_factory=list)

    def request(self, method: str, url: str, *, headers: Mapping[str, str], **_options: Any) -> Any:
        """Answer, as urllib3 does."""
        login = headers.get("Authorization", "").partition(" ")[0]
        self.seen.append((url, login))
        if "/token?" in url:
            return SimpleNamespace(status=200, headers={}, data=b'{"token": "T0KEN"}')
        challenge = {"WWW-Authenticate": f'Bearer realm="{self.realm}",service="s"'}
        status = 401 if not login else 202
        return SimpleNamespace(status=status, headers=challenge | {"Location": self.location}, data=b"")


def with_tls(realm: str = "https://auth.example/token", location: str = "/upload/1") -> tuple[Registry, Answers]:
    """A registry with TLS, and what it is asked."""
    uri = OciUri(registry="registry.example", repository="a/b", tag="v1")
    registry = Registry(uri, {"OUTPUT_DOCKER_CONFIG_JSON": docker_config("registry.example", PASSWORD)})
    answers = Answers(realm=realm, location=location)
    registry._http = cast("Any", answers)
    return registry, answers


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/upload/1", ("https://registry.example/upload/1", "Bearer")),
        ("http://registry.example/upload/1", ("https://registry.example/upload/1", "Bearer")),
        ("https://storage.example/1?sig=x", ("https://storage.example/1?sig=x", "")),
    ],
)
def test_a_login_is_sent_with_tls_alone(location: str, target: tuple[str, str]) -> None:
    """Behind a proxy that ends TLS many registries name their own address without it; others get no login at all."""
    registry, answers = with_tls(location=location)
    registry.check_push()
    assert target in answers.seen
    assert all(url.startswith("https://") for url, _ in answers.seen)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ({"realm": "http://169.254.169.254/token"}, "http://169.254.169.254/token for tokens"),
        ({"realm": ""}, "asks for a token and names no server that gives any: the WWW-Authenticate header"),
        ({"location": "http://storage.example/1"}, "http://storage.example/1 for an upload"),
    ],
)
def test_a_registry_with_tls_names_no_address_without_it(place: dict[str, str], named: str) -> None:
    """Else it would get the login, or the adapter."""
    registry, answers = with_tls(**place)
    with pytest.raises(StorageError, match=re.escape(named)):
        registry.check_push()
    assert all(url.startswith("https://") for url, _ in answers.seen)


def test_a_token_server_on_the_registrys_own_host_has_its_tls() -> None:
    """As for uploads: a registry behind a proxy that ends TLS may name itself without it."""
    registry, answers = with_tls(realm="http://registry.example/token")
    registry.check_push()
    assert any(url.startswith("https://registry.example/token?") for url, _ in answers.seen)
    assert all(url.startswith("https://") for url, _ in answers.seen)
