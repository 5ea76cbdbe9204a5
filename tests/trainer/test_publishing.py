"""Results that are published again: by a retry that trains nothing, and by hand."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import minio
import pytest
from tests.trainer import servers
from tests.trainer.forked import ForkedRuns
from tests.trainer.runs import Finished, Workplace
from tests.trainer.servers import ACCESS, SECRET, Proxy
from tests.trainer.test_manifest import make_manifest, write_adapter

from hub.faults import Fault
from lora_trainer.cli import main
from lora_trainer.host.supervisor import Supervisor
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.manifest import check_digests, read_manifest, write_sealed
from lora_trainer.storage.network import ATTEMPTS
from lora_trainer.storage.sealed import MANIFEST

KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server with a bucket `results`."""
    with servers.bucket_server(tmp_path_factory.mktemp("s3")) as address:
        servers.client(address).make_bucket("results")
        yield address


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An open registry's host and port."""
    with servers.registry_server(tmp_path_factory.mktemp("oci") / "open") as host:
        yield host


@pytest.fixture
def proxy(gateway: str) -> Iterator[Proxy]:
    """The way to it."""
    with Proxy(gateway) as proxy:
        yield proxy


def stored(client: minio.Minio, prefix: str) -> list[str]:
    """Names of objects below a prefix."""
    return sorted(str(entry.object_name) for entry in client.list_objects("results", prefix, recursive=True))


Attempt = Callable[[], Finished]


@pytest.fixture
def attempt(
    workplace: Workplace, proxy: Proxy, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Attempt:
    """One pod of a run with data from a bucket and its output in one, checkpoints on the claim `adapters`."""
    config = workplace.config_file(
        dataset={"uri": "s3://results/data/train.jsonl"},
        output={"uri": "s3://results/out"},
        checkpoint={"volumeClaimName": "adapters"},
        training={"maxSteps": 2},
    )
    variables = {f"{section}_{name}": value for section in ("DATASET", "OUTPUT") for name, value in KEYS.items()}
    variables |= {"AWS_ENDPOINT_URL_S3": proxy.url, "HF_HOME": str(workplace.root / "home")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return lambda: ForkedRuns(workplace, capfd).run("--config", config, "--metrics-port", "0")


def test_a_publication_that_fails_costs_no_training(
    workplace: Workplace, gateway: str, proxy: Proxy, attempt: Attempt
) -> None:
    """The token is revoked before the end: 77 and the result is kept; a retry publishes it, another finds it."""
    client = servers.client(gateway)
    client.fput_object("results", "data/train.jsonl", str(workplace.claims / "data/train.jsonl"))
    proxy.inject(Fault(path="*/adapter_model*", method="PUT", status=403, times=None))
    denied = attempt()
    assert (denied.status, denied.summary.reason) == (77, Reason.OUTPUT_ACCESS_DENIED), denied.log
    kept = f".lora-checkpoints/tiny-{run_suffix('uid-1')}/staged"
    assert denied.summary.message.endswith(f"the verified result is kept at pvc://adapters/{kept}")
    assert "output.secretRef" in denied.summary.message
    assert not [name for name in stored(client, "out/") if name.endswith("manifest.json")]
    trained = read_manifest(workplace.claims / "adapters" / kept)
    once_more = attempt()
    assert "an earlier attempt finished the training" in once_more.log
    assert once_more.summary.checkpoint == denied.summary.checkpoint
    assert denied.summary.checkpoint is not None

    proxy.faults.replace([])
    published = attempt()
    assert published.status == 0, published.log
    assert "an earlier attempt finished the training" in published.log
    artifact = published.summary.artifact
    assert artifact is not None
    assert artifact.uri == "s3://results/out"
    there = client.get_object("results", "out/manifest.json").read()
    assert json.loads(there)["measured"] == json.loads(trained.to_json())["measured"]

    again = attempt()
    assert again.status == 0, again.log
    assert again.summary.artifact == artifact
    assert "this run published its result already" in again.log
    assert client.get_object("results", "out/manifest.json").read() == there
    assert SECRET not in denied.log + published.log + again.log


def test_a_server_that_is_gone_for_a_while_costs_no_attempt(
    *,
    workplace: Workplace,
    gateway: str,
    proxy: Proxy,
    attempt: Attempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same pod publishes once it is back: without a claim it has the only copy."""
    client = servers.client(gateway)
    for name in stored(client, "out"):
        client.remove_object("results", name)
    client.fput_object("results", "data/train.jsonl", str(workplace.claims / "data/train.jsonl"))
    train = Supervisor._train

    def train_before(*arguments: Any) -> None:
        train(*arguments)
        proxy.inject(Fault(path="*/out/adapter_model*", method="PUT", status=503, times=2 * ATTEMPTS + 1))

    monkeypatch.setattr(Supervisor, "_train", train_before)
    monkeypatch.setattr("lora_trainer.host.child.PAUSES_S", (0.01, 0.02))
    done = attempt()
    assert done.status == 0, done.log
    assert done.log.count("publish failed, and is tried again in 0 s: ") == 2
    assert "out/manifest.json" in stored(client, "out")


def test_a_result_is_published_by_hand(
    tmp_path: Path, gateway: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder to a bucket and to a claim; once more is the same result, and the folder stays."""
    folder = write_adapter(tmp_path / "staged", "uid-hand")
    (tmp_path / "claims/store").mkdir(parents=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    addresses = ("s3://results/hand", "pvc://store/hand")
    for address in (*addresses, *addresses):
        assert main(["publish", str(folder), address, "--claims", str(tmp_path / "claims")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:]
    assert [line.partition(" ")[0] for line in lines[:2]] == list(addresses)
    check_digests(tmp_path / "claims/store/hand", read_manifest(tmp_path / "claims/store/hand"))
    assert [path.name for path in (tmp_path / "claims/store").iterdir()] == ["hand"]
    assert len(stored(servers.client(gateway), "hand/")) == 3
    check_digests(folder, read_manifest(folder))


def test_another_result_of_the_run_is_not_taken_for_the_one_that_is_published(
    tmp_path: Path,
    gateway: str,
    registry: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as its merged model beside its adapter: nothing was written, and the command said that all was well."""
    (tmp_path / "store").mkdir()
    for name, value in {**KEYS, "AWS_ENDPOINT_URL_S3": gateway, "LORA_OCI_PLAIN_HTTP": registry}.items():
        monkeypatch.setenv(name, value)
    first, second = write_adapter(tmp_path / "first"), write_adapter(tmp_path / "second")
    (second / "adapter_model.safetensors").write_bytes(b"weights of another checkpoint")
    (second / MANIFEST).unlink()
    write_sealed(second, make_manifest("uid-1"))
    for address in ("pvc://store/x", "s3://results/twice", f"oci://{registry}/acme/twice:v1"):
        for folder, status in ((first, 0), (second, 64), (first, 0)):
            assert main(["publish", str(folder), address, "--claims", str(tmp_path)]) == status
        errors = capsys.readouterr().err
        assert errors.startswith(address)
        assert " holds another result of the run tiny already, whose manifest.json has sha256:" in errors
        assert "nothing is overwritten; name another address" in errors


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("configmap://a/b", 64, "configmap://a/b: must start with pvc://, s3://, hf:// or oci://"),
        ("ftp://a/b", 64, "ftp://a/b: must start with hf://, s3://"),
        ("pvc://none/x", 74, "the claim none is not mounted"),
    ],
)
def test_a_publication_by_hand_that_cannot_be_is_reported(
    *, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, status: int, sentence: str
) -> None:
    """Address and claim."""
    folder = write_adapter(tmp_path / "staged")
    assert main(["publish", str(folder), address, "--claims", str(tmp_path)]) == status
    assert sentence in capsys.readouterr().err


def test_a_damaged_result_is_not_published_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its manifest does not vouch for it."""
    folder = write_adapter(tmp_path / "staged")
    (folder / "adapter_model.safetensors").write_bytes(b"weights of uid-X")
    (tmp_path / "store").mkdir()
    assert main(["publish", str(folder), "pvc://store/x", "--claims", str(tmp_path)]) == 1
    assert "adapter_model.safetensors has sha256" in capsys.readouterr().err
    assert list((tmp_path / "store").iterdir()) == []
