"""The training loop: which rows, what normalisation, what learning rate, the same every time."""

import dataclasses
import math

import pytest
import torch

from lora_trainer.data.formats import PlainText
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted, adapt, load_model
from lora_trainer.model.recompute import recompute_activations
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    LoraConfig,
    Quantization,
    Schedule,
    TrainingConfig,
    Variant,
)
from lora_trainer.storage.base import Base
from lora_trainer.train.batches import MicroBatchLimit, collate
from lora_trainer.train.callbacks import Step, TrainerCallback
from lora_trainer.train.evaluate import Evaluation, evaluate, improvement_standard_error
from lora_trainer.train.loop import Training
from lora_trainer.train.loss import token_losses
from lora_trainer.train.noise import noise_of
from lora_trainer.train.schedule import learning_rate_factor
from lora_trainer.train.standard_error import ratio_standard_error
from lora_trainer.train.state import trainable

GOLDEN_LOSSES = (5.83390, 5.73794, 5.51850, 5.43696, 5.38098, 5.36081)


def examples(encoder: Encoder, count: int = 12) -> Examples:
    """Rows of different lengths."""
    return Examples.of(
        encoder.encode(PlainText(where=f"{i}", text=f"Ahoy {i}! " + "Fair winds. " * (i % 4))) for i in range(count)
    )


def fresh(
    base: Base,
    device: Device,
    dropout: float = 0.0,
    checkpointing: ActivationCheckpointing = ActivationCheckpointing.AUTO,
) -> Adapted:
    """The tiny model with a fresh adapter."""
    config = LoraConfig(rank=4, alpha=8, dropout=dropout)
    return adapt(load_model(base, Quantization.NONE, device), config, base, device, 3, checkpointing=checkpointing)


class Taken(TrainerCallback):
    """Keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def stepped(self, step: Step) -> None:
        """Keep it."""
        self.steps.append(step)


def run(base: Base, encoder: Encoder, device: Device, micro: int, config: TrainingConfig) -> list[Step]:
    """The steps of a training."""
    rows, taken = examples(encoder), Taken()
    limit = MicroBatchLimit.of(micro, int(rows.lengths.max()))
    Training(
        adapted=fresh(base, device), examples=rows, config=config, limit=limit, device=device, callback=taken
    ).run()
    return taken.steps


CONFIG = TrainingConfig(epochs=None, max_steps=6, learning_rate=0.01, effective_batch_size=6, seed=5)


def test_the_tiny_model_learns_with_the_golden_losses(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """A change of these numbers is a change of what is trained: rows, order, loss, optimizer or schedule."""
    found = [step.loss for step in run(tiny_base, encoder, cpu, 3, CONFIG)]
    assert found == pytest.approx(GOLDEN_LOSSES, abs=2e-4)


def test_micro_batches_change_nothing_but_memory(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """Normalised by the target tokens of the whole step: 1, 2 or 6 rows at a time give the same losses."""
    whole = [step.loss for step in run(tiny_base, encoder, cpu, 6, CONFIG)]
    for micro in (1, 2):
        assert [step.loss for step in run(tiny_base, encoder, cpu, micro, CONFIG)] == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_activations_changes_nothing_but_memory(
    tiny_base: Base, encoder: Encoder, cpu: Device, dtype: torch.dtype
) -> None:
    """The second forward pass draws the same dropout and casts the same inputs as the first: bit for bit."""
    device = dataclasses.replace(cpu, dtype=dtype)
    losses: list[list[float]] = []
    weights: list[list[torch.Tensor]] = []
    for checkpointing in (
        ActivationCheckpointing.NONE,
        ActivationCheckpointing.SELECTIVE,
        ActivationCheckpointing.FULL,
    ):
        adapted, taken = fresh(tiny_base, device, dropout=0.1, checkpointing=checkpointing), Taken()
        Training(
            adapted=adapted,
            examples=examples(encoder),
            config=CONFIG,
            limit=MicroBatchLimit.of(3, 64),
            device=device,
            callback=taken,
        ).run()
        losses.append([step.loss for step in taken.steps])
        weights.append(list(trainable(adapted.model).values()))
    assert losses[0] == losses[1] == losses[2]
    for others in weights[1:]:
        assert all(torch.equal(one, other) for one, other in zip(weights[0], others, strict=True))


def kept(adapted: Adapted, encoder: Encoder, device: Device) -> int:
    """Values that a forward pass keeps for the backward pass, which is then taken."""
    stored: list[torch.Tensor] = []

    def store(tensor: torch.Tensor) -> torch.Tensor:
        stored.append(tensor)
        return tensor

    batch = collate([examples(encoder)[0]], device.torch_device)
    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        loss = token_losses(adapted.model, adapted.head, batch, device).sum()
    torch.autograd.backward(loss)
    return sum(tensor.numel() for tensor in stored)


def test_recomputed_mlps_keep_less_and_are_computed_twice(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """And where memory does not suffice for that, all of a layer is recomputed, and an MLP no third time."""
    adapted = fresh(tiny_base, cpu, checkpointing=ActivationCheckpointing.SELECTIVE)
    calls: list[object] = []
    adapted.model.get_base_model().model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: calls.append(_))
    kept(adapted, encoder, cpu)  # tries first whether anything follows the output embedding
    calls.clear()
    of_attention = kept(adapted, encoder, cpu)
    assert len(calls) == 2
    recompute_activations(adapted.model)
    adapted.model.train()
    assert kept(adapted, encoder, cpu) < of_attention
    assert len(calls) == 4
    assert of_attention < kept(fresh(tiny_base, cpu, checkpointing=ActivationCheckpointing.NONE), encoder, cpu)


def test_evaluations_of_a_training_compute_as_those_after_it(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """Bit for bit: DoRA takes its norms in the type of its inputs, which steps in 16 bits leave as they are."""
    device, rows, seen = dataclasses.replace(cpu, dtype=torch.bfloat16), examples(encoder), set()
    dora = LoraConfig(rank=4, variant=Variant.DORA)
    adapted = adapt(load_model(tiny_base, Quantization.NONE, device), dora, tiny_base, device, 3)
    module = adapted.model.get_base_model().model.layers[0].mlp.up_proj
    limit = MicroBatchLimit.of(3, int(rows.lengths.max()))

    found: list[Evaluation] = []

    def evaluation() -> Evaluation:
        found.append(evaluate(adapted.model, adapted.head, rows, device, lambda _rows: None, limit=limit))
        return found[-1]

    module.lora_A["default"].register_forward_pre_hook(lambda a, given: seen.add((a.training, given[0].dtype)))
    config = dataclasses.replace(CONFIG, max_steps=2, early_stopping_patience=1, eval_steps=2)
    training = Training(adapted=adapted, examples=rows, config=config, limit=limit, device=device)
    training.evaluate = evaluation
    training.run()
    evaluation()
    assert found[0] == found[1]
    # The last are what DoRA computes the whole of its weights from.
    assert seen == {(True, torch.bfloat16), (True, torch.float32), (False, torch.float32)}


def test_a_step_reports_what_it_did(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """Counts, passes over the data, learning rate, and a remaining time that ends at 0."""
    taken = run(tiny_base, encoder, cpu, 3, CONFIG)
    assert [step.number for step in taken] == [1, 2, 3, 4, 5, 6]
    assert [step.epoch for step in taken] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert {step.total for step in taken} == {6}
    assert sum(step.tokens for step in taken) == 3 * sum(e.length for e in examples(encoder))
    assert taken[-1].remaining_seconds == 0
    assert all(step.tokens_per_second > 0 and step.gradient_norm > 0 for step in taken)


def test_a_step_reports_how_full_its_micro_batches_were(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """Nine rows of one length, two of which fill four fifths of a pack: six in three packs, then three in two. The
    result has the mean over all packs."""
    row, taken = examples(encoder, 1)[0], Taken()
    limit = MicroBatchLimit(tokens=5 * row.length // 2, longest=row.length, packed=True)
    trained = Training(
        adapted=fresh(tiny_base, cpu),
        examples=Examples.of([row] * 9),
        config=TrainingConfig(epochs=1.0, effective_batch_size=6),
        limit=limit,
        device=cpu,
        callback=taken,
    ).run()
    pack = limit.tokens / row.length
    assert [step.fill for step in taken.steps] == pytest.approx([6 / (3 * pack), 3 / (2 * pack)])
    assert trained.fill == pytest.approx(9 / (5 * pack))


@pytest.mark.parametrize(("most", "last"), [(1000, 2), (1, 1)])
def test_the_reported_loss_is_the_mean_over_the_last_tenth_of_the_steps(
    *, tiny_base: Base, encoder: Encoder, cpu: Device, monkeypatch: pytest.MonkeyPatch, most: int, last: int
) -> None:
    """Per target token, and of so many steps at most: that over all steps would tell of the beginning."""
    monkeypatch.setattr("lora_trainer.train.loop.MOST_LOSSES", most)
    taken = Taken()
    config = dataclasses.replace(CONFIG, max_steps=20, effective_batch_size=5)
    trained = Training(
        adapted=fresh(tiny_base, cpu),
        examples=examples(encoder),
        config=config,
        limit=MicroBatchLimit.of(5, 64),
        device=cpu,
        callback=taken,
    ).run()
    # The first token of a row is never learned.
    targets = [step.tokens - step.rows for step in taken.steps[-last:]]
    losses = [step.loss for step in taken.steps[-last:]]
    assert trained.loss == pytest.approx(
        sum(loss * count for loss, count in zip(losses, targets, strict=True)) / sum(targets), rel=1e-6
    )
    assert len(set(targets)) == last
    assert trained.loss < taken.steps[0].loss - 0.1


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Schedule.CONSTANT, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Schedule.LINEAR, [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (Schedule.COSINE, [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8))]),
    ],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(schedule: Schedule, factors: list[float]) -> None:
    """Ten steps, two of them warm-up."""
    assert [learning_rate_factor(i, 10, 0.2, schedule) for i in range(10)] == pytest.approx(factors)


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 1.0])
def test_the_learning_rate_is_never_zero(total: int, ratio: float) -> None:
    """Even a run of a single step learns."""
    for schedule in Schedule:
        assert all(0 < learning_rate_factor(i, total, ratio, schedule) <= 1 for i in range(total))


def test_the_standard_error_is_that_of_a_mean_for_rows_of_one_length() -> None:
    """Losses 1, 2, 3, 4 per token: their sample standard deviation over the root of 4."""
    found = ratio_standard_error([10.0, 20.0, 30.0, 40.0], [10, 10, 10, 10])
    assert found == pytest.approx(math.sqrt(5 / 3) / 2)
    assert ratio_standard_error([3.0], [2]) is None


def test_samples_of_one_row_are_one_row_to_the_standard_error() -> None:
    """Of loss, improvement and noise: 20 rows of 8 answers each say no more than the 20 rows."""
    numbers = [row for row in range(20) for _ in range(8)]
    sums, tokens = [10.0 + row % 7 for row in numbers], [10] * len(numbers)
    whole = Evaluation(sums=tuple(8 * (10.0 + row % 7) for row in range(20)), tokens=(80,) * 20)
    parts = Evaluation(sums=tuple(sums), tokens=tuple(tokens), rows=tuple(numbers))
    assert (parts.row_count, whole.row_count) == (20, 20)
    assert parts.standard_error == pytest.approx(whole.standard_error)
    before = dataclasses.replace(parts, sums=tuple(2.0 * value for value in parts.sums))
    assert improvement_standard_error(before, parts) == pytest.approx(whole.standard_error)
    assert noise_of(before, parts) == pytest.approx(whole.loss + 2 * (whole.standard_error or 0.0))
    assert dataclasses.replace(parts, sums=(9.0,) * 8, tokens=(1,) * 8, rows=(3,) * 8).standard_error is None


def test_a_paired_improvement_is_surer_than_two_means() -> None:
    """Every row improves by one: nothing is uncertain about that, however different the rows are."""
    before = Evaluation(sums=(10.0, 40.0, 90.0), tokens=(10, 10, 10))
    after = Evaluation(sums=(0.0, 30.0, 80.0), tokens=(10, 10, 10))
    assert before.loss - after.loss == pytest.approx(1.0)
    assert improvement_standard_error(before, after) == pytest.approx(0.0)
    assert before.standard_error is not None
    assert before.standard_error > 1
