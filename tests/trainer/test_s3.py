"""Buckets as source and sink, against a real S3 server, with a proxy in front of it that spoils answers."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import minio
import pytest
from minio.commonconfig import CopySource
from tests.trainer import servers, tiny
from tests.trainer.conftest import make_config
from tests.trainer.servers import ACCESS, SECRET, Proxy
from tests.trainer.test_manifest import make_manifest, write_adapter

from hub.faults import Fault
from lora_trainer.data.dataset_files import locate
from lora_trainer.errors import (
    AccessDeniedError,
    ConfigError,
    DatasetError,
    NotFoundError,
    StorageError,
    TrainerError,
    TransientError,
)
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import S3Uri
from lora_trainer.storage.base import find_base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Published, check_digests, read_manifest, write_sealed
from lora_trainer.storage.model_headers import read_headers
from lora_trainer.storage.publisher_s3 import S3Publisher
from lora_trainer.storage.roles import Role
from lora_trainer.storage.s3 import Item, connect
from lora_trainer.storage.s3_source import cache_folder, fetch_data
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.tensor_files import entries_of, header_bytes
from lora_trainer.storage.volumes import Volumes

OUT = S3Uri(bucket="models", key="team/out")
WHOLE = [f"team/out/{name}" for name in ("adapter_model.safetensors", "manifest.json", "merged/model.safetensors")]
"""The objects of a result."""
BIG = os.urandom(2**20) * 40
"""More than two parts of an upload."""


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server."""
    with servers.bucket_server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def proxy(gateway: str) -> Iterator[Proxy]:
    """The way to it."""
    with Proxy(gateway) as proxy:
        yield proxy


@pytest.fixture
def admin(gateway: str) -> Iterator[minio.Minio]:
    """An administrator's client and an empty bucket `models`."""
    client = servers.client(gateway)
    client.make_bucket("models")
    yield client
    for entry in client.list_objects("models", recursive=True):
        client.remove_object("models", str(entry.object_name))
    client.remove_bucket("models")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A cache with less room than the tiny model takes."""
    with servers.full_disk(tmp_path / "small", 200) as folder:
        yield folder


def environment(proxy: Proxy, home: Path, **more: str) -> dict[str, str]:
    """What a pod's environment says."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    return {"AWS_ENDPOINT_URL_S3": proxy.url, "HF_HOME": str(home), **keys, **more}


def publisher(proxy: Proxy, uid: str = "uid-1", *, uri: S3Uri = OUT, **more: str) -> S3Publisher:
    """The output of a run, which does not wait long."""
    keys = {"OUTPUT_AWS_ACCESS_KEY_ID": ACCESS, "OUTPUT_AWS_SECRET_ACCESS_KEY": SECRET}
    variables = {"AWS_ENDPOINT_URL_S3": proxy.url, **keys, **more}
    return S3Publisher(connection=connect(Role.OUTPUT, variables, backoff_s=0.01), uri=uri, uid=uid)


def names(admin: minio.Minio) -> list[str]:
    """All objects."""
    return sorted(str(entry.object_name) for entry in admin.list_objects("models", recursive=True))


def big_adapter(folder: Path) -> Path:
    """One whose weights take three parts."""
    write_adapter(folder)
    (folder / "adapter_model.safetensors").write_bytes(BIG)
    (folder / MANIFEST).unlink()
    write_sealed(folder, make_manifest("uid-1"))
    return folder


@pytest.mark.usefixtures("admin")
def test_a_result_is_uploaded_verified_and_found_again(proxy: Proxy, tmp_path: Path, admin: minio.Minio) -> None:
    """Below the address, without a mark; what comes back is what went up; the test of the place leaves nothing."""
    publisher(proxy).check()
    assert names(admin) == []
    folder = write_adapter(tmp_path / "staged")
    assert publisher(proxy).published() is None
    published = publisher(proxy).publish(folder)
    assert (published.uri, published.folder) == (str(OUT), None)
    assert published.digest == f"sha256:{hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}"
    assert names(admin) == WHOLE
    assert publisher(proxy).published() == published
    assert publisher(proxy, "uid-2").published() is None
    publisher(proxy).fetch(published, tmp_path / "back")
    check_digests(tmp_path / "back", read_manifest(tmp_path / "back"))
    assert publisher(proxy).publish(folder) == published
    puts = proxy.count("PUT", "adapter_model")
    assert puts == 1


def test_a_result_whose_way_back_is_cut_is_read_again(proxy: Proxy, tmp_path: Path, admin: minio.Minio) -> None:
    """It is not sent again for that."""
    proxy.inject(Fault(path="*/adapter_model*", method="GET", cut_after_bytes=3))
    publisher(proxy).publish(write_adapter(tmp_path / "staged"))
    assert proxy.faults.pending() == []
    assert (names(admin), proxy.count("PUT", "adapter_model")) == (WHOLE, 1)


def test_what_an_interrupted_attempt_sent_in_vain_goes_and_what_others_put_there_stays(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio
) -> None:
    """A merged model that the next attempt did not make; not a copy of it, and not another run's result. Neither is a
    part of what is brought back."""
    folder = write_adapter(tmp_path / "staged")
    proxy.inject(Fault(path="*/manifest.json*", method="PUT", status=500, times=None))
    with pytest.raises(StorageError):
        publisher(proxy).publish(folder)
    merged = "team/out/merged/model.safetensors"
    assert merged in names(admin)
    admin.copy_object("models", "team/out/kept.safetensors", CopySource("models", merged))
    proxy.faults.replace([])
    inner = publisher(proxy, "uid-2", uri=S3Uri(bucket="models", key="team/out/inner"))
    inner.publish(write_adapter(tmp_path / "inner", "uid-2"))
    before = names(admin)

    shutil.rmtree(folder / "merged")
    (folder / MANIFEST).unlink()
    write_sealed(folder, make_manifest("uid-1"))
    published = publisher(proxy).publish(folder)
    assert set(before) - set(names(admin)) == {merged, "team/out/.run"}
    assert inner.published() is not None
    publisher(proxy).fetch(published, tmp_path / "back")
    check_digests(tmp_path / "back", read_manifest(tmp_path / "back"))


def test_a_place_whose_objects_may_not_be_removed_is_published_to(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, caplog: pytest.LogCaptureFixture
) -> None:
    """What stays there is named."""
    folder = write_adapter(tmp_path / "staged")
    proxy.inject(Fault(path="*/manifest.json*", method="PUT", status=500, times=None))
    with pytest.raises(StorageError):
        publisher(proxy).publish(folder)
    shutil.rmtree(folder / "merged")
    (folder / MANIFEST).unlink()
    write_sealed(folder, make_manifest("uid-1"))
    proxy.faults.replace([Fault(path="*/merged/*", method="DELETE", status=403, times=None)])
    assert publisher(proxy).publish(folder).uri == str(OUT)
    assert "team/out/merged/model.safetensors, which is not part of the result, stays" in caplog.text
    assert "team/out/merged/model.safetensors" in names(admin)


def test_the_manifest_comes_last(proxy: Proxy, tmp_path: Path, admin: minio.Minio) -> None:
    """Whoever finds it finds everything that it lists."""
    folder = write_adapter(tmp_path / "staged")
    proxy.inject(Fault(path="*/manifest.json*", method="PUT", status=500, times=None))
    with pytest.raises(StorageError, match="the server answered 500") as caught:
        publisher(proxy).publish(folder)
    assert caught.value.reason is Reason.UPLOAD_FAILED
    assert names(admin) == ["team/out/.run", *(name for name in WHOLE if "manifest" not in name)]
    proxy.faults.replace([])
    assert publisher(proxy).publish(folder).uri == str(OUT)
    assert names(admin) == WHOLE


def test_a_part_that_fails_is_sent_again_and_nothing_unfinished_stays(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio
) -> None:
    """500 on the second part: once is nothing; for ever ends with UploadFailed, and the upload is aborted."""
    folder = big_adapter(tmp_path / "staged")
    proxy.inject(Fault(path="*partNumber=2*", method="PUT", status=500))
    assert publisher(proxy).publish(folder).uri == str(OUT)
    assert proxy.count("PUT", "partNumber=2") == 2
    other = S3Uri(bucket="models", key="team/second")
    proxy.inject(Fault(path="*partNumber=2*", method="PUT", status=500, times=None))
    with pytest.raises(StorageError, match="nothing is lost") as caught:
        publisher(proxy, uri=other).publish(folder)
    assert (caught.value.code, caught.value.reason) == (74, Reason.UPLOAD_FAILED)
    assert admin._list_multipart_uploads("models", prefix="team/second/").uploads == []
    proxy.faults.replace([])
    assert publisher(proxy, uri=other).publish(folder).uri == str(other)


def test_an_upload_that_a_killed_attempt_began_is_ended(proxy: Proxy, tmp_path: Path, admin: minio.Minio) -> None:
    """Its parts would be paid for and seen by nobody; another run's are left alone."""
    for key in ("team/out/adapter_model.safetensors", "team/outside/x"):
        admin._create_multipart_upload("models", key, {})
    publisher(proxy).publish(write_adapter(tmp_path / "staged"))
    left = [upload.object_name for upload in admin._list_multipart_uploads("models", prefix="team/").uploads]
    assert left == ["team/outside/x"]


@pytest.mark.parametrize("status", [403, 501])
def test_rights_on_interrupted_uploads_are_not_needed_to_publish(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """They are others than those to read, write and list, and a training is not to end for want of them."""
    proxy.inject(Fault(path="*uploads*", method="GET", status=status, times=None))
    assert publisher(proxy).publish(write_adapter(tmp_path / "staged")).uri == str(OUT)
    assert names(admin) == WHOLE
    assert "what an interrupted upload may have left in s3://models/team/out stays there" in caplog.text


def test_a_result_that_reads_back_wrong_is_not_published(proxy: Proxy, tmp_path: Path, admin: minio.Minio) -> None:
    """Sent again once; then the manifest, which would vouch for it, is not written."""
    folder = write_adapter(tmp_path / "staged")
    proxy.inject(Fault(path="*/adapter_model*", method="GET", flip_byte=3, times=1))
    assert publisher(proxy).publish(folder).uri == str(OUT)
    assert proxy.count("PUT", "adapter_model") == 2
    proxy.inject(Fault(path="*/adapter_model*", method="GET", flip_byte=3, times=None))
    folder = write_adapter(tmp_path / "second", "uid-2")
    with pytest.raises(StorageError, match="reads back with another sha256") as caught:
        publisher(proxy, "uid-2").publish(folder)
    assert caught.value.reason is Reason.UPLOAD_FAILED
    assert f"team/out-{run_suffix('uid-2')}/manifest.json" not in names(admin)


def test_what_others_have_is_not_overwritten(proxy: Proxy, tmp_path: Path, admin: minio.Minio) -> None:
    """A second run goes beside the first; a third whose both places are taken gets a sentence."""
    suffix = run_suffix("uid-2")
    publisher(proxy, "uid-1").publish(write_adapter(tmp_path / "a", "uid-1"))
    assert (
        publisher(proxy, "uid-2").publish(write_adapter(tmp_path / "b", "uid-2")).uri
        == f"s3://models/team/out-{suffix}"
    )
    found = publisher(proxy, "uid-2").published()
    assert found is not None
    assert found.uri == f"s3://models/team/out-{suffix}"
    content = admin.get_object("models", "team/out/adapter_model.safetensors").read()
    assert content == b"weights of uid-1"
    place = S3Uri(bucket="models", key=f"team/out-{run_suffix('uid-3')}")
    (tmp_path / "x").write_bytes(b"x")
    admin.fput_object("models", f"{place.key}/precious", str(tmp_path / "x"))
    with pytest.raises(StorageError, match="both hold something already: nothing is overwritten"):
        publisher(proxy, "uid-3").check()


@pytest.mark.usefixtures("admin")
def test_of_two_runs_at_the_same_moment_one_gets_the_address(proxy: Proxy, tmp_path: Path) -> None:
    """And the other the one beside it; both are whole."""
    uids = ("uid-1", "uid-2")
    folders = {uid: write_adapter(tmp_path / uid, uid) for uid in uids}
    places: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda uid=uid: places.update({uid: publisher(proxy, uid).publish(folders[uid]).uri}))
        for uid in uids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(set(places.values())) == 2
    assert str(OUT) in places.values()
    for uid in uids:
        found = publisher(proxy, uid).published()
        assert found is not None
        publisher(proxy, uid).fetch(found, tmp_path / f"back-{uid}")
        check_digests(tmp_path / f"back-{uid}", read_manifest(tmp_path / f"back-{uid}"))


@pytest.mark.parametrize(
    ("uri", "variables", "kind", "sentence"),
    [
        ("s3://models/x", {"OUTPUT_AWS_SECRET_ACCESS_KEY": "wrong"}, AccessDeniedError, "SignatureDoesNotMatch"),
        ("s3://models/x", {"OUTPUT_AWS_ACCESS_KEY_ID": "nobody"}, AccessDeniedError, "does not accept the credentials"),
        (
            "s3://models/x",
            {"OUTPUT_AWS_ACCESS_KEY_ID": "", "OUTPUT_AWS_SECRET_ACCESS_KEY": ""},
            AccessDeniedError,
            "without credentials (AccessDenied)",
        ),
        ("s3://models/x", {"OUTPUT_AWS_SECRET_ACCESS_KEY": ""}, AccessDeniedError, "has no AWS_SECRET_ACCESS_KEY"),
        ("s3://absent/x", {}, StorageError, "there is no bucket absent at this server"),
        ("s3://models/x", {"AWS_ENDPOINT_URL_S3": "127.0.0.1:1"}, ConfigError, "must be http://host:port"),
        ("s3://models/x", {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, TransientError, "check AWS_ENDPOINT_URL_S3"),
    ],
)
@pytest.mark.usefixtures("admin")
def test_a_place_that_cannot_be_written_is_reported_before_the_training(
    *, proxy: Proxy, uri: str, variables: dict[str, str], kind: type[TrainerError], sentence: str
) -> None:
    """Wrong or missing credentials, no bucket, no server: names of keys, never their values."""
    with pytest.raises(kind) as caught:
        publisher(proxy, uri=S3Uri(bucket=uri.split("/")[2], key="x"), **variables).check()
    assert sentence in str(caught.value)
    assert SECRET not in str(caught.value)
    if kind is AccessDeniedError:
        assert caught.value.reason is Reason.OUTPUT_ACCESS_DENIED
        assert "output.secretRef" in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"AWS_SESSION_TOKEN": "FwoGZX\nIvYXdz"},
        {"AWS_SESSION_TOKEN": "FwoGZXIvYXdzé"},
        {"AWS_ACCESS_KEY_ID": "FwoGZX IvYXdz"},
        {"AWS_SECRET_ACCESS_KEY": "FwoGZX\tIvYXdz"},
    ],
)
def test_a_key_that_cannot_be_one_is_refused_without_being_quoted(keys: dict[str, str]) -> None:
    """A session token that was wrapped when it was pasted would be quoted by the HTTP client, whole."""
    pair = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}
    with pytest.raises(AccessDeniedError, match=r"model\.secretRef's Secret has .* as a space or a line") as caught:
        connect(Role.MODEL, {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", **pair, **keys}, backoff_s=0)
    assert "FwoG" not in str(caught.value)


def test_an_object_whose_key_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Who may write to the bucket is not who may write to the pod."""
    path = "a/../../../escaped.txt"
    items = (Item(key=f"{OUT.key}/{path}", size_bytes=1, etag="e"),)
    manifest = json.dumps({"files": [{"path": path}]}).encode()
    connection: Any = SimpleNamespace(items=lambda _place: items, read=lambda _uri: manifest)
    place = S3Publisher(connection=connection, uri=OUT, uid="uid-1")
    with pytest.raises(StorageError, match=r"escaped\.txt leads out of the folder"):
        place.fetch(Published(uri=str(OUT), digest="sha256:0"), tmp_path / "back")


@pytest.mark.usefixtures("admin")
def test_a_pods_workload_identity_needs_no_secret(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's agent gives keys that end; a Secret goes before it."""
    keys = {"AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": "", "Expiration": "2099-01-01T00:00:00Z"}
    with servers.answering(keys) as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url)
        publisher(proxy, AWS_CONTAINER_CREDENTIALS_FULL_URI=agent.url).check()
        assert agent.requests == []
        place = publisher(
            proxy,
            AWS_CONTAINER_CREDENTIALS_FULL_URI=agent.url,
            OUTPUT_AWS_ACCESS_KEY_ID="",
            OUTPUT_AWS_SECRET_ACCESS_KEY="",
        )
        place.check()
        assert len(agent.requests) == 1


def test_a_full_cache_is_reported(
    proxy: Proxy, admin: minio.Minio, tiny_folder: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """74, before a byte is fetched; and no half file under a whole one's name, where others filled it meanwhile."""
    put_model(admin, tiny_folder, "base/tiny")
    with pytest.raises(StorageError, match=r"bytes are still to be fetched, and the cache \(HF_HOME\) has room for"):
        find(proxy, small_disk, "s3://models/base/tiny")
    assert not list(small_disk.rglob("*.partial"))
    monkeypatch.setattr("lora_trainer.storage.s3_source.check_room", lambda *_: None)
    with pytest.raises(StorageError, match=r"the cache \(HF_HOME\) cannot be written: the volume is full") as caught:
        find(proxy, small_disk, "s3://models/base/tiny")
    assert (caught.value.code, caught.value.reason) == (74, Reason.STORAGE_FULL)
    assert not list(small_disk.rglob("model.safetensors"))


@pytest.mark.usefixtures("admin")
def test_a_full_bucket_is_reported(proxy: Proxy, tmp_path: Path) -> None:
    """When the server has no room."""
    proxy.inject(Fault(path="*/adapter_model*", method="PUT", status=507, times=None))
    with pytest.raises(StorageError, match=r"the bucket is full \(507\); free space there") as caught:
        publisher(proxy).publish(write_adapter(tmp_path / "staged"))
    assert (caught.value.code, caught.value.reason) == (74, Reason.STORAGE_FULL)


@pytest.mark.usefixtures("admin")
def test_a_server_that_only_the_proxy_knows_is_reached(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HTTP_PROXY`, unless `NO_PROXY` names the server."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "other.invalid")
    through = publisher(proxy, AWS_ENDPOINT_URL_S3="http://s3.invalid")
    assert through.publish(write_adapter(tmp_path / "staged")).uri == str(OUT)
    assert proxy.count("PUT", "http://s3.invalid/models/team/out/") == 4


def put_model(admin: minio.Minio, folder: Path, prefix: str) -> None:
    """Upload a folder."""
    for path in folder.iterdir():
        admin.fput_object("models", f"{prefix}/{path.name}", str(path))


def find(proxy: Proxy, home: Path, uri: str, **more: str) -> Path:
    """Look a model up; its folder."""
    return find_base(uri, Volumes(), Hub(environment=environment(proxy, home, **more))).folder


def test_a_model_in_a_bucket_is_fetched_once_and_pinned(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run transfers no weights, and writes nothing, for which there may be no room; another version has
    another revision; a foreign object is no part."""
    put_model(admin, tiny_folder, "base/tiny")
    hub = Hub(environment=environment(proxy, tmp_path))
    base = find_base("s3://models/base/tiny", Volumes(), hub)
    assert (base.name, base.model_type) == ("s3://models/base/tiny", "llama")
    assert base.revision.startswith("sha256:")
    weights = (base.folder / "model.safetensors").read_bytes()
    assert weights == (tiny_folder / "model.safetensors").read_bytes()
    before = proxy.sent("model.safetensors")
    assert before == len(weights)
    with monkeypatch.context() as patch:
        patch.setattr("lora_trainer.storage.s3_source.held", None)
        assert find_base("s3://models/base/tiny", Volumes(), hub) == base
    assert proxy.sent("model.safetensors") == before
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text() + "\n")
    admin.fput_object("models", "base/tiny/config.json", str(tmp_path / "config.json"))
    assert find_base("s3://models/base/tiny", Volumes(), hub).revision != base.revision


def test_a_license_in_a_bucket_is_fetched_and_pins_nothing(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, tiny_folder: Path
) -> None:
    """A run that began before it was there, or before trainers fetched it, finds its model again, with the license of
    today."""
    put_model(admin, tiny_folder, "base/tiny")
    hub = Hub(environment=environment(proxy, tmp_path))
    before = find_base("s3://models/base/tiny", Volumes(), hub)
    for text in ("of 2025", "of 2026"):
        (tmp_path / "terms").write_text(text)
        admin.fput_object("models", "base/tiny/LICENSE", str(tmp_path / "terms"))
        found = find_base("s3://models/base/tiny", Volumes(), hub)
        assert found.revision == before.revision
        assert (found.folder / "LICENSE").read_text() == text
    admin.remove_object("models", "base/tiny/LICENSE")
    assert find_base("s3://models/base/tiny", Volumes(), hub) == before
    assert not (before.folder / "LICENSE").exists()


def test_a_model_in_a_bucket_is_known_by_its_headers(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, tiny_folder: Path
) -> None:
    """Of the weights nothing else is sent, also after an answer that was cut; its revision is the training's."""
    put_model(admin, tiny_folder, "base/tiny")
    proxy.inject(Fault(path="*/model.safetensors", method="GET", cut_after_bytes=5, times=1))
    hub = Hub(environment=environment(proxy, tmp_path))
    found = read_headers("s3://models/base/tiny", Volumes(), hub)
    with (tiny_folder / "model.safetensors").open("rb") as stream:
        header = header_bytes(stream)
    assert found.tensors == {"model.safetensors": entries_of(header)}
    assert proxy.sent("model.safetensors") == len(header) + 5
    assert not (found.base.folder / "model.safetensors").exists()
    assert found.base.revision == find_base("s3://models/base/tiny", Volumes(), hub).revision
    proxy.inject(Fault(path="*/model.safetensors", method="GET", status=403, times=None))
    with pytest.raises(AccessDeniedError, match="the server denies access") as caught:
        read_headers("s3://models/base/tiny", Volumes(), hub)
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED


def test_a_cut_download_goes_on_where_it_was_cut(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, tiny_folder: Path
) -> None:
    """Each byte is transferred once, also over two processes' lives."""
    put_model(admin, tiny_folder, "base/tiny")
    size = (tiny_folder / "model.safetensors").stat().st_size
    proxy.inject(Fault(path="*/model.safetensors", method="GET", cut_after_bytes=100_000, times=2))
    proxy.inject(Fault(path="*/model.safetensors", method="GET", cut_after_bytes=0, times=None))
    with pytest.raises(TransientError, match=f"cut off after 200000 of {size} bytes; what has arrived is kept"):
        find(proxy, tmp_path, "s3://models/base/tiny")
    proxy.faults.replace([])
    folder = find(proxy, tmp_path, "s3://models/base/tiny")
    assert (folder / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    assert proxy.sent("model.safetensors") == size


def test_a_wrong_byte_is_noticed_and_fetched_again(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, tiny_folder: Path
) -> None:
    """By the ETag; it never gets the name of a whole file."""
    put_model(admin, tiny_folder, "base/tiny")
    proxy.inject(Fault(path="*/model.safetensors", method="GET", flip_byte=5000))
    with pytest.raises(TransientError, match=r"model\.safetensors arrived with other bytes than its ETag says"):
        find(proxy, tmp_path, "s3://models/base/tiny")
    assert not list(cache_folder({"HF_HOME": str(tmp_path)}).rglob("model.safetensors"))
    find(proxy, tmp_path, "s3://models/base/tiny")


def test_two_runs_at_once_fetch_a_model_once(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, tiny_folder: Path
) -> None:
    """The second waits for the first."""
    put_model(admin, tiny_folder, "base/tiny")
    threads = [threading.Thread(target=find, args=(proxy, tmp_path, "s3://models/base/tiny")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert proxy.sent("model.safetensors") == (tiny_folder / "model.safetensors").stat().st_size


def test_a_cached_model_is_refused_to_a_run_that_may_not_read_it(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, tiny_folder: Path
) -> None:
    """Its files lie in the shared cache, but not for everybody."""
    put_model(admin, tiny_folder, "base/tiny")
    find(proxy, tmp_path, "s3://models/base/tiny")
    with pytest.raises(AccessDeniedError) as caught:
        find(proxy, tmp_path, "s3://models/base/tiny", MODEL_AWS_ACCESS_KEY_ID="a", MODEL_AWS_SECRET_ACCESS_KEY="b")
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    # One that may list the bucket and not read its objects.
    proxy.inject(Fault(path="/models/base/tiny/*", method="HEAD", status=403))
    with pytest.raises(AccessDeniedError, match="may read and list in bucket models") as caught:
        find(proxy, tmp_path, "s3://models/base/tiny")
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("s3://models/base/none", "there is no object below base/none/ in bucket models"),
        ("s3://absent/base", "there is no bucket absent"),
    ],
)
@pytest.mark.usefixtures("admin")
def test_a_model_that_is_not_there_is_reported(proxy: Proxy, tmp_path: Path, uri: str, sentence: str) -> None:
    """Bucket and key."""
    with pytest.raises(NotFoundError) as caught:
        find(proxy, tmp_path, uri)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert sentence in str(caught.value)


def test_data_is_an_object_or_the_tables_of_a_folder(proxy: Proxy, tmp_path: Path, admin: minio.Minio) -> None:
    """As `choose` says; a single object keeps its name."""
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.chats(3))
    for key in ("data/rows.jsonl", "data/more.jsonl", "data/README.md"):
        admin.fput_object("models", key, str(rows))
    variables = environment(proxy, tmp_path / "home")
    one = fetch_data(S3Uri(bucket="models", key="data/rows.jsonl"), Role.DATASET, tuple, variables)
    assert one.names == ("rows.jsonl",)
    assert (one.folder / "rows.jsonl").read_bytes() == rows.read_bytes()

    def tables(found: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        return tuple(name for name in found if name.endswith(".jsonl"))

    both = fetch_data(S3Uri(bucket="models", key="data"), Role.DATASET, lambda found: tables(list(found)), variables)
    assert both.names == ("more.jsonl", "rows.jsonl")
    with pytest.raises(NotFoundError) as caught:
        fetch_data(S3Uri(bucket="models", key="nothing"), Role.DATASET, tuple, variables)
    assert caught.value.reason is Reason.DATASET_NOT_FOUND


def test_a_folder_of_a_bucket_that_would_be_read_in_part_is_refused(
    proxy: Proxy, tmp_path: Path, admin: minio.Minio, caplog: pytest.LogCaptureFixture
) -> None:
    """Compressed rows are read, hidden ones by their own address alone; what is of no kind that is read is named before
    anything is fetched, folders too."""
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.chats(3))
    hub = Hub(environment=environment(proxy, tmp_path / "home"))
    dataset = make_config(dataset={"uri": "s3://models/parts"}).dataset
    for key in ("parts/a.jsonl", "parts/b.jsonl.gz", "parts/.old.jsonl"):
        admin.fput_object("models", key, str(rows))
    own = make_config(dataset={"uri": "s3://models/parts/.old.jsonl"}).dataset
    assert [name for name, _ in locate(own, Volumes(), hub).files] == [".old.jsonl"]
    assert [name for name, _ in locate(dataset, Volumes(), hub).files] == ["a.jsonl", "b.jsonl.gz"]
    assert caplog.messages == []
    admin.fput_object("models", "parts/more/d.jsonl", str(rows))
    assert [name for name, _ in locate(dataset, Volumes(), hub).files] == ["a.jsonl", "b.jsonl.gz"]
    assert caplog.messages[0].startswith("dataset.uri is s3://models/parts: not read: more/; names of files that are")
    for key in ("parts/train/train.jsonl", "parts/train/test.jsonl"):
        admin.fput_object("models", key, str(rows))
    with pytest.raises(
        DatasetError, match=r"^dataset\.uri is s3://models/parts/train: its files are named for several"
    ):
        locate(make_config(dataset={"uri": "s3://models/parts/train"}).dataset, Volumes(), hub)
    admin.fput_object("models", "parts/c.jsonl.bz2", str(rows))
    with pytest.raises(DatasetError, match=r"^dataset\.uri is s3://models/parts: c\.jsonl\.bz2 would be left out"):
        locate(dataset, Volumes(), hub)


def test_an_address_of_the_server_with_a_password_is_refused_without_showing_it() -> None:
    """It is in nobody's Secret, but need not be in the status, too."""
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL_S3 is https://…@s3\.example: must be") as caught:
        connect(Role.OUTPUT, {"AWS_ENDPOINT_URL_S3": "https://ann:geheim@s3.example"})
    assert "geheim" not in str(caught.value)
