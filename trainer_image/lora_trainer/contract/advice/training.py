"""Advice about the training: dropout, epochs, batch, and learning rate."""

import math
from dataclasses import replace

from lora_trainer.contract.advice.adapter import grows_with_rank
from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, count, number, size
from lora_trainer.contract.config import ActivationCheckpointing, Packing, Precision, Quantization, Variant
from lora_trainer.contract.fit.adapter import Adapter, AdapterError, plan_adapter
from lora_trainer.contract.fit.choice import choose, recomputes
from lora_trainer.contract.fit.devices import device_of
from lora_trainer.contract.fit.limits import CPU_TOKEN_BUDGET, TOKEN_BUDGET
from lora_trainer.contract.fit.memory import gpu_memory
from lora_trainer.contract.fit.setting import Setting

_LARGE_BATCH = 32
_LOWEST_RATE, _USUAL_RATE, _HIGHEST_RATE = 5e-5, 2e-4, 1e-3
_ENOUGH_TOKENS = 4096
_LEAST_FILL = 0.5
_FOUR_BITS = (Quantization.NF4, Quantization.FP4)
_REGRET = "Schulman et al., LoRA Without Regret (Thinking Machines, 2025)"
_PASSES = (
    "and more data rather than more epochs: further passes over the same rows often make the result worse on others. "
    "spec.training.evalSteps with earlyStoppingPatience keeps the best adapter"
)
_BATCHES = "adapters learn less from large batches than whole models do, whatever their rank"
_ANEW = (
    "or set spec.quantization to None where the base fits in 16 bits: 4-bit weights are converted to 16 bits again for "
    "each micro-batch"
)
_EMPTY = "reading the weights and starting each operation take as long for a pack that is nearly empty"
_RATES = (
    "adapters take about ten times the rate of a whole model, less leaves them untrained, and more makes the loss "
    "diverge"
)
_RASCHKA = "Raschka, Practical Tips for Finetuning LLMs Using LoRA (2023)"


def _dropout_memory(facts: Facts) -> Values | None:
    config, shape, computing = facts.config, facts.shape, facts.computing
    if config.lora.dropout <= 0 or shape is None:
        return None
    recomputed, selective = computing.recomputes, computing.selective
    if recomputed is None:
        recomputed = recomputes(config, shape.parameters, cpu=computing.cpu)
        selective = config.training.activation_checkpointing is ActivationCheckpointing.SELECTIVE
    if recomputed and not selective:
        return None
    adapter = _adapter(facts)
    if adapter is None:
        return None
    fp32 = config.training.precision is Precision.FP32 or computing.cpu
    tokens = _most_tokens(facts)
    kept, plain = (
        gpu_memory(
            shape,
            adapter,
            Setting(
                quantization=Quantization.NONE,
                recompute=selective,
                selective=selective,
                tokens=tokens,
                row=config.training.max_sequence_length,
                packs=not computing.cpu,
                cpu=computing.cpu,
                fp32=fp32,
                dora=config.lora.variant is Variant.DORA,
                dropout=dropout,
            ),
        ).activations
        for dropout in (True, False)
    )
    if kept <= plain:
        return None
    share = f"{(kept - plain) / max(1, plain):.0%}"
    values = {"dropout": number(config.lora.dropout), "more": size(kept - plain), "share": share}
    return {**values, "tokens": count(tokens)}


def _adapter(facts: Facts) -> Adapter | None:
    """None where layers are not known, or the model cannot have it."""
    try:
        return None if facts.shape is None else plan_adapter(facts.config.lora, facts.shape)
    except AdapterError:
        return None


def _most_tokens(facts: Facts) -> int:
    """Most tokens of a micro-batch, by the plan or by the configuration."""
    training, planned = facts.config.training, facts.computing.micro_batch_tokens
    if planned is not None:
        return planned
    longest = training.max_sequence_length
    budget = CPU_TOKEN_BUDGET if facts.computing.cpu else TOKEN_BUDGET
    if training.micro_batch_size is not None:
        budget = training.micro_batch_size * longest
    return min(max(budget, longest), _rows_of_a_process(facts) * longest)


def _rows_of_a_process(facts: Facts) -> int:
    return math.ceil(facts.config.training.effective_batch_size / max(1, facts.config.device.processes))


def _several_epochs(facts: Facts) -> Values | None:
    training, rows = facts.config.training, facts.rows
    epochs, steps = training.epochs, None
    if epochs is None and rows is not None and training.max_steps is not None:
        epochs = training.max_steps * training.effective_batch_size / max(1, rows.training)
        steps = rows.training // max(1, training.effective_batch_size)
    if epochs is None or epochs <= 1:
        return None
    return {"epochs": f"{epochs:.3g}", **({"steps": str(steps)} if steps else {})}


def _large_batch(facts: Facts) -> Values | None:
    training, processes = facts.config.training, facts.config.device.processes
    batch, micro, most = training.effective_batch_size, training.micro_batch_size, max(_LARGE_BATCH, processes)
    if batch <= most:
        return None
    values = {"batch": count(batch), "smaller": str(most)}
    if micro and most % micro:
        divided = most - most % micro
        return (
            {**values, "smaller": str(divided)} if divided >= processes and divided else {**values, "micro": str(micro)}
        )
    return {**values, "least": str(most)} if processes >= _LARGE_BATCH else values


def _small_micro_batch(facts: Facts) -> Values | None:
    if facts.computing.quantization not in _FOUR_BITS or facts.computing.cpu:
        return None
    tokens = min(_most_tokens(facts), _filled(facts))
    if tokens >= _ENOUGH_TOKENS or not _may_be_larger(facts):
        return None
    training = facts.config.training
    values = {
        "tokens": count(tokens),
        "enough": count(_ENOUGH_TOKENS),
        "quantization": facts.computing.quantization.value,
    }
    if training.micro_batch_size is not None:
        values["micro"] = str(training.micro_batch_size)
    return {**values, "batch": str(training.effective_batch_size)} if _filled(facts) < _ENOUGH_TOKENS else values


def _filled(facts: Facts) -> float:
    """Tokens of a process's rows of a step: in the mean, or where rows are not known at most."""
    rows, longest = facts.rows, facts.config.training.max_sequence_length
    known = rows is not None and rows.training > 0
    return _rows_of_a_process(facts) * (rows.tokens / rows.training if known and rows else longest)


def _may_be_larger(facts: Facts) -> bool:
    """Whether rows of a step that are no more than advised fill a large micro-batch, and the device has room for it, as
    far as that is known."""
    config, computing, plan = facts.config, facts.computing, facts.plan
    most, batch = computing.micro_batch_tokens, max(_LARGE_BATCH, config.training.effective_batch_size)
    free = replace(config.training, micro_batch_size=None, effective_batch_size=batch)
    larger = replace(facts, config=replace(config, quantization=computing.quantization, training=free))
    if _filled(larger) < _ENOUGH_TOKENS:
        return False
    # Where the run does not ask for it, only memory makes a micro-batch smaller than its rows.
    if config.training.micro_batch_size is None and most is not None and most < min(_ENOUGH_TOKENS, _filled(facts)):
        return False
    adapter = _adapter(facts)
    if plan is None or plan.device_bytes is None or facts.shape is None or adapter is None:
        return True
    gpu = device_of(replace(config.device, gpu=plan.device, gpu_memory_bytes=plan.device_bytes))
    return gpu is None or choose(larger.config, facts.shape, adapter, gpu).option.tokens >= _ENOUGH_TOKENS


def _packs_not_filled(facts: Facts) -> Values | None:
    training, rows, planned = facts.config.training, facts.rows, facts.computing.micro_batch_tokens
    chosen = training.packing is not Packing.ENABLED or training.micro_batch_size is not None
    if chosen or facts.computing.cpu or rows is None or rows.training <= 0 or _small_micro_batch(facts) is not None:
        return None
    tokens = _rows_of_a_process(facts) * rows.tokens / rows.training
    # What memory keeps smaller than that is filled.
    if tokens >= _LEAST_FILL * TOKEN_BUDGET or (planned is not None and planned < tokens):
        return None
    values = {"tokens": count(tokens), "room": count(TOKEN_BUDGET), "fill": f"{tokens / TOKEN_BUDGET:.0%}"}
    # Fewer GPUs may not hold a divided base.
    fewer = facts.config.device.processes > 1 and not (facts.plan is not None and facts.plan.sharded)
    more = training.effective_batch_size < _LARGE_BATCH
    if fewer and more:
        return values
    if more:
        return {**values, "batch": str(training.effective_batch_size)}
    return {**values, "processes": str(facts.config.device.processes)} if fewer else None


def _learning_rate(facts: Facts) -> Values | None:
    rate = facts.config.training.learning_rate
    if _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        return None
    lora = facts.config.lora
    usual = replace(facts.config.training, learning_rate=_USUAL_RATE)
    high = lora.alpha >= 2 * lora.rank and grows_with_rank(replace(facts.config, training=usual))
    return {"rate": number(rate), **({"start": number(_USUAL_RATE / 2), "rank": str(lora.rank)} if high else {})}


RULES = (
    Rule(
        code=Code.DROPOUT_MEMORY,
        severity=Severity.INFO,
        subject="dropout",
        condition="dropout is above 0 and not all activations are recomputed",
        message='Set spec.lora.dropout to "0" unless a trial shows that it helps, or '
        "spec.training.activationCheckpointing to Full: with dropout each adapted module keeps its own input and a "
        "mask of it",
        evidence=(
            (
                "By the estimate dropout {dropout} takes {more} more for activations ({share}), at {tokens} tokens in "
                "a micro-batch"
            ),
        ),
        source="fit.md, What is counted",
        rule_of_thumb=False,
        check=_dropout_memory,
    ),
    Rule(
        code=Code.SEVERAL_EPOCHS,
        severity=Severity.INFO,
        subject="epochs",
        condition="the run sees its rows more than once",
        message=f"Try one epoch first, {_PASSES}",
        special=(f"Set spec.training.maxSteps to {{steps}} first, which is one epoch, {_PASSES}",),
        evidence=("The run sees each row {epochs} times",),
        source=_RASCHKA,
        rule_of_thumb=True,
        check=_several_epochs,
    ),
    Rule(
        code=Code.LARGE_BATCH,
        severity=Severity.INFO,
        subject="batch",
        condition="spec.training.effectiveBatchSize is above 32, and above the number of training processes",
        message=f"Lower spec.training.effectiveBatchSize to {{smaller}} or less: {_BATCHES}",
        special=(
            (
                "Lower spec.training.effectiveBatchSize to {smaller} or less, and microBatchSize ({micro}) to a "
                f"divisor of it: {_BATCHES}"
            ),
            f"Lower spec.training.effectiveBatchSize to {{least}}, a row for each training process: {_BATCHES}",
        ),
        evidence=("spec.training.effectiveBatchSize is {batch}",),
        source=_REGRET,
        rule_of_thumb=True,
        check=_large_batch,
    ),
    Rule(
        code=Code.SMALL_MICRO_BATCH,
        severity=Severity.INFO,
        subject="batch",
        condition=(
            "in 4 bits a GPU's micro-batch has fewer than 4,096 tokens, though as many fit and 32 rows fill them"
        ),
        message="Let micro-batches have {enough} tokens or more (omit spec.training.microBatchSize, or raise "
        f"effectiveBatchSize up to 32), {_ANEW}",
        special=(
            (
                "Omit spec.training.microBatchSize ({micro}) and raise effectiveBatchSize from {batch} up to 32, "
                f"so that micro-batches have {{enough}} tokens or more, {_ANEW}"
            ),
            (
                "Omit spec.training.microBatchSize ({micro}), so that micro-batches have {enough} tokens or "
                f"more, {_ANEW}"
            ),
            (
                "Raise spec.training.effectiveBatchSize from {batch} up to 32, so that micro-batches have {enough} "
                f"tokens or more, {_ANEW}"
            ),
        ),
        evidence=("With {quantization} a micro-batch has at most some {tokens} tokens",),
        source="fit.md, What is counted; +50 % of time at 110 tokens: Raschka (2023)",
        rule_of_thumb=True,
        check=_small_micro_batch,
    ),
    Rule(
        code=Code.PACKS_NOT_FILLED,
        severity=Severity.INFO,
        subject="batch",
        condition="a GPU's rows of a step fill less than half of a pack of 4,096 tokens, memory has room for more, and "
        "several GPUs share a step or it has fewer than 32 rows",
        message="Let fewer GPUs share a step (spec.resources.gpus, nodes), which changes no result, or raise "
        f"spec.training.effectiveBatchSize up to 32: {_EMPTY}",
        special=(
            f"Raise spec.training.effectiveBatchSize from {{batch}} up to 32: {_EMPTY}",
            (
                "Let fewer than {processes} GPUs share a step (spec.resources.gpus, nodes), which changes no result: "
                f"{_EMPTY}"
            ),
        ),
        evidence=("A step gives each GPU some {tokens} tokens, {fill} of the {room} that a pack has room for",),
        source="fit.md, What is counted",
        rule_of_thumb=True,
        check=_packs_not_filled,
    ),
    Rule(
        code=Code.LEARNING_RATE,
        severity=Severity.WARNING,
        subject="learning rate",
        condition="spec.training.learningRate is below 5e-5 or above 1e-3",
        message=f"Set spec.training.learningRate from 0.00005 to 0.001, 0.0002 for a start: {_RATES}",
        special=(
            "Set spec.training.learningRate from 0.00005 to 0.001, {start} for a start at rank {rank}: " + _RATES,
        ),
        evidence=("spec.training.learningRate is {rate}",),
        source=_REGRET,
        rule_of_thumb=True,
        check=_learning_rate,
    ),
)
