"""A base model is known by its configuration and its weights' headers: how little is fetched, and what is wrong."""

import dataclasses
import functools
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.fit_models import llama
from tests.unit.sparse_weights import quick_digests, write_weights

from hub.answers import repository_record
from hub.faults import Fault
from hub.server import HubServer
from lora_trainer.errors import ConfigError, TransientError
from lora_trainer.plan.architecture import ModelArchitecture
from lora_trainer.plan.families import described
from lora_trainer.storage.base import find_base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.model_headers import MOST_HEADER_BYTES, ModelHeaders, read_headers
from lora_trainer.storage.network import ATTEMPTS
from lora_trainer.storage.tensor_files import entries_of, header_bytes
from lora_trainer.storage.volumes import Volumes

LLAMA_70B = llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
SMALL = llama(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8, vocab_size=1000)
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty model of the Hub."""
    path = tmp_path / "hub/models/acme/base"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def server(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that does not read large files for their digests."""
    monkeypatch.setattr("hub.repositories._digests", quick_digests)
    with HubServer(tmp_path / "hub").start() as hub:
        yield hub


def tensors(shape: ModelArchitecture) -> dict[str, list[int]]:
    """Names and shapes of all weights of a Llama."""
    found = {
        "model.embed_tokens.weight": [shape.vocabulary, shape.hidden],
        "model.norm.weight": [shape.hidden],
        "lm_head.weight": [shape.vocabulary, shape.hidden],
    }
    for index, _, name, module in shape.modules():
        found[f"{name}.weight"] = [module.outputs, module.inputs]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{index}.{norm}.weight"] = [shape.hidden]
    return found


def fill(folder: Path, config: dict[str, Any], shards: int = 1) -> int:
    """Write a model in so many files; the bytes of their headers."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = tensors(described(config, "config.json"))
    if shards == 1:
        return write_weights(folder / WEIGHTS, weights)
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    index = {tensor: names[number % shards] for number, tensor in enumerate(weights)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    return sum(
        write_weights(folder / name, {tensor: weights[tensor] for tensor in weights if index[tensor] == name})
        for name in names
    )


def look(server: HubServer, tmp_path: Path) -> ModelHeaders:
    """Look at the model as preflight does."""
    hub = Hub(environment={"HF_ENDPOINT": server.url}, cache=tmp_path / "cache", sleep=lambda _seconds: None)
    return read_headers("hf://acme/base", Volumes(), hub)


def sent(server: HubServer, ending: str = "") -> int:
    """Bytes that the Hub sent of files that end so."""
    return sum(counts["bytes"] for path, counts in server.served().items() if path.endswith(ending))


def settled(server: HubServer, expected: int) -> int:
    """Bytes of weights that the Hub sent, once they are as many as expected: it counts after it has written."""
    deadline = time.monotonic() + 300
    while sent(server, ".safetensors") < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return sent(server, ".safetensors")


def test_of_70b_parameters_in_30_files_less_than_20_megabytes_are_fetched(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    """Tokenizer and all; of the weights the headers and not a byte more."""
    headers = fill(folder, LLAMA_70B, shards=30)
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": "x" * 9_100_000}), encoding="utf-8")
    found = look(server, tmp_path)
    assert found.parameters == described(LLAMA_70B, "").parameters == 70_553_706_496
    assert found.weight_bytes == 2 * found.parameters
    assert len(found.tensors) == 30
    assert settled(server, headers) == headers
    assert sent(server) < 20_000_000
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_header_is_the_same_by_ranges_and_from_the_file(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """And so is what it comes to."""
    fill(folder, SMALL)
    with (folder / WEIGHTS).open("rb") as stream:
        assert look(server, tmp_path).tensors == {WEIGHTS: entries_of(header_bytes(stream))}


def test_a_server_without_ranges_is_not_read_to_the_end(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """It sends two gigabytes; a few buffers of them are taken."""
    (folder / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    write_weights(folder / WEIGHTS, {"a": [2**30]})
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", whole=True, times=None))
    assert look(server, tmp_path).parameters == 2**30
    assert sent(server, WEIGHTS) < 2**26


@pytest.mark.parametrize("listed", [True, False], ids=["in the list alone", "nowhere"])
def test_a_mirror_that_leaves_sizes_out_is_read_all_the_same(
    server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, listed: bool
) -> None:
    """It redirects to a storage, say, and names no size before."""
    found = Hub._metadata
    monkeypatch.setattr(Hub, "_metadata", lambda *given: dataclasses.replace(found(*given), size=None))
    if not listed:
        plain = functools.partial(repository_record, with_file_metadata=False)
        monkeypatch.setattr("hub.server.repository_record", lambda *given, **_: plain(*given))
    fill(folder, SMALL)
    assert look(server, tmp_path).parameters == described(SMALL, "").parameters
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.truncate((folder / WEIGHTS).stat().st_size - 1)
    if listed:
        with pytest.raises(ConfigError, match="it is cut off or damaged"):
            look(server, tmp_path)
    else:
        assert look(server, tmp_path).parameters, "only the training can tell"


def test_what_was_only_looked_at_is_no_revision_to_load_offline(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    """The cache's note of the revision stays at the commit whose weights are there."""
    fill(folder, SMALL)
    reference = tmp_path / "cache/models--acme--base/refs/main"
    look(server, tmp_path)
    assert not reference.exists()
    hub = Hub(environment={"HF_ENDPOINT": server.url}, cache=tmp_path / "cache")
    whole = find_base("hf://acme/base", Volumes(), hub)
    assert reference.read_text(encoding="ascii") == whole.revision
    fill(folder, {**SMALL, "rope_theta": 5.0})
    assert look(server, tmp_path).base.revision != whole.revision
    offline = Hub(environment={"HF_HUB_OFFLINE": "1"}, cache=tmp_path / "cache")
    assert find_base("hf://acme/base", Volumes(), offline).revision == whole.revision


def test_a_header_that_is_cut_off_is_asked_for_again(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """A bounded number of times, and not from the beginning."""
    fill(folder, SMALL)
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", cut_after_bytes=5, times=2))
    assert look(server, tmp_path).parameters == described(SMALL, "").parameters
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", cut_after_bytes=5, times=None))
    before = server.served()
    with pytest.raises(TransientError, match=r"model\.uri is hf://acme/base: the Hub cannot be reached"):
        look(server, tmp_path)
    asked = {path: counts["requests"] - before[path]["requests"] for path, counts in server.served().items()}
    # One HEAD comes first.
    assert [count for path, count in asked.items() if path.endswith(WEIGHTS)] == [ATTEMPTS + 1]


def _longer_than_the_file(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 5_000) + b"{}" + b" " * 100)


def _longer_than_any(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", MOST_HEADER_BYTES + 1))
        stream.truncate(2**30)


def _longer_than_the_format(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")


def _no_json(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 10) + b"<!doctype>" + b" " * 50)


def _nested(path: Path) -> None:
    text = b'{"a":' * 100_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def _bytes(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _header(document: object, size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        text = json.dumps(document).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * size)

    return write


def _tensor(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "longer than the file": (_longer_than_the_file, r"says that its header has 5,000 bytes: it must have at most 102,"),
    "longer than any": (
        _longer_than_any,
        r"says that its header has 16,777,217 bytes: it must have at most 16,777,216",
    ),
    "longer than the format": (_longer_than_the_format, "is not a safetensors file"),
    "shorter than eight bytes": (_bytes(b"abc"), "is not a safetensors file"),
    "empty": (_bytes(b""), "is not a safetensors file"),
    "no JSON": (_no_json, "is not a safetensors file, or cut off in its header"),
    "nested too deeply": (_nested, "is not a safetensors file, or cut off in its header"),
    "a list": (_header([1], 0), "is not a safetensors file, or cut off in its header"),
    "a tensor that is text": (_header({"a": "x"}, 0), "is not a safetensors file, or cut off in its header"),
    "sides that are text": (_header(_tensor(shape=["2", "2"]), 16), "is not a safetensors file"),
    "negative sides": (_header(_tensor(shape=[-2, -2]), 16), "is not a safetensors file"),
    "a bool for a side": (_header(_tensor(shape=[True, 4]), 16), "is not a safetensors file"),
    "an end before its start": (_header(_tensor(data_offsets=[16, 0]), 16), "is not a safetensors file"),
    "a shape of other bytes": (_header(_tensor(shape=[2**31, 2]), 16), "is not a safetensors file"),
    "less than it says": (_header(_tensor(), 15), r"has \d+ bytes, its header says \d+: it is cut off or damaged"),
    "more than it says": (_header(_tensor(), 17), r"has \d+ bytes, its header says \d+: it is cut off or damaged"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_gets_one_sentence(server: HubServer, folder: Path, tmp_path: Path, name: str) -> None:
    """With the file and the remedy, from the Hub and from a claim alike; nothing of a gigabyte is fetched for it."""
    write, sentence = LIES[name]
    (folder / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    write(folder / WEIGHTS)
    with pytest.raises(ConfigError, match=f"^model.uri is hf://acme/base: its model.safetensors {sentence}") as caught:
        look(server, tmp_path)
    assert "copy or upload it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sent(server, WEIGHTS) < 2**20
    with pytest.raises(ConfigError, match=r"^model\.uri is pvc://acme/base: its model\.safetensors "):
        read_headers("pvc://acme/base", Volumes(claims=tmp_path / "hub/models"), Hub())


def test_an_index_names_the_files_that_count(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """A second copy of the weights beside them does not; one that is not there is reported."""
    fill(folder, SMALL, shards=3)
    write_weights(folder / "other.safetensors", {"a": [10]})
    assert look(server, tmp_path).parameters == described(SMALL, "").parameters
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        look(server, tmp_path)


def test_a_file_that_is_in_the_cache_is_read_there(server: HubServer, folder: Path, tmp_path: Path) -> None:
    """A filled cache needs no header of the Hub."""
    header = fill(folder, SMALL)
    before = look(server, tmp_path)
    assert settled(server, header) == header
    (before.base.folder / WEIGHTS).symlink_to(folder / WEIGHTS)
    assert look(server, tmp_path).tensors == before.tensors
    assert sent(server, WEIGHTS) == header
