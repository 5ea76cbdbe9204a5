"""The base model's files, the modules that are adapted, exact parameter counts, and 4-bit weights."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.tiny import HEADS, HIDDEN, KV_HEADS, LAYERS, MLP
from torch import nn

from lora_trainer.data.formats import PlainText
from lora_trainer.data.store import Examples
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import Encoder
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.errors import ConfigError, NotFoundError, TrainerError
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.model.targets import choose_targets
from lora_trainer.plan.adapter import short_names
from lora_trainer.spec.config import Layers, LoraConfig, LossOn, Quantization, TrainingConfig
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.base import Base, find_base, open_folder
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.batches import Batch, MicroBatchLimit, collate
from lora_trainer.train.evaluate import evaluate
from lora_trainer.train.loop import Training
from lora_trainer.train.loss import token_losses
from lora_trainer.train.stopping import Interrupted, Stop

KV = HIDDEN // HEADS * KV_HEADS
LIMIT = MicroBatchLimit.of(2, 64)
SIZES = {
    "q_proj": HIDDEN + HIDDEN,
    "k_proj": HIDDEN + KV,
    "v_proj": HIDDEN + KV,
    "o_proj": HIDDEN + HIDDEN,
    "gate_proj": HIDDEN + MLP,
    "up_proj": HIDDEN + MLP,
    "down_proj": MLP + HIDDEN,
}
ATTENTION, MLPS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("quantization", [q for q in Quantization if q is not Quantization.AUTO])
@pytest.mark.parametrize(
    ("layers", "modules"),
    [
        (Layers.ALL_LINEAR, ATTENTION + MLPS),
        (Layers.ATTENTION, ATTENTION),
        (Layers.MLP, MLPS),
        (Layers.QUERY_VALUE, ("q_proj", "v_proj")),
    ],
)
def test_parameters_are_counted_exactly(
    tiny_base: Base, cpu: Device, quantization: Quantization, layers: Layers, modules: tuple[str, ...]
) -> None:
    """rank x (inputs + outputs) for each adapted module and layer; 4-bit weights count one each."""
    config = LoraConfig(rank=4, alpha=8, layers=layers)
    adapted = adapt(load_model(tiny_base, quantization, cpu), config, tiny_base, cpu, 1)
    assert adapted.target_modules == modules
    assert adapted.trainable_parameters == 4 * LAYERS * sum(SIZES[name] for name in modules)
    vocabulary = len(json.loads((tiny_base.folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV
    base = vocabulary * HIDDEN + LAYERS * (attention + 3 * HIDDEN * MLP + 2 * HIDDEN) + HIDDEN
    assert adapted.total_parameters == base + adapted.trainable_parameters


LINEAR = {
    f"model.layers.{i}.{name}": (1, 1)
    for i in range(2)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LoraConfig(layers=Layers.ALL_LINEAR), ("c_attn", "c_proj", "c_fc")),
        (LoraConfig(layers=Layers.ATTENTION), ("c_attn", "attn.c_proj")),
        (LoraConfig(layers=Layers.MLP), ("c_fc", "mlp.c_proj")),
        (LoraConfig(layers=Layers.QUERY_VALUE), ("c_attn",)),
        (LoraConfig(layers=None, target_modules=("mlp.c_proj",)), ("mlp.c_proj",)),
        (
            LoraConfig(layers=None, target_modules=("c_proj", "c_fc"), exclude_modules=("mlp.c_proj",)),
            ("attn.c_proj", "c_fc"),
        ),
        (LoraConfig(layers=None, target_modules=("model.layers.1.mlp.c_fc",)), ("1.mlp.c_fc",)),
    ],
)
def test_module_names_select_exactly_what_was_chosen(config: LoraConfig, names: tuple[str, ...]) -> None:
    """On a model of GPT-2's kind, where attention and MLP both have a `c_proj`."""
    chosen = choose_targets(config, LINEAR)
    found = short_names(chosen, LINEAR)
    assert found == names
    assert {n for n in LINEAR if any(n == e or n.endswith("." + e) for e in found)} == set(chosen)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            LoraConfig(layers=None, target_modules=("q_proj",)),
            'lora.targetModules is "q_proj": the model has no such linear module',
        ),
        (LoraConfig(layers=None, target_modules=("lm_head",)), "it has c_attn, c_proj, c_fc"),
        (LoraConfig(exclude_modules=("wq",)), 'lora.excludeModules is "wq"'),
        (
            LoraConfig(layers=Layers.MLP, exclude_modules=("c_fc", "mlp.c_proj")),
            "lora.layers MLP leaves no module to adapt",
        ),
    ],
)
def test_unknown_modules_are_reported_with_the_models_own(config: LoraConfig, sentence: str) -> None:
    """A list to choose from."""
    with pytest.raises(ConfigError) as caught:
        choose_targets(config, LINEAR)
    assert sentence in str(caught.value)


def test_nf4_trains_the_adapter_and_leaves_4_bit_weights(tiny_base: Base, cpu: Device, encoder: Encoder) -> None:
    """Real QLoRA steps on the CPU: double quantization, the loss falls, the base stays as it was."""
    loaded = load_model(tiny_base, Quantization.NF4, cpu)
    adapted = adapt(loaded, LoraConfig(rank=4, alpha=8), tiny_base, cpu, 1)
    linear = [m for m in adapted.model.modules() if isinstance(m, nn.Linear)]
    packed = [m for m in linear if type(m).__name__ == "Linear4bit"]
    assert len(packed) == 7 * LAYERS
    weights: list[Any] = [m.weight for m in packed]
    assert all(weight.dtype == torch.uint8 and weight.quant_state.nested for weight in weights)
    rows = Examples.of(encoder.encode(PlainText(where="x", text=f"Ahoy, captain {i}! Fair winds.")) for i in range(4))
    before = evaluate(adapted.model, adapted.head, rows, cpu, lambda count: None, limit=LIMIT).loss
    config = TrainingConfig(epochs=None, max_steps=5, learning_rate=0.01, effective_batch_size=4)
    Training(adapted=adapted, examples=rows, config=config, limit=LIMIT, device=cpu).run()
    after = evaluate(adapted.model, adapted.head, rows, cpu, lambda count: None, limit=LIMIT).loss
    assert after < before - 0.1
    first = [p for n, p in adapted.model.named_parameters() if "layers.0.self_attn.q_proj.lora_B" in n]
    assert all(p.abs().max() > 0.01 for p in first), (
        "the lowest layer learned nothing: gradients were lost on their way"
    )
    with adapted.model.disable_adapter():
        without = evaluate(adapted.model, adapted.head, rows, cpu, lambda count: None, limit=LIMIT).loss
    assert without == pytest.approx(before, abs=1e-6)


def test_an_interrupted_evaluation_leaves_the_model_as_it_was(tiny_base: Base, cpu: Device, encoder: Encoder) -> None:
    """In training mode, whatever comes after."""
    loaded = load_model(tiny_base, Quantization.NONE, cpu)
    adapted = adapt(loaded, LoraConfig(rank=4, alpha=8), tiny_base, cpu, 1)
    adapted.model.train()
    rows = Examples.of(encoder.encode(PlainText(where="x", text="Ahoy, captain!")) for _ in range(4))
    stop = Stop()
    stop.requested = True
    with pytest.raises(Interrupted):
        evaluate(adapted.model, adapted.head, rows, cpu, lambda count: None, limit=LIMIT, stop=stop)
    assert adapted.model.training


@pytest.mark.parametrize("packed", [False, True])
def test_an_evaluation_that_runs_out_of_memory_goes_on_with_fewer_rows_at_once(
    tiny_base: Base, cpu: Device, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    """With the same loss of each row; of a single row, or where layers are collectives, nothing can be spared."""
    loaded = load_model(tiny_base, Quantization.NONE, cpu)
    assert isolate(loaded.model)
    rows = Examples.of(encoder.encode(PlainText(where="x", text="Ahoy! " * (1 + i % 4))) for i in range(9))
    limit = MicroBatchLimit(tokens=4096, longest=int(rows.lengths.max()), packed=packed)
    most = int(rows.lengths.max()) * 2
    taken: list[int] = []

    def limited(model: Any, head: Any, batch: Batch, device: Device) -> torch.Tensor:
        taken.append(batch.input_ids.numel())
        if taken[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return token_losses(model, head, batch, device)

    def found(ranks: Ranks = ALONE) -> tuple[float, ...]:
        return evaluate(loaded.model, loaded.head, rows, cpu, lambda _: None, limit=limit, ranks=ranks).sums

    wanted = found()
    monkeypatch.setattr("lora_trainer.train.evaluate.token_losses", limited)
    assert found() == pytest.approx(wanted, abs=1e-4)
    failed = [tokens for tokens in taken if tokens > most]
    assert failed == sorted(failed, reverse=True)
    assert len(failed) < len(taken)
    with pytest.raises(torch.OutOfMemoryError):
        found(Ranks(fsdp=True))
    most = 1
    with pytest.raises(torch.OutOfMemoryError):
        found()
    assert taken[-1] <= rows.lengths.max()


def test_only_positions_before_learned_tokens_reach_the_output_embedding(
    tiny_base: Base, cpu: Device, encoder: Encoder
) -> None:
    """The losses equal those of the full logits."""
    loaded = load_model(tiny_base, Quantization.NONE, cpu)
    examples = [encoder.encode(PlainText(where="x", text=text)) for text in ("Ahoy", "Fair winds, captain")]
    batch = collate(examples, cpu.torch_device)
    found = token_losses(loaded.model, loaded.head, batch, cpu)
    for row, example in enumerate(examples):
        ids = torch.from_numpy(example.input_ids)[None]
        wanted = nn.functional.cross_entropy(loaded.model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        torch.testing.assert_close(found[batch.rows == row], wanted)


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _linked_template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").symlink_to("/etc/passwd")


def _link(folder: Path) -> None:
    (folder / "extra.json").symlink_to("/etc/hostname")


def _configured(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _encoder_model(folder: Path) -> None:
    _configured(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])


def _foreign_code(folder: Path) -> None:
    _configured(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})


def _quantized(folder: Path) -> None:
    _configured(folder, quantization_config={"quant_method": "gptq"})


def _incomplete(folder: Path) -> None:
    _configured(folder, num_hidden_layers=3)


def _damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _indexed(folder: Path, shard: str) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": shard}}), encoding="utf-8"
    )
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")


def _index_names_a_pickle(folder: Path) -> None:
    _indexed(folder, "pytorch_model.bin")


def _index_leads_out(folder: Path) -> None:
    _indexed(folder, "../other/model.safetensors")


def _index_is_none(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")


def _config_names_a_pickle(folder: Path) -> None:
    _configured(folder, transformers_weights="adapter_model.bin")


def _adapter_inside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}', encoding="utf-8")


def _damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")


def _damaged_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[1", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "kind", "sentence"),
    [
        (_no_folder, NotFoundError, "there is no such folder"),
        (_no_config, NotFoundError, "it has no config.json"),
        (_pickled, ConfigError, "only pickled weights (pytorch_model.bin), which can run code"),
        (_no_weights, ConfigError, "no safetensors weights"),
        (_link, ConfigError, "extra.json is a symbolic link"),
        (_linked_template, ConfigError, "additional_chat_templates/tool_use.jinja is a symbolic link"),
        (
            _encoder_model,
            ConfigError,
            "its kind 't5' reads its prompt with an encoder, so it is not a causal language model",
        ),
        (_foreign_code, ConfigError, "model.uri is"),
        (_quantized, ConfigError, "quantized; name a copy whose weights are in 16 bits, with quantization: Auto"),
        (_incomplete, ConfigError, "its weights are incomplete"),
        (_damaged, ConfigError, "its model.safetensors is not a safetensors file, or cut off in its header"),
        (_no_tokenizer, ConfigError, "its tokenizer cannot be read"),
        (_index_names_a_pickle, ConfigError, "index.json names the weights 'pytorch_model.bin'"),
        (_index_leads_out, ConfigError, "index.json names the weights '../other/model.safetensors'"),
        (_index_is_none, ConfigError, "model.safetensors.index.json is not an index of weights"),
        (_config_names_a_pickle, ConfigError, "config.json names the weights 'adapter_model.bin'"),
        (_adapter_inside, ConfigError, "it holds an adapter (adapter_config.json)"),
        (_damaged_tokenizer, ConfigError, "its tokenizer cannot be read"),
        (_damaged_generation, ConfigError, "its generation_config.json cannot be read"),
    ],
)
def test_a_model_that_cannot_be_trained_is_reported(
    *,
    tmp_path: Path,
    tiny_folder: Path,
    cpu: Device,
    spoil: Callable[[Path], None],
    kind: type[TrainerError],
    sentence: str,
) -> None:
    """Missing, pickled, linked, of the wrong kind, with code of its own, quantized, incomplete, damaged."""
    folder = tmp_path / "models/tiny"
    shutil.copytree(tiny_folder, folder)
    spoil(folder)
    with pytest.raises(kind) as caught:
        _load(Volumes(claims=tmp_path), cpu)
    assert sentence in str(caught.value)
    assert "models/tiny" in str(caught.value)
    assert "\n" not in str(caught.value)


def _load(volumes: Volumes, cpu: Device) -> None:
    base = find_base("pvc://models/tiny", volumes, Hub())
    load_encoder(base, LossOn.COMPLETION, 64)
    load_model(base, Quantization.NONE, cpu)


def test_a_missing_claim_is_a_missing_model(tmp_path: Path) -> None:
    """With the reason of its own."""
    with pytest.raises(NotFoundError, match="the claim models is not mounted") as caught:
        find_base("pvc://models/tiny", Volumes(claims=tmp_path), Hub())
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_a_folder_is_pinned_by_its_bytes(tmp_path: Path, tiny_folder: Path) -> None:
    """A changed file is another revision."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    before = open_folder(folder)
    assert before.revision == dataclasses.replace(open_folder(tiny_folder)).revision
    _configured(folder, rope_theta=1.0)
    assert open_folder(folder).revision != before.revision
