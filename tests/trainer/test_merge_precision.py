"""Merged models in fp32: nothing is rounded away of a 16-bit base, and the files say what they hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.trainer.conftest import make_config
from tests.trainer.test_merge import ALL, IDS, adapter_of, gpt2, llama, load, mixtral
from tests.trainer.test_verify import trained
from tests.trainer.tiny import in_16_bits
from transformers import AutoModelForCausalLM

from lora_trainer.result.merge import merge_into
from lora_trainer.result.merge_stage import merge_by_hand, merge_result
from lora_trainer.result.merged_config import say_fp32
from lora_trainer.spec.config import Merge, MergePrecision
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.tensor_files import read_entries

INDEX = "model.safetensors.index.json"
KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "several files, tied embeddings": (llama, {"target_modules": ALL}),
    "DoRA, norm whole": (llama, {"target_modules": ALL, "use_dora": True, "modules_to_save": ["norm"]}),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "tied embeddings trained together": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied embeddings trained apart": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "experts": (
        mixtral,
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
}


def logits(model: Any) -> torch.Tensor:
    """Of some tokens."""
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("kind", KINDS)
def test_a_16_bit_base_that_is_merged_in_fp32_says_what_base_and_adapter_say(tmp_path: Path, kind: str) -> None:
    """To 1e-5, where its own type rounds ten times as much away; edited file by file, or merged in memory."""
    make, options = KINDS[kind]
    base = in_16_bits(make(tmp_path / "full"), tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", **options)
    for precision in MergePrecision:
        merge_into(adapter, base, tmp_path / precision.value, precision)
    wanted = logits(PeftModel.from_pretrained(load(base), str(adapter)).eval())
    folder = tmp_path / "FP32"
    found: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(found.eval()), wanted, rtol=0, atol=1e-5)
    assert (logits(load(tmp_path / "Auto")) - wanted).abs().max() > 1e-4

    files = sorted(folder.glob("*.safetensors"))
    entries = [entry for file in files for entry in read_entries(file)]
    assert {entry.dtype for entry in entries} == {"F32"}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    index = json.loads((folder / INDEX).read_text(encoding="utf-8")) if (folder / INDEX).is_file() else None
    assert (index is not None) == (len(files) > 1)
    if index is not None:
        assert index["metadata"]["total_size"] == sum(entry.size_bytes for entry in entries)
        assert sorted(index["weight_map"]) == sorted(entry.name for entry in entries)


def test_what_is_no_weight_stays_as_it_is_in_a_valid_file(tmp_path: Path) -> None:
    """Counters and masks; offsets and what else the header says fit what follows."""
    base = in_16_bits(llama(tmp_path / "full", num_hidden_layers=1), tmp_path / "base")
    file = max(base.glob("*.safetensors"))
    others = {
        "a.counts": torch.arange(5),
        "b.mask": torch.tensor([True, False, True]),
        "c.odd": torch.arange(7).bfloat16(),
        "d.empty": torch.empty(0, 3).bfloat16(),
        "e.single": torch.tensor(1.5).half(),
    }
    before = {**load_file(file), **others}
    save_file(before, file, metadata={"format": "pt", "made": "by hand"})
    adapter = adapter_of(tmp_path / "full", tmp_path / "adapter", target_modules=["q_proj"])
    merge_into(adapter, base, tmp_path / "merged", MergePrecision.FP32)
    with safe_open(tmp_path / "merged" / file.name, framework="pt") as written:
        assert written.metadata() == {"format": "pt", "made": "by hand"}
        found = {name: written.get_tensor(name) for name in written.keys()}  # noqa: SIM118 - it is no mapping
    for name, tensor in before.items():
        if "q_proj" not in name:
            kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
            assert (found[name].dtype, found[name].shape) == (kind, tensor.shape), name
            assert torch.equal(found[name], tensor.to(kind)), name
    end = 0
    for entry in read_entries(tmp_path / "merged" / file.name):
        assert entry.start == end
        end += entry.size_bytes


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "bfloat16", "n": 1e-05}, {"dtype": "float32", "n": 1e-05}),
        ({"torch_dtype": "float16"}, {"torch_dtype": "float32"}),
        ({"model_type": "llama"}, {"model_type": "llama", "dtype": "float32"}),
        (
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "parts": [1]},
            {"dtype": "float32", "text_config": {"dtype": "float32"}, "parts": [1]},
        ),
    ],
)
def test_the_configuration_names_the_type_wherever_it_did(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """By its old name and in the parts of a multimodal model, too."""
    (tmp_path / "config.json").write_text(json.dumps(before), encoding="utf-8")
    say_fp32(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == after


def test_a_merge_in_fp32_is_held_to_the_tolerance_of_fp32(tmp_path: Path, tiny_folder: Path) -> None:
    """Since nothing rounds, what it costs is 0; the command does the same as a run."""
    source, volumes = trained(tmp_path, in_16_bits(tiny_folder, tmp_path / "base"), make_config())
    costs = {}
    for precision in MergePrecision:
        target = tmp_path / precision.value
        merge_result(source, target, Merge.MERGED, volumes, Hub(), precision=precision)
        merged = read_manifest(target).merged
        assert merged is not None
        assert merged.tolerance == (1e-3 if precision is MergePrecision.FP32 else 2e-2)
        costs[precision] = abs(merged.loss - merged.expected)
    assert costs[MergePrecision.FP32] < 1e-5 < costs[MergePrecision.AUTO]
    merge_by_hand(source, tmp_path / "by hand", volumes, Hub(), MergePrecision.FP32)
    assert (tmp_path / "by hand/model.safetensors").read_bytes() == (tmp_path / "FP32/model.safetensors").read_bytes()
