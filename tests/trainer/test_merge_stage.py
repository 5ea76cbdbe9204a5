"""From a verified adapter to a result with the merged model: what is in it, and that a wrong one is not published."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.trainer.conftest import make_config
from tests.trainer.test_verify import trained
from tests.trainer.tiny import in_16_bits
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_trainer import cli
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.errors import VerificationError
from lora_trainer.model.device import Device
from lora_trainer.result import merge_stage, merged
from lora_trainer.result.merge import merge_into
from lora_trainer.result.merge_stage import merge_result
from lora_trainer.result.merged import bench_for, first_rows, rounding
from lora_trainer.result.verify import verify
from lora_trainer.spec.config import Merge, MergePrecision
from lora_trainer.storage.base import open_folder
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Form, check_digests, describe, read_manifest
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.noise import TOLERANCES

CURVES = {"README.md", "held_out_rows.json", "loss.png", "metrics.jsonl"}
MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, Volumes]:
    """A trained adapter whose base has NF4 weights, and the volumes that it was trained from."""
    return trained(tmp_path_factory.mktemp("merge"), tiny_folder, make_config(quantization="NF4"))


def paths(folder: Path) -> set[str]:
    """The files of a result by its manifest, which is true."""
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    return {entry.path for entry in manifest.files}


def test_a_result_can_hold_the_merged_model_beside_the_adapter(
    adapter: tuple[Path, Volumes], tmp_path: Path, tiny_folder: Path
) -> None:
    """Merged into the unquantized base: it has the loss of that base with the adapter, which NF4 rounding shifts."""
    source, volumes = adapter
    merge_result(source, tmp_path / "both", Merge.BOTH, volumes, Hub())
    manifest = read_manifest(tmp_path / "both")
    adapter_files = {"adapter_config.json", "adapter_model.safetensors"}
    names = {f"merged/{name}" for name in MODEL | {"chat_template.jinja"}}
    assert paths(tmp_path / "both") == CURVES | adapter_files | names
    assert (manifest.format, manifest.serving.servable) == (Form.BOTH, True)
    assert manifest.merged is not None
    assert abs(manifest.merged.loss - manifest.merged.expected) < 1e-4
    assert abs(manifest.merged.loss - manifest.measured.eval_loss_after) > 1e-4
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "both/merged")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[name], base.state_dict()[name])
    assert verify(tmp_path / "both", volumes, Hub()).difference < 1e-3


def test_a_result_can_be_the_merged_model_alone(adapter: tuple[Path, Volumes], tmp_path: Path) -> None:
    """A model's folder like any other, and still a result that `verify` checks."""
    source, volumes = adapter
    merge_result(source, tmp_path / "merged", Merge.MERGED, volumes, Hub())
    assert paths(tmp_path / "merged") == CURVES | MODEL | {"chat_template.jinja"}
    manifest = read_manifest(tmp_path / "merged")
    artifact = describe("pvc://adapters/out", "sha256:1", manifest)
    assert (artifact.format, artifact.servable, artifact.serving, artifact.rank) == ("merged", True, "", 4)
    assert "vllm serve path/of/this/folder\n" in (tmp_path / "merged/README.md").read_text(encoding="utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template is not None
    assert manifest.merged is not None
    assert verify(tmp_path / "merged", volumes, Hub()).loss == pytest.approx(manifest.merged.loss, abs=1e-5)


def test_people_merge_a_published_adapter_with_one_command(
    adapter: tuple[Path, Volumes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into a new folder; whatever else is there is left alone, and nothing half-made stays."""
    source, volumes = adapter

    def merge(folder: Path, output: Path) -> int:
        return cli.main(["merge", str(folder), "--output", str(output), "--claims", str(volumes.claims)])

    assert merge(source, tmp_path / "model") == 0
    assert f"Serve it: vllm serve {tmp_path / 'model'}" in capsys.readouterr().out
    assert read_manifest(tmp_path / "model").format is Form.MERGED
    assert merge(source, tmp_path / "model") == 64
    assert "something is there already; name a new folder" in capsys.readouterr().err
    assert merge(tmp_path / "model", tmp_path / "other") == 64
    assert "is a merged model already" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_merged_model_with_a_wrong_weight_is_no_result(
    adapter: tuple[Path, Volumes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder gets no manifest, so that nobody takes it for one."""
    source, volumes = adapter

    def wrong(one: Path, base: Path, target: Path, _precision: MergePrecision) -> None:
        merge_into(one, base, target)
        tensors = load_file(target / "model.safetensors")
        name = "model.layers.1.mlp.up_proj.weight"
        save_file({**tensors, name: tensors[name] * 1.001}, target / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merge_stage, "merge_into", wrong)
    with pytest.raises(VerificationError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not what base and adapter"):
        merge_result(source, tmp_path / "merged", Merge.MERGED, volumes, Hub())
    assert not (tmp_path / "merged/manifest.json").exists()


def test_right_weights_that_load_as_another_model_are_no_result(
    adapter: tuple[Path, Volumes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a configuration that changed on the way, say: the loss shows it."""
    source, volumes = adapter

    def wrong(one: Path, base: Path, target: Path, _precision: MergePrecision) -> None:
        merge_into(one, base, target)
        document = json.loads((target / "config.json").read_text(encoding="utf-8"))
        (target / "config.json").write_text(json.dumps({**document, "rms_norm_eps": 1.0}), encoding="utf-8")

    monkeypatch.setattr(merge_stage, "merge_into", wrong)
    with pytest.raises(VerificationError, match="the written merged model gives a loss of"):
        merge_result(source, tmp_path / "merged", Merge.MERGED, volumes, Hub())


def test_what_rounding_costs_is_reported_and_fails_no_merge(
    tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole modules of a base with large weights: 0.05 nats, as PEFT's own merge, in manifest, card and log; what is
    much of the improvement with the remedy."""
    # It has either sign.
    monkeypatch.setattr("lora_trainer.storage.manifest._MUCH", -1.0)
    large = tmp_path / "large"
    shutil.copytree(tiny_folder, large)
    tensors = load_file(large / "model.safetensors")
    scaled = {name: tensor if "norm" in name else 64 * tensor for name, tensor in tensors.items()}
    save_file(scaled, large / "model.safetensors", metadata={"format": "pt"})
    config = make_config(
        lora={"modulesToSave": ["embed_tokens", "norm"]}, training={"maxSteps": 3, "learningRate": "0.05"}
    )
    source, volumes = trained(tmp_path, in_16_bits(large, tmp_path / "half"), config)
    with caplog.at_level(logging.INFO):
        merge_result(source, tmp_path / "both", Merge.BOTH, volumes, Hub())
    found = read_manifest(tmp_path / "both").merged
    assert found is not None
    cost = found.loss - found.expected
    assert abs(cost) > TOLERANCES["bf16"], "rounding costs nothing here: the test would prove nothing"
    assert f"rounding costs the merged model {cost:+.4f} nats per token" in caplog.text
    assert "of the improvement: output.mergePrecision: FP32" in caplog.text
    card = (tmp_path / "both/README.md").read_text(encoding="utf-8")
    assert f"rounding the merged weights costs {cost:+.4f}." in card


def test_a_gpu_that_cannot_hold_the_model_leaves_it_to_the_cpu(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On few rows, in 16 bits; a GPU that can is taken with all of them."""
    base = open_folder(tiny_folder)
    rows = Examples.of(row(length) for length in (900, 900, 900))
    gpu = Device(torch_device=torch.device("cuda", 0), name="gpu", dtype=torch.bfloat16)
    for free, whole, count in ((10**9, True, 3), (10**5, False, 2)):
        monkeypatch.setattr(merged, "_free_bytes", lambda device, free=free: free)
        bench = bench_for(base, rows, gpu)
        assert (bench.whole, len(bench.examples), bench.device.torch_device.type) == (
            whole,
            count,
            "cuda" if whole else "cpu",
        )
    assert bench.device.dtype == torch.bfloat16
    assert len(first_rows(rows, 10)) == 1


def row(length: int) -> Example:
    """A row of so many tokens."""
    return Example(input_ids=np.ones(length, dtype=np.int64), labels=np.ones(length, dtype=np.int64), truncated=False)


def test_the_tolerance_is_that_of_the_coarser_type(tiny_folder: Path, tmp_path: Path, cpu: Device) -> None:
    """Weights that are rounded to 16 bits shift the loss, whatever computes it."""
    assert rounding(open_folder(tiny_folder), cpu) == "fp32"
    assert rounding(open_folder(tiny_folder), dataclasses.replace(cpu, dtype=torch.bfloat16)) == "bf16"
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    save_file({"a": torch.ones(2), "b": torch.ones(2).bfloat16()}, tmp_path / "model.safetensors")
    assert rounding(open_folder(tmp_path), cpu) == "bf16"
