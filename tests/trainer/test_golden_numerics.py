"""Golden losses of a two-layer model for each kind of adapter, base and batch: an upgrade shows as a changed number.

After an intended change, write the file anew and read the diff:
`UPDATE_GOLDEN=1 pytest tests/trainer/test_golden_numerics.py`.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import variants

from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.model.lora_kernel import fuse
from lora_trainer.spec.config import Init, LoraConfig, Optimizer, Quantization, Scaling, TrainingConfig, Variant
from lora_trainer.storage.base import Base, open_folder
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.callbacks import Step, TrainerCallback
from lora_trainer.train.loop import Training

FILE = Path(__file__).parents[1] / "golden/trainer_losses.json"
UPDATE = "UPDATE_GOLDEN" in os.environ
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-3}
"""In nats per token, by compute type. Measured with one and two threads, and with the vector instructions of SSE, AVX2
and AVX-512: up to 1e-6 in fp32 and 6e-4 in bf16, whose sums round otherwise. A changed rule changes far more."""

LORA = LoraConfig(rank=4, alpha=8)
TRAINING = TrainingConfig(epochs=None, max_steps=6, learning_rate=0.01, effective_batch_size=6, seed=5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of training."""

    lora: LoraConfig = LORA
    quantization: Quantization = Quantization.NONE
    training: TrainingConfig = TRAINING
    dtype: torch.dtype = torch.float32
    packed: bool = False
    mixture: bool = False


CASES = {
    "LoRA": Case(),
    "LoRA, packed": Case(packed=True),
    "LoRA, bf16": Case(dtype=torch.bfloat16),
    "LoRA, 8-bit AdamW with weight decay": Case(
        lora=LoraConfig(rank=64, alpha=64),
        training=dataclasses.replace(
            TRAINING, optimizer=Optimizer.ADAMW_8BIT, weight_decay=0.1, learning_rate=0.002, max_grad_norm=0.5
        ),
    ),
    "rsLoRA": Case(lora=dataclasses.replace(LORA, scaling=Scaling.RANK_STABILIZED)),
    "DoRA": Case(lora=dataclasses.replace(LORA, variant=Variant.DORA)),
    "PiSSA": Case(lora=dataclasses.replace(LORA, init=Init.PISSA)),
    "OLoRA": Case(lora=dataclasses.replace(LORA, init=Init.OLORA)),
    "experts": Case(lora=dataclasses.replace(LORA, target_parameters=("gate_up_proj", "down_proj")), mixture=True),
    "whole embeddings": Case(lora=dataclasses.replace(LORA, modules_to_save=("embed_tokens",))),
    "NF4": Case(quantization=Quantization.NF4),
    "NF4, packed": Case(quantization=Quantization.NF4, packed=True),
    "NF4, DoRA": Case(quantization=Quantization.NF4, lora=dataclasses.replace(LORA, variant=Variant.DORA)),
    "FP4": Case(quantization=Quantization.FP4),
    "INT8": Case(quantization=Quantization.INT8),
}


class Losses(TrainerCallback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def stepped(self, step: Step) -> None:
        """Keep it."""
        self.found.append(step.loss)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A mixture of experts."""
    return open_folder(variants.make_mixture(tmp_path_factory.mktemp("models") / "mixture"))


@pytest.fixture(scope="module")
def golden() -> Any:
    """The stored losses; with UPDATE_GOLDEN what the tests find is stored."""
    stored: dict[str, list[float]] = {} if UPDATE else json.loads(FILE.read_text(encoding="utf-8"))
    yield stored
    if UPDATE:
        FILE.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", list(CASES))
def test_a_kind_of_training_has_its_golden_losses(
    *, tiny_base: Base, mixture: Base, encoder: Encoder, cpu: Device, golden: dict[str, list[float]], name: str
) -> None:
    """Six optimizer steps through the loop of real runs."""
    case = CASES[name]
    losses = train(case, mixture if case.mixture else tiny_base, encoder, cpu)
    if UPDATE:
        golden[name] = [round(loss, 6) for loss in losses]
    assert losses == pytest.approx(golden[name], abs=TOLERANCES[case.dtype])
    assert losses[-1] < losses[0] - 0.1


def train(case: Case, base: Base, encoder: Encoder, cpu: Device) -> list[float]:
    """The losses of a training."""
    device, rows, callback = variants.with_type(cpu, case.dtype), variants.rows(encoder, 12), Losses()
    adapted = adapt(load_model(base, case.quantization, device), case.lora, base, device, variants.SEED)
    assert isolate(adapted.model) or not case.packed
    fuse(adapted.model)
    Training(
        adapted=adapted,
        examples=rows,
        config=case.training,
        limit=MicroBatchLimit.of(3, int(rows.lengths.max()), packed=case.packed),
        device=device,
        callback=callback,
    ).run()
    return callback.found


def test_every_stored_number_is_of_a_case(golden: dict[str, list[float]]) -> None:
    """A case that was renamed leaves none behind."""
    assert UPDATE or set(golden) == set(CASES)
    assert len({tuple(losses) for losses in golden.values()}) >= len(golden) - 2, "kinds do not differ"
