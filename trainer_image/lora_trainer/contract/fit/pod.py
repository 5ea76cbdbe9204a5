"""The main memory of a run's pods, and how a run computes where nothing tells its GPU."""

from lora_trainer.contract.config import ActivationCheckpointing, Quantization, TrainConfig
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.choice import REFERENCE, Load, recomputes, setting_of
from lora_trainer.contract.fit.memory import Setting, main_memory
from lora_trainer.contract.fit.merging import merge_memory
from lora_trainer.contract.fit.shape import Shape


def pod_memory(
    config: TrainConfig, shape: Shape, adapter: Adapter, load: Load | None = None, *, divided: bool = False
) -> int:
    """Bytes of main memory that each of the run's pods takes at its peak, a CPU's training included where there is no
    GPU, and the merge that follows it.

    A base that is divided is read there first. It stays pages of its files, but for experts, which are put together
    from one tensor each: then the processes take turns, and one copy is there at a time.
    """
    setting = presumed(config, shape, load)
    copies = expert_copies(config, shape) if divided else 0
    training = copies + main_memory(shape, adapter, setting, processes=max(1, config.device.gpus))
    return max(training, merge_memory(config, shape.parameters, shape))


def expert_copies(config: TrainConfig, shape: Shape) -> int:
    """Bytes of main memory that a base takes on top while it is read divided."""
    return presumed(config, shape).size * shape.experts


def presumed(config: TrainConfig, shape: Shape, load: Load | None = None) -> Setting:
    """How the run computes on a CPU, or where nothing tells its GPU: unquantized, unless it is asked to."""
    cpu = config.device.gpus == 0
    quantization = Quantization.NONE if config.quantization is Quantization.AUTO else config.quantization
    manner = config.training.activation_checkpointing
    if manner is ActivationCheckpointing.AUTO:
        recompute = recomputes(config, shape.parameters, cpu=cpu)
        manner = ActivationCheckpointing.of(recompute=recompute, selective=False)
    gpu = None if cpu else REFERENCE
    return setting_of(config, shape, gpu, quantization=quantization, manner=manner, load=load)
