"""One training of the study, by the trainer's own functions."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.study.records import Run
from benchmarks.study.rows import Row, make_rows
from benchmarks.study.settings import Setting

from lora_trainer.data.store import Examples
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import IGNORED, Example
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.model.lora_kernel import fuse
from lora_trainer.plan.limits import CPU_TOKEN_BUDGET
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import Base, open_folder
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.guards import LossGuard
from lora_trainer.train.loop import Training
from lora_trainer.train.state import TrainerState


def train(setting: Setting, seed: int, model: Path, threads: int) -> Run:
    """Train on the CPU in fp32, and evaluate the held-out rows afterwards; of 0 epochs, the model as it is."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    device = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)
    base, rows = open_folder(model), make_rows()
    adapted = adapt(load_model(base, setting.quantization, device), setting.lora, base, device, seed)
    packed = isolate(adapted.model)
    fuse(adapted.model)
    examples = encode(rows.training, base)
    limit = MicroBatchLimit.of(None, int(examples.lengths.max()), packed=packed, tokens=CPU_TOKEN_BUDGET)
    course = TrainerState(guard=LossGuard())
    if setting.epochs:
        course = Training(
            adapted=adapted, examples=examples, config=setting.training(seed), limit=limit, device=device
        ).run()
    found: Evaluation = evaluate(
        adapted.model, adapted.head, encode(rows.held_out, base), device, lambda _rows: None, limit=limit
    )
    return Run(
        setting=setting.name,
        seed=seed,
        sums=tuple(round(total, 5) for total in found.sums),
        tokens=found.tokens,
        steps=course.step,
        training_loss=round(course.loss, 5) if course.step else 0.0,
        tokens_trained=course.tokens,
        trainable_parameters=adapted.trainable_parameters,
        seconds=round(time.perf_counter() - started, 1),
    )


def encode(rows: tuple[Row, ...], base: Base) -> Examples:
    """Prompt, line end, answer and end of turn as tokens; the answer and its end are learned. There is no chat
    template: its headings would be most of such short rows."""
    tokenizer: Any = load_encoder(base, LossOn.COMPLETION, 2048).tokenizer
    found = []
    for row in rows:
        prompt = tokenizer(f"{row.prompt}\n")["input_ids"]
        answer = [*tokenizer(row.answer)["input_ids"], tokenizer.eos_token_id]
        ids = np.array([*prompt, *answer], dtype=np.int64)
        labels = np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids)
        found.append(Example(input_ids=ids, labels=labels, truncated=False))
    return Examples.of(found)
