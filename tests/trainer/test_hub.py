"""Models and data sets of a Hub, and every way in which it can refuse, against a stand-in that speaks its protocol."""

import dataclasses
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny

from hub.access import Restriction
from hub.faults import Fault
from hub.server import HubServer
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.errors import AccessDeniedError, ConfigError, NotFoundError, TrainerError, TransientError
from lora_trainer.spec.config import LossOn
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import HubUri
from lora_trainer.storage import network
from lora_trainer.storage.base import find_base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.model_headers import read_headers
from lora_trainer.storage.roles import Role
from lora_trainer.storage.volumes import Volumes

TOKEN = "hf_allowed"


@pytest.fixture
def server(tmp_path: Path, tiny_folder: Path) -> Iterator[HubServer]:
    """A Hub with models, a private and a gated one among them, and data sets."""
    models = tmp_path / "hub/models/org"
    for name in ("tiny", "private", "gated"):
        shutil.copytree(tiny_folder, models / name)
    shutil.copytree(tiny_folder, models / "pickled")
    (models / "pickled/model.safetensors").rename(models / "pickled/pytorch_model.bin")
    (models / "tiny/original.bin").write_bytes(b"never fetched")
    tiny.write_jsonl(tmp_path / "hub/datasets/org/chats/data/train.jsonl", tiny.chats(3))
    tiny.write_jsonl(tmp_path / "hub/datasets/org/chats/data/test.jsonl", tiny.chats(1))
    restrictions = {
        "models/org/private": Restriction(visibility="private", tokens=frozenset({TOKEN})),
        "models/org/gated": Restriction(visibility="gated", tokens=frozenset({TOKEN})),
    }
    with HubServer(tmp_path / "hub", restrictions=restrictions).start() as hub:
        yield hub


def client(server: HubServer, tmp_path: Path, **environment: str) -> Hub:
    """The trainer's client, with a cache of its own, that does not really wait."""
    environment["HF_ENDPOINT"] = server.url
    return Hub(environment=environment, cache=tmp_path / "cache", sleep=lambda seconds: None)


def waiting_client(server: HubServer, tmp_path: Path, waits: list[float]) -> Hub:
    """A client that notes the pauses, in seconds, that it would make."""
    return dataclasses.replace(client(server, tmp_path), sleep=waits.append)


def find(server: HubServer, tmp_path: Path, uri: str, **environment: str) -> Any:
    """Look a model up."""
    return find_base(uri, Volumes(), client(server, tmp_path, **environment))


def test_a_model_is_pinned_to_its_commit_and_only_needed_files_are_fetched(server: HubServer, tmp_path: Path) -> None:
    """Configuration, tokenizer and safetensors; no other weights."""
    base = find(server, tmp_path, "hf://org/tiny")
    assert (base.name, base.model_type) == ("org/tiny", "llama")
    assert len(base.revision) == 40
    names = {path.name for path in base.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "original.bin" not in names


def test_a_template_for_tools_comes_along(server: HubServer, tmp_path: Path) -> None:
    """As Transformers takes it from a claim; preflight, which fetches no weights, has it, too."""
    folder = tmp_path / "hub/models/org/tiny/additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ tools }}", encoding="utf-8")
    hub = client(server, tmp_path)
    for base in (read_headers("hf://org/tiny", Volumes(), hub).base, find_base("hf://org/tiny", Volumes(), hub)):
        assert load_encoder(base, LossOn.COMPLETION, 64).tokenizer.chat_template["tool_use"] == "{{ tools }}"


@pytest.mark.parametrize("name", ["private", "gated"])
def test_the_token_of_the_run_opens_a_closed_model(server: HubServer, tmp_path: Path, name: str) -> None:
    """MODEL_HF_TOKEN is the model's."""
    assert find(server, tmp_path, f"hf://org/{name}", MODEL_HF_TOKEN=TOKEN).name == f"org/{name}"


def test_a_token_may_end_with_a_newline(server: HubServer, tmp_path: Path) -> None:
    """As one does that was read from a file."""
    assert find(server, tmp_path, "hf://org/private", MODEL_HF_TOKEN=f"{TOKEN}\n").name == "org/private"


@pytest.mark.parametrize("variable", ["MODEL_HF_TOKEN", "HF_TOKEN"])
@pytest.mark.parametrize("token", ["hf_SECRET\nhf_OTHER", "hf_\x00SECRET", "hf_SECRET\u00e9"])
def test_a_token_that_cannot_be_sent_is_refused_without_showing_it(
    server: HubServer, tmp_path: Path, variable: str, token: str
) -> None:
    """The HTTP client would quote it in its message."""
    with pytest.raises(AccessDeniedError, match=r"model\.secretRef's HF_TOKEN holds characters") as caught:
        find(server, tmp_path, "hf://org/private", **{variable: token})
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "token", "kind", "reason", "sentence"),
    [
        ("hf://org/private", None, NotFoundError, Reason.MODEL_NOT_FOUND, "model.secretRef"),
        ("hf://org/nothing", None, NotFoundError, Reason.MODEL_NOT_FOUND, "check the spelling"),
        ("hf://org/gated", None, AccessDeniedError, Reason.MODEL_ACCESS_DENIED, "the Hub answered 401"),
        ("hf://org/gated", "hf_other", AccessDeniedError, Reason.MODEL_ACCESS_DENIED, "the Hub answered 403"),
        ("hf://org/nothing", "hf_other", NotFoundError, Reason.MODEL_NOT_FOUND, "no such repository"),
        ("hf://org/tiny@v9", "hf_other", NotFoundError, Reason.MODEL_NOT_FOUND, "hf://org/tiny@v9"),
        ("hf://org/pickled", None, ConfigError, Reason.CONFIG_INVALID, "only pickled weights (pytorch_model.bin)"),
    ],
)
def test_a_model_that_cannot_be_had_is_reported(
    *,
    server: HubServer,
    tmp_path: Path,
    uri: str,
    token: str | None,
    kind: type[TrainerError],
    reason: Reason,
    sentence: str,
) -> None:
    """Denied, missing, or of the wrong kind: each with its own exit code, reason and sentence."""
    environment = {} if token is None else {"MODEL_HF_TOKEN": token}
    with pytest.raises(kind) as caught:
        find(server, tmp_path, uri, **environment)
    assert caught.value.reason is reason
    assert sentence in str(caught.value)
    assert uri.removeprefix("hf://") in str(caught.value)
    assert "hf_" not in str(caught.value)


def test_a_busy_hub_is_asked_again(server: HubServer, tmp_path: Path) -> None:
    """Two refusals, then the model."""
    server.inject(Fault(path="/api/models/org/tiny*", status=503, times=2))
    waits: list[float] = []
    assert find_base("hf://org/tiny", Volumes(), waiting_client(server, tmp_path, waits)).name == "org/tiny"
    assert len(waits) == 2
    assert all(0 < wait <= 2 for wait in waits)


def test_a_hub_that_stays_busy_is_transient(server: HubServer, tmp_path: Path) -> None:
    """After a bounded number of attempts: the Job may try again later."""
    server.inject(Fault(path="/api/models/org/tiny*", status=503, times=None))
    waits: list[float] = []
    with pytest.raises(TransientError, match="the Hub answered 503") as caught:
        find_base("hf://org/tiny", Volumes(), waiting_client(server, tmp_path, waits))
    assert (caught.value.code, caught.value.reason) == (75, Reason.RESTARTING)
    assert len(waits) == 3


def test_a_hub_that_is_not_there_is_transient(tmp_path: Path) -> None:
    """Nobody listens."""
    waits: list[float] = []
    hub = Hub(environment={"HF_ENDPOINT": "http://127.0.0.1:9"}, cache=tmp_path, sleep=waits.append)
    with pytest.raises(TransientError, match="the Hub cannot be reached") as caught:
        hub.repository(HubUri(repo="org/tiny"), Role.MODEL)
    assert (caught.value.code, caught.value.reason) == (75, Reason.RESTARTING)
    assert waits


def test_a_data_set_that_is_not_there_has_its_own_reason(server: HubServer, tmp_path: Path) -> None:
    """`DatasetNotFound`, and the data set's own token."""
    with pytest.raises(NotFoundError) as caught:
        client(server, tmp_path, DATASET_HF_TOKEN="hf_other").repository(HubUri(repo="org/none"), Role.DATASET)
    assert caught.value.reason is Reason.DATASET_NOT_FOUND


def test_a_hub_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and is silent, as behind a broken load balancer: the library would wait for ever."""
    monkeypatch.setattr(network, "READ_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub = Hub(environment={"HF_ENDPOINT": endpoint}, cache=tmp_path, sleep=lambda seconds: None)
        with pytest.raises(TransientError, match="the Hub cannot be reached"):
            hub.repository(HubUri(repo="org/tiny"), Role.MODEL)
        with pytest.raises(TransientError, match="the Hub cannot be reached"):
            hub.call(HubUri(repo="org/tiny"), Role.OUTPUT, hub.api(Role.OUTPUT).whoami)
