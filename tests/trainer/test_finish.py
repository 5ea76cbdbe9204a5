"""A whole run up to what it leaves: the merged model, its curves, its card, and the log of every stage."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.trainer import forked
from tests.trainer.runs import Workplace, read_json
from tests.trainer.tiny import in_16_bits
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.curve_records import read_records
from lora_trainer.storage.manifest import Form, check_digests, read_manifest
from lora_trainer.storage.tensor_files import read_entries


def test_a_run_publishes_the_merged_model_with_its_curves_and_its_log(workplace: Workplace, tiny_folder: Path) -> None:
    """By the operator's way, with machine-readable lines and a tracker; the log beside the result holds all stages."""
    shutil.rmtree(workplace.claims / "models/tiny")
    in_16_bits(tiny_folder, workplace.claims / "models/tiny")
    output = {"merge": "Merged", "mergePrecision": "FP32"}
    config = workplace.config_file(output=output, tracking={"kind": "TensorBoard"})
    done = workplace.run("--config", config, "--metrics-port", "0", "--log-format", "json")
    assert done.status == 0, done.log
    out = workplace.claims / "adapters/out"
    manifest = read_manifest(out)
    check_digests(out, manifest)
    assert (manifest.format, done.summary.artifact and done.summary.artifact.format) == (Form.MERGED, "merged")
    assert done.summary.results is not None
    assert manifest.verification == done.summary.results.verification
    assert manifest.verification is not None
    assert manifest.noise is not None
    assert manifest.noise <= (manifest.verification.noise or 0) <= manifest.verification.tolerance
    assert AutoModelForCausalLM.from_pretrained(out).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(out).chat_template is not None
    assert not (out / "adapter_config.json").exists()

    steps = [record["step"] for record in read_records(out / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, 7))
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name.startswith("events.out.tfevents") for path in (out / "tensorboard").iterdir()] == [True]

    log = (out / "train.log").read_text(encoding="utf-8")
    assert [words in log for words in ("step 6/6", "verified the adapter", "verified the merged model")] == [True] * 3
    lines = [json.loads(line) for line in done.log.splitlines() if line.startswith("{")]
    last = [line for line in lines if line.get("step") == 6]
    assert [(line["uid"], line["attempt"], line["level"], line["total_steps"]) for line in last] == [
        ("uid-1", 1, "info", 6)
    ]
    assert read_json(out / "manifest.json")["merged"]["tolerance"] == 0.001
    assert {entry.dtype for entry in read_entries(out / "model.safetensors")} == {"F32"}


def test_a_merge_that_fails_costs_the_merge_alone(workplace: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    """Into weights of 64 bits nothing can be merged: with Merged the verified adapter is kept, with Both published."""
    caplog.set_level(logging.INFO)
    file = workplace.claims / "models/tiny/model.safetensors"
    tensors = {name: tensor.double() if "q_proj" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    why = "q_proj.weight has the type F64: nothing can be merged into it"

    failed = forked.run(workplace, output={"merge": "Merged"})
    assert (failed.code, failed.summary.reason) == (73, Reason.VERIFICATION_FAILED), failed.summary
    kept = f".lora-checkpoints/tiny-{run_suffix('uid-1')}"
    assert why in failed.summary.message
    assert failed.summary.message.endswith(f"the verified adapter is kept at pvc://adapters/{kept}/staged")
    assert sorted(path.name for path in (workplace.claims / "adapters" / kept).glob("*ed")) == ["staged"]
    assert workplace.adapters() == []

    caplog.clear()
    done = forked.run(workplace, output={"merge": "Both"})
    assert done.code == 0, done.summary
    assert "an earlier attempt finished the training" in caplog.text
    assert not list((workplace.claims / "adapters/.lora-checkpoints").glob("*/*rows*"))
    assert done.summary.succeeded
    assert "the verified adapter is at pvc://adapters/out; there is no merged model: " in done.summary.message
    assert done.summary.message.endswith(why)
    assert done.summary.results is not None
    assert (done.summary.results.merge_failure or "").endswith(why)
    out = workplace.claims / "adapters/out"
    manifest = read_manifest(out)
    check_digests(out, manifest)
    assert (manifest.format, manifest.merged, (manifest.merge_failure or "")[-len(why) :]) == (Form.ADAPTER, None, why)
    assert f"There is no merged model beside the adapter: {manifest.merge_failure}." in (out / "README.md").read_text()
