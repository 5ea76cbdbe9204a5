"""Our trainer's own loop, as a run has it after its preparations."""

from dataclasses import replace
from pathlib import Path

from benchmarks.comparison.job import ALPHA, LEARNING_RATE, RANK, Job, learned_in, training_rows
from benchmarks.comparison.measuring import Clock, device_of, examples, peak_mib, result
from benchmarks.comparison.settings import EFFECTIVE

from lora_trainer.data.store import Examples
from lora_trainer.distributed.collectives import ALONE
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.planning import plan_of
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DatasetConfig,
    DeviceConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    Quantization,
    RunIdentity,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.storage.base import open_folder
from lora_trainer.storage.base_architecture import architecture_in
from lora_trainer.train.execution_config import limit_of
from lora_trainer.train.loop import Training
from lora_trainer.train.resolve_auto import gpu_of
from lora_trainer.train.self_check import take_fast

LORA = LoraConfig(rank=RANK, alpha=ALPHA)


def ours(job: Job) -> dict[str, float]:
    """Train, and measure."""
    device, base = device_of(job), open_folder(Path(job.model))
    data, training = examples(training_rows(job)), training_of(job)
    plan = planned(job, device, data, training)
    adapted = adapt(
        load_model(base, Quantization.NONE, device),
        LORA,
        base,
        device,
        job.seed,
        checkpointing=checkpointing(job, plan),
    )
    packs = isolate(adapted.model)
    limit = limit_of(None, job.length, packed=packs, device=device, plan=plan, kept=None)
    take_fast(adapted, data, limit, device, ALONE)
    loop = Training(adapted=adapted, examples=data, config=training, limit=limit, device=device)
    device.reset_peak_memory()
    clock = Clock(device.torch_device)
    clock.stamp()
    loop.run()
    clock.stamp()
    return result(job, clock, peak_mib(device), adapted.model)


def training_of(job: Job) -> TrainingConfig:
    """As that of the others."""
    return TrainingConfig(learning_rate=LEARNING_RATE, warmup_ratio=0.0, effective_batch_size=EFFECTIVE, seed=job.seed)


def planned(job: Job, device: Device, data: Examples, training: TrainingConfig) -> RunPlan | None:
    """What a run would plan for this GPU; None for a CPU, and where it does not fit."""
    gpu = gpu_of(device)
    if gpu is None:
        return None
    config = TrainConfig(
        run=RunIdentity(namespace="benchmarks", name=job.part, uid="0"),
        model=ModelConfig(uri=f"file://{job.model}"),
        dataset=DatasetConfig(uri="file:///dev/null"),
        lora=LORA,
        training=replace(training, max_sequence_length=job.length),
        device=DeviceConfig(gpus=1),
        output=OutputConfig(uri="file:///dev/null"),
    )
    shape = architecture_in(Path(job.model), config.model.uri)
    tokens = int(data.lengths.sum())
    learned = learned_in(training_rows(job)) / tokens
    adapter = plan_adapter(LORA, shape)
    plan = plan_of(
        config, shape, adapter, tokens=tokens, rows=len(data), target_share=learned, longest=job.length, gpu=gpu
    )
    return plan if plan.fits else None


def checkpointing(job: Job, plan: RunPlan | None) -> ActivationCheckpointing:
    """In which activations are recomputed: as a run would, and somehow where all trainers are to."""
    chosen = ActivationCheckpointing.NONE if plan is None else plan.checkpointing
    return ActivationCheckpointing.FULL if job.recompute and not chosen.recomputes else chosen
