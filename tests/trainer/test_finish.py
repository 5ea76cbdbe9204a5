"""A whole run up to what it leaves: the merged model, its curves, its card, and the log of every stage."""

import json

from tests.trainer.runs import Workplace, read_json
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_trainer.artifact.curve_records import read_records
from lora_trainer.artifact.manifest import Form, check_digests, read_manifest


def test_a_run_publishes_the_merged_model_with_its_curves_and_its_log(workplace: Workplace) -> None:
    """By the operator's way, with machine-readable lines and a tracker; the log beside the result holds all stages."""
    config = workplace.config_file(output={"merge": "Merged"}, tracking={"kind": "TensorBoard"})
    done = workplace.run("--config", config, "--metrics-port", "0", "--log-format", "json")
    assert done.status == 0, done.log
    out = workplace.claims / "adapters/out"
    manifest = read_manifest(out)
    check_digests(out, manifest)
    assert (manifest.format, done.summary.artifact and done.summary.artifact.format) == (Form.MERGED, "merged")
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
