"""Models that are merged whole in memory: their files are the base's, but for what the adapter changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.trainer.conftest import make_config
from tests.trainer.servers import full_disk
from tests.trainer.test_merge import adapter_of, llama, mixtral
from tests.trainer.tiny import in_16_bits

from lora_trainer.errors import StorageError, VerificationError
from lora_trainer.result.merge import merge_into
from lora_trainer.result.merged_weights import check_weights
from lora_trainer.spec.config import LoraConfig
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.base import open_folder
from lora_trainer.storage.tensor_files import read_entries

INDEX = "model.safetensors.index.json"
EXPERTS: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}
ROUTER = "gate.weight"


def mixture(root: Path) -> tuple[Path, Path]:
    """A mixture in bf16, in two files, with a router in fp32 and a tensor that Transformers passes over, under a
    configuration as Transformers 4 wrote it; and an adapter for its experts."""
    plain = mixtral(root / "plain")
    tensors = load_file(plain / "model.safetensors")
    adapter = adapter_of(plain, root / "adapter", **EXPERTS)
    base = in_16_bits(plain, root / "base")
    (base / "model.safetensors").unlink()
    kept = {name: tensor if name.endswith(ROUTER) else tensor.bfloat16() for name, tensor in tensors.items()}
    files = {
        "model-00001-of-00002.safetensors": {name: kept[name] for name in kept if "experts" in name},
        "model-00002-of-00002.safetensors": {name: kept[name] for name in kept if "experts" not in name}
        | {"mtp.layers.0.weight": torch.ones(4, 4).bfloat16()},
    }
    for file, part in files.items():
        save_file(part, base / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in files.items() for name in part}
    (base / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="utf-8")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return base, adapter


def lora() -> LoraConfig:
    """What the adapter of `mixture` was trained with."""
    targets = {"targetModules": EXPERTS["target_modules"], "targetParameters": EXPERTS["target_parameters"]}
    return make_config(lora={"rank": 4, "alpha": 8, **targets}).lora


def test_files_names_types_and_configuration_are_the_bases(tmp_path: Path) -> None:
    """A router was rounded to 16 bits, and what Transformers passes over was lost. Readers of Transformers 4 do not
    know the configuration of Transformers 5, and what the owner alone may read serves nobody else."""
    base, adapter = mixture(tmp_path)
    merged = tmp_path / "merged"
    merge_into(adapter, base, merged)
    files = sorted(base.glob("*.safetensors"))
    assert sorted(path.name for path in merged.iterdir()) == sorted(path.name for path in base.iterdir())
    for name in ("config.json", INDEX):
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    changed = set()
    for file in files:
        assert read_entries(merged / file.name) == read_entries(file)
        assert (merged / file.name).stat().st_mode == (merged / "config.json").stat().st_mode
        before, after = load_file(file), load_file(merged / file.name)
        changed |= {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {"q_proj", "w1", "w3"}
    check_weights(open_folder(base), adapter, merged, lora())


@pytest.mark.parametrize("how", ["router", "type", "unread", "more"])
def test_what_loads_as_the_same_model_and_is_not_the_bases_is_found(tmp_path: Path, how: str) -> None:
    """Both models are rounded alike when they are loaded, and lack the same."""
    base, adapter = mixture(tmp_path)
    merged = tmp_path / "merged"
    merge_into(adapter, base, merged)
    file = merged / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    if how == "router":
        tensors = {name: t * (1 + 2**-20) if name.endswith(ROUTER) else t for name, t in tensors.items()}
    elif how == "type":
        tensors["mtp.layers.0.weight"] = tensors["mtp.layers.0.weight"].half()
    elif how == "more":
        tensors["zero.weight"] = torch.zeros(4, 4).bfloat16()
    else:
        del tensors["mtp.layers.0.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="base model"):
        check_weights(open_folder(base), adapter, merged, lora())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("trained", ["lm_head", "embed_tokens"])
def test_embeddings_that_were_trained_apart_are_the_only_news(tmp_path: Path, trained: str) -> None:
    """One tensor more, in files and index, and a configuration that no longer ties."""
    base = in_16_bits(llama(tmp_path / "plain"), tmp_path / "base")
    adapter = adapter_of(tmp_path / "plain", tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=[trained])
    merged = tmp_path / "merged"
    merge_into(adapter, base, merged)
    config, index = (json.loads((base / name).read_text(encoding="utf-8")) for name in ("config.json", INDEX))
    assert json.loads((merged / "config.json").read_text(encoding="utf-8")) == {**config, "tie_word_embeddings": False}
    file = max(index["weight_map"].values())
    found = json.loads((merged / INDEX).read_text(encoding="utf-8"))
    assert found["weight_map"] == {**index["weight_map"], "lm_head.weight": file}
    embeddings = load_file(base / index["weight_map"]["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    assert found["metadata"]["total_size"] == index["metadata"]["total_size"] // 2 + embeddings.nbytes
    head = load_file(merged / file)["lm_head.weight"]
    assert torch.equal(head, embeddings) == (trained == "embed_tokens")
    with safe_open(merged / file, framework="pt") as written:
        assert written.metadata() == {"format": "pt"}
    config_of = make_config(lora={"rank": 4, "alpha": 8, "targetModules": ["q_proj"], "modulesToSave": [trained]})
    check_weights(open_folder(base), adapter, merged, config_of.lora)


def test_a_full_volume_is_called_that(tmp_path: Path) -> None:
    """It was an internal error, which nobody can help."""
    base = mixtral(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", **EXPERTS)
    with full_disk(tmp_path / "merged", 16) as merged, pytest.raises(StorageError) as caught:
        merge_into(adapter, base, merged)
    assert caught.value.reason is Reason.STORAGE_FULL
