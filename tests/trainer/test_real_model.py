"""SmolLM2-135M-Instruct, fetched from a Hub stand-in as a user would name it: a few steps lower the held-out loss."""

from pathlib import Path

import pytest
from tests.trainer import tiny
from tests.trainer.runs import Workplace, read_json

from hub.model import cache_root, ensure_model
from hub.server import HubServer

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_few_steps_lower_the_held_out_loss_of_a_real_model(tmp_path: Path, tiny_folder: Path) -> None:
    """Pinned to the Hub's commit, every parameter counted, verified in a fresh process."""
    ensure_model(cache_root())
    workplace = Workplace.make(tmp_path, tiny_folder)
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", tiny.chats(20))
    manifest = workplace.manifest_file(
        model={"uri": f"hf://{MODEL}"},
        lora={"rank": 8, "layers": "QueryValue"},
        training={"maxSteps": 4, "effectiveBatchSize": 4, "learningRate": "0.003"},
    )
    with HubServer(cache_root()).start() as hub:
        done = workplace.run("-f", manifest, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hub"))
    assert done.status == 0, done.log
    results, resolved, artifact = done.summary.results, done.summary.resolved, done.summary.artifact
    assert results is not None
    assert resolved is not None
    assert artifact is not None
    assert results.held_out
    assert results.improvement_standard_error is not None
    assert results.eval_loss_before - results.eval_loss_after > 5 * results.improvement_standard_error
    assert results.verification.difference <= results.verification.tolerance == 1e-3
    assert (artifact.base_model, len(artifact.base_revision)) == (MODEL, 40)
    # 30 layers of queries (576 to 576) and values (576 to 192); the whole has 134,515,008 parameters on its model card.
    assert resolved.trainable_parameters == 8 * 30 * (576 + 576 + 576 + 192)
    assert resolved.total_parameters == 134_515_008 + resolved.trainable_parameters
    config = read_json(workplace.claims / "adapters/out/adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == (MODEL, artifact.base_revision)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]


@pytest.mark.parametrize("whole", [["embed_tokens"], ["input_layernorm", "post_attention_layernorm", "norm"]])
def test_what_16_bits_round_otherwise_is_within_the_noise(tmp_path: Path, tiny_folder: Path, whole: list[str]) -> None:
    """A fused adapter or a recomputed gate rounds what a fresh process computes plainly: both losses agree."""
    ensure_model(cache_root())
    workplace = Workplace.make(tmp_path, tiny_folder)
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", tiny.chats(20))
    manifest = workplace.manifest_file(
        model={"uri": f"hf://{MODEL}"},
        lora={"rank": 8, "modulesToSave": whole},
        training={"maxSteps": 4, "effectiveBatchSize": 4, "learningRate": "0.003", "precision": "BF16"},
    )
    with HubServer(cache_root()).start() as hub:
        done = workplace.run("-f", manifest, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hub"))
    assert done.status == 0, done.log
    assert done.summary.results is not None
    verification = done.summary.results.verification
    # Where few tokens are held out the floor of the tolerance is high, and would hide that no noise was seen.
    assert verification.noise is not None
    assert verification.noise > 0
    assert verification.difference <= verification.tolerance
