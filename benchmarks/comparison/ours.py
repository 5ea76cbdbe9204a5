"""Our trainer's own loop, as a run has it after its preparations."""

from pathlib import Path

from benchmarks.comparison.job import ALPHA, LEARNING_RATE, RANK, Job, training_rows
from benchmarks.comparison.measuring import Clock, device_of, examples, peak_mib, result
from benchmarks.comparison.settings import EFFECTIVE

from lora_trainer.contract.config import ActivationCheckpointing, Kernels, LoraConfig, Quantization, TrainingConfig
from lora_trainer.model.attention import choose_attention
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.places.base import open_folder
from lora_trainer.ranks.collectives import ALONE
from lora_trainer.recipe.kernels import choose_kernels
from lora_trainer.training.batches import Budget, token_budget
from lora_trainer.training.loop import Training


def ours(job: Job) -> dict[str, float]:
    """Train, and measure."""
    device, base = device_of(job), open_folder(Path(job.model))
    adapted = adapt(
        load_model(base, Quantization.NONE, device),
        LoraConfig(rank=RANK, alpha=ALPHA),
        base,
        device,
        job.seed,
        checkpointing=ActivationCheckpointing.FULL if job.recompute else ActivationCheckpointing.NONE,
    )
    packs = choose_attention(adapted.model, device).packs
    data = examples(training_rows(job))
    choose_kernels(Kernels.AUTO, adapted, data, device, ALONE, packed=packs, kept=None)
    training = Training(
        adapted=adapted,
        examples=data,
        config=TrainingConfig(
            learning_rate=LEARNING_RATE, warmup_ratio=0.0, effective_batch_size=EFFECTIVE, seed=job.seed
        ),
        budget=Budget.of(None, job.length, packed=packs, tokens=token_budget(device.torch_device)),
        device=device,
    )
    device.reset_peak_memory()
    clock = Clock(device.torch_device)
    clock.stamp()
    training.run()
    clock.stamp()
    return result(job, clock, peak_mib(device), adapted.model)
