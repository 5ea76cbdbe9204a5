"""What `Auto` becomes on the device that a training finds, before weights are read, and what that is expected to take.

By the same functions as the plan that preflight makes before there is a device; that plan is compared with it here.
"""

import logging
from dataclasses import dataclass, replace

from lora_trainer.data.dataset import Data
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.reports import Report, Reporter
from lora_trainer.errors import ConfigError, DoesNotFitError
from lora_trainer.model.device import Device
from lora_trainer.model.options import check_options
from lora_trainer.model.sharding import device_bytes
from lora_trainer.plan.adapter import AdapterError, plan_adapter
from lora_trainer.plan.architecture import ArchitectureError, ModelArchitecture
from lora_trainer.plan.planning import plan_of, resolved_by_weights
from lora_trainer.spec.config import ActivationCheckpointing, Kernels, Quantization, TrainConfig
from lora_trainer.spec.gpus import Gpu, by_product, found_gpu
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.storage.base import Base
from lora_trainer.storage.base_architecture import architecture_in, parameters_in

log = logging.getLogger(__name__)
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """The configuration without `Auto` for the quantization, and the plan for the device; None where the model's
    configuration describes no layers that could be counted. `shape` and `gpu` are what it was made of."""

    config: TrainConfig
    plan: RunPlan | None
    shape: ModelArchitecture | None = None
    gpu: Gpu | None = None


def resolve_setup(
    config: TrainConfig,
    base: Base,
    device: Device,
    data: Data,
    ranks: Ranks,
    *,
    reporter: Reporter,
    kept: Quantization | None,
) -> RunSetup:
    """Settle a run on the smallest of its processes' devices; all of them call it, and find the same. The plan is
    reported where preflight made none, and where it refuses.

    `kept` is the quantization of the checkpoint that the run goes on from: it wins over what the device would have, and
    what has been trained before is tried on any device. Raises `DoesNotFitError`, on all processes, where preflight
    would have done so for this device.
    """
    gpu = min(ranks.gather(gpu_of(device), Gpu | None), key=lambda gpu: gpu.memory_bytes if gpu else 0)
    if config.quantization is Quantization.AUTO and kept is not None:
        log.info("quantization: %s, as of the checkpoint", kept.value)
        config = replace(config, quantization=kept)
    try:
        shape = architecture_in(base.folder, config.model.uri)
        plan = _plan(config, shape, data, gpu)
    except (ArchitectureError, AdapterError, ConfigError) as error:
        log.warning("what the run takes is not estimated: %s", error)
        return RunSetup(config=_by_weights(config, base, device, gpu), plan=None)
    # Without one it is possible: `check_options` has said so before.
    chosen = plan.quantization not in {config.quantization, Quantization.NONE}
    if chosen and not _possible(config, plan.quantization, base, device):
        plan = _plan(_quantized(config, Quantization.NONE), shape, data, gpu)
    _log(config, plan)
    refused = plan.fits is False and kept is None
    if refused or config.planned is None:
        reporter.send(Report(plan=plan))
    if refused:
        raise DoesNotFitError(plan.reason, plan)
    return RunSetup(config=_quantized(config, plan.quantization), plan=plan, shape=shape, gpu=gpu)


def plain_setup(setup: RunSetup, data: Data, checkpointing: ActivationCheckpointing) -> RunSetup:
    """The same with a plan that counts on nothing fast, for a model that is in memory and recomputes in this manner."""
    if setup.plan is None or setup.shape is None:
        return setup
    training = replace(setup.config.training, kernels=Kernels.REFERENCE, activation_checkpointing=checkpointing)
    plan = _plan(replace(setup.config, training=training), setup.shape, data, setup.gpu)
    return replace(setup, plan=plan)


def _by_weights(config: TrainConfig, base: Base, device: Device, gpu: Gpu | None) -> TrainConfig:
    """Settled by the weights alone, if they can be read."""
    if gpu is None or config.quantization is not Quantization.AUTO:
        return _quantized(config, Quantization.NONE)
    try:
        parameters = parameters_in(base.folder, config.model.uri)
    except ConfigError:
        return _quantized(config, Quantization.NONE)  # whoever loads them says so
    found, why = resolved_by_weights(config, parameters, gpu)
    if found is not Quantization.NONE and not _possible(config, found, base, device):
        found = Quantization.NONE
    log.info("quantization: %s, by the weights: %s", found.value, why)
    return _quantized(config, found)


def gpu_of(device: Device) -> Gpu | None:
    """The GPU with the memory that a plan counts on; None for a CPU."""
    memory = device_bytes(device)
    return None if memory is None else found_gpu(device.name, memory, device.capability or (0, 0))


def peak_share(shape: ModelArchitecture | None, device: Device, ranks: Ranks) -> float | None:
    """Share of the peak of all processes' GPUs that training one token a second takes, by 4N operations a token (see
    `flops_per_token`); None where model or GPU are not known, and in fp32, of which no data sheet has a comparable
    peak."""
    gpu = by_product(device.name)
    if shape is None or gpu is None or gpu.flops is None or device.dtype_name == "fp32":
        return None
    return 4 * shape.multiplied / (gpu.flops * ranks.world)


def _quantized(config: TrainConfig, quantization: Quantization) -> TrainConfig:
    return replace(config, quantization=quantization) if config.quantization is Quantization.AUTO else config


def _plan(config: TrainConfig, shape: ModelArchitecture, data: Data, gpu: Gpu | None) -> RunPlan:
    """The plan for the device, in the way that was planned before where that fits it, too."""
    stats = data.stats
    if gpu is None:
        config = replace(config, device=replace(config.device, gpus=0))
    adapter = plan_adapter(config.lora, shape)

    def made(of: TrainConfig, tokens: int | None = None) -> RunPlan:
        return plan_of(
            of,
            shape,
            adapter,
            tokens=stats.train_tokens,
            rows=stats.train_samples,
            target_share=min(1.0, stats.target_tokens / max(1, stats.train_tokens)),
            longest=stats.longest_tokens,
            evaluated=data.longest_evaluated,
            gpu=gpu,
            micro_batch_tokens=tokens,
        )

    planned = config.planned
    if planned is None or gpu is None:
        return made(config)
    training = config.training
    if training.activation_checkpointing is ActivationCheckpointing.AUTO:
        training = replace(training, activation_checkpointing=planned.checkpointing)
    plan = made(replace(config, training=training), planned.micro_batch_tokens)
    return plan if plan.fits else made(config)


def _possible(config: TrainConfig, quantization: Quantization, base: Base, device: Device) -> bool:
    """Whether model and device can be quantized at all, for reasons that no estimate knows."""
    try:
        check_options(base, replace(config, quantization=quantization), device)
    except ConfigError as error:
        log.info("quantization %s would be chosen and cannot be: %s", quantization.value, error)
        return False
    return True


def _log(config: TrainConfig, plan: RunPlan) -> None:
    log.info("expected: %s", plan.reason)
    planned = config.planned
    if planned is None:
        return
    found = "a CPU" if plan.device_bytes is None else f"{plan.device} with {plan.device_bytes / _GIB:.1f} GiB"
    known = "a CPU" if planned.device_bytes is None else f"{planned.device} with {planned.device_bytes / _GIB:.1f} GiB"
    smaller = (plan.device_bytes or 0) < (planned.device_bytes or 0)
    log.log(
        logging.WARNING if smaller else logging.INFO,
        "planned for %s, which was to take %.1f GiB; found %s, which takes %.1f GiB",
        known,
        planned.peak_bytes / _GIB,
        found,
        plan.peak_bytes / _GIB,
    )
