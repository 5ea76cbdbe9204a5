"""Trainings whose memory is simulated: public models, each with settings so that any two of these meet in some cell."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from benchmarks.memory_estimate import estimate
from benchmarks.memory_simulation import Step
from tests.unit.fit_models import FURTHER, GEMMA_3, MODELS, Config

from lora_trainer.spec.config import Layers, LoraConfig, Optimizer, Quantization, TrainingConfig, Variant

_NOT_SIMULATED = {"gemma3", "deepseek_v3", "llama4"}
"""Those that see, and layers of two kinds, of which two do not foretell the others."""
PUBLIC: dict[str, Config] = (
    {name: config for name, (config, _) in MODELS.items() if config["model_type"] not in _NOT_SIMULATED}
    | FURTHER
    | {"Gemma-3-4B, text": GEMMA_3["text_config"]}
)
"""28 of them. The simulation does not see; the tower of Gemma 3 is left out."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A training of a public model, on a GPU."""

    model: str
    step: Step

    @property
    def name(self) -> str:
        """In a few words."""
        step, lora = self.step, self.step.lora
        parts = [
            self.model,
            "fp32" if step.fp32 else step.quantization.value.replace("None", "bf16"),
            f"r={lora.rank}",
            "query and value" if lora.layers is Layers.QUERY_VALUE else "all linear",
            *lora.target_parameters,
            *(["dropout"] if lora.dropout else []),
            *(["DoRA"] if lora.variant is Variant.DORA else []),
            *([f"{', '.join(lora.modules_to_save)} whole"] if lora.modules_to_save else []),
            "MLPs recomputed" if step.selective else "recomputed" if step.recompute else "kept",
            f"{len(step.rows)} x {step.rows[0]}",
            *(["a fifth learned"] if step.target_share < 1 else []),
            *(["8-bit optimizer"] if step.training.optimizer is not Optimizer.ADAMW else []),
            *(["no kernel"] if not (step.packs or step.fp32) else []),
        ]
        return ", ".join(parts)

    @cached_property
    def config(self) -> Config:
        """The model's `config.json`."""
        return PUBLIC[self.model]

    @cached_property
    def estimated(self) -> int:
        """Bytes of the fit model, without CUDA's context."""
        memory = estimate(self.config, self.step)
        return memory.total - memory.constant


def cell(model: str, rows: tuple[int, ...], lora: LoraConfig | None = None, **changes: object) -> Cell:
    """Of defaults, but for the changes."""
    step = Step(rows=rows, lora=lora or LoraConfig())
    return Cell(model=model, step=replace(step, **changes))  # type: ignore[arg-type]


_DROPOUT, _DORA = LoraConfig(dropout=0.05), LoraConfig(variant=Variant.DORA)
_EXPERTS = LoraConfig(target_parameters=("experts.gate_up_proj", "experts.down_proj"))
_QUERY_VALUE = LoraConfig(rank=8, layers=Layers.QUERY_VALUE)
_NF4, _INT8 = Quantization.NF4, Quantization.INT8
_QUERY_VALUE_DROPOUT = replace(_QUERY_VALUE, dropout=0.05)
_8_BIT = TrainingConfig(optimizer=Optimizer.ADAMW_8BIT)
FEW = (
    cell("Llama-2-7B", (1304,), _QUERY_VALUE, recompute=False),
    cell("Llama-3-8B", (2048, 2048)),
    cell("Llama-3-8B", (2048, 2048), recompute=False, packs=False),
    cell("Llama-3-8B", (1024,) * 4, LoraConfig(rank=256, alpha=256), training=_8_BIT),
    cell("Llama-3-8B", (1024,) * 4, selective=True),
    cell("Qwen3-8B", (512, 512), _DORA, quantization=_NF4),
    cell("Gemma-2-2B", (1024,), target_share=0.2),
    cell("GPT-2", (1024,), quantization=_NF4),
    cell("Pythia-160M", (1024,), _DROPOUT, recompute=False, fp32=True, packs=False),
    cell("StarCoder2-3B", (512,) * 8, replace(_DORA, dropout=0.05)),
    cell("Phi-2", (512,) * 2, _DROPOUT, quantization=_NF4, recompute=False),
    cell("Phi-2", (512,) * 2, quantization=_INT8),
    cell("Falcon-7B", (512,) * 8),
    cell("Qwen3-30B-A3B", (512,) * 8, recompute=False),
    cell("gpt-oss-20b", (1024,)),
    cell("Mixtral-8x7B", (512,) * 8, _EXPERTS),
    cell("Qwen1.5-MoE-A2.7B", (512,) * 8, replace(_EXPERTS, target_parameters=("down_proj",)), selective=True),
)
"""What `make test` simulates: each kind of model, and each value of every option in some of them."""
FURTHER_FEW = (
    cell("Llama-3-8B", (1024,) * 4, quantization=_NF4),
    cell("GPT-2", (1024,), recompute=False),
    cell("Pythia-160M", (512,) * 4, quantization=_NF4, recompute=False),
    cell("Qwen3-8B", (512, 512), _DORA, quantization=_NF4, recompute=False),
    cell("Phi-2", (512,) * 8, recompute=False),
    cell("Mixtral-8x7B", (512,) * 2, replace(_EXPERTS, rank=256), recompute=False),
    cell("gpt-oss-20b", (512,) * 8, replace(_EXPERTS, target_parameters=("experts.gate_up_proj",))),
)
"""More of these, which `make soak` simulates alone."""
MORE = (
    cell("Llama-3-8B", (2048,) * 2),
    cell("Llama-3-8B", (2048,) * 2, recompute=False),
    cell("Llama-3-8B", (2048,) * 2, quantization=_NF4),
    cell("Llama-3-8B", (1304,), _DROPOUT, quantization=_NF4, recompute=False),
    cell("Llama-3-8B", (1024,) * 2, quantization=_INT8, recompute=False),
    cell("Llama-3-8B", (1024,) * 4, quantization=_INT8),
    cell("Llama-3-8B", (1024,) * 4, LoraConfig(rank=256, alpha=256), training=_8_BIT, recompute=False),
    cell("Llama-3-8B", (1024,) * 4, _DORA),
    cell("Llama-3-8B", (1024,), _DORA, recompute=False),
    cell("Llama-3-8B", (1024,) * 4, _DORA, quantization=_NF4),
    cell("Llama-3-8B", (1024,), _DORA, quantization=_INT8, recompute=False),
    cell("Llama-3-8B", (1024,) * 4, fp32=True, packs=False),
    cell("Llama-3-8B", (1024,), fp32=True, packs=False, recompute=False),
    cell("Llama-3-8B", (1024,) * 4, target_share=0.2),
    cell("Llama-3-8B", (1024,) * 4, packs=False, recompute=False),
    cell("Llama-2-7B", (1304,), _QUERY_VALUE, recompute=False),
    cell("Llama-2-7B", (1304,), _QUERY_VALUE_DROPOUT, recompute=False, quantization=_NF4),
    cell("Llama-2-13B", (512,) * 8),
    cell("SmolLM2-135M", (1024,) * 4, recompute=False),
    cell("Mistral-7B", (1024,) * 4, _QUERY_VALUE, recompute=False),
    cell("Qwen2.5-7B", (1024,) * 8),
    cell("Qwen2.5-7B", (512,) * 2, _DROPOUT, recompute=False),
    cell("Qwen3-8B", (512,) * 8, quantization=_NF4),
    cell("Qwen3-8B", (512,) * 2, _DORA, recompute=False),
    cell("Gemma-2B", (512,) * 8),
    cell("Gemma-2B", (512,) * 8, _QUERY_VALUE, recompute=False),
    cell("Gemma-2-2B", (1024,) * 4),
    cell("Gemma-2-2B", (1024,) * 4, target_share=0.2),
    cell("Gemma-2-2B", (512,) * 2, recompute=False, target_share=0.1),
    cell("Gemma-3-4B, text", (512,) * 8),
    cell("Gemma-3-4B, text", (512,) * 2, _DROPOUT, recompute=False),
    cell("GPT-2", (1024,) * 4, recompute=False),
    cell("GPT-2", (512,) * 16),
    cell("Pythia-160M", (1024,) * 4, recompute=False),
    cell("Pythia-160M", (1024,) * 4, _DROPOUT, recompute=False, fp32=True, packs=False),
    cell("Phi-2", (512,) * 8),
    cell("Phi-2", (512,) * 8, _QUERY_VALUE, recompute=False),
    cell("Phi-2", (512,) * 2, quantization=_NF4, recompute=False),
    cell("Phi-2", (512,) * 2, quantization=_INT8),
    cell("Phi-3-mini", (512,) * 8, quantization=_NF4),
    cell("Phi-3-mini", (512,) * 4, recompute=False),
    cell("StarCoder2-3B", (512,) * 8),
    cell("StarCoder2-3B", (512,) * 4, _DORA, recompute=False),
    cell("StarCoder2-3B", (512,) * 8, replace(_DORA, dropout=0.05)),
    cell("Phi-2", (512,) * 8, replace(_DORA, dropout=0.05)),
    cell("Falcon-7B", (512,) * 8),
    cell("Falcon-7B", (512,) * 4, recompute=False),
    cell("Mixtral-8x7B", (512,) * 8),
    cell("Mixtral-8x7B", (512,) * 2, recompute=False),
    cell("Qwen1.5-MoE-A2.7B", (512,) * 8),
    cell("Qwen1.5-MoE-A2.7B", (512,) * 8, recompute=False),
    cell("Qwen3-30B-A3B", (512,) * 8),
    cell("Qwen3-30B-A3B", (512,) * 8, _DROPOUT, recompute=False),
    cell("gpt-oss-20b", (512,) * 8),
    cell("gpt-oss-20b", (512,) * 4, recompute=False),
    cell("Llama-3-8B", (1024,) * 4, selective=True),
    cell("Llama-3-8B", (1024,) * 4, quantization=_NF4, selective=True),
    cell("Llama-3-8B", (1024,) * 4, quantization=_INT8, selective=True),
    cell("Llama-3-8B", (1024,) * 4, _DROPOUT, quantization=_NF4, selective=True),
    cell("Phi-2", (512,) * 8, selective=True),
    cell("Mixtral-8x7B", (512,) * 8, selective=True),
)
"""What benchmarks/results/fit_accuracy.md has."""
WHOLE = (
    cell("Pythia-160M", (512,), LoraConfig(modules_to_save=("embed_in",))),
    cell("Pythia-160M", (512,), LoraConfig(modules_to_save=("lm_head",))),
)
"""Of these all layers are simulated: what is trained whole has its peak elsewhere in a shallow model."""


def array() -> Iterator[Cell]:
    """Each public model in each precision, so that it also meets both values of each other option, and any two values
    of different options meet. Models of which not all is quantized are simulated in bf16 without a kernel instead."""
    codes = list(product((False, True), repeat=4))
    for number, (model, config) in enumerate(PUBLIC.items()):
        first, second = codes[number % 16], codes[(7 * number + 3) % 16]
        opposite = tuple(not bit for bit in first)
        quantized = "moe" not in config["model_type"] and config["model_type"] not in {"gpt_oss", "mixtral"}
        precisions: tuple[dict[str, object], ...] = (
            {},
            {"quantization": _NF4} if quantized else {"packs": False},
            {"fp32": True, "packs": False},
        )
        for precision, (dropout, dora, recompute, many) in zip(precisions, (first, second, opposite), strict=True):
            lora = LoraConfig(dropout=0.05 if dropout else 0.0, variant=Variant.DORA if dora else Variant.LORA)
            yield cell(model, (512,) * 8 if many else (1024,), lora, recompute=recompute, **precision)
