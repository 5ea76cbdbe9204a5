"""Disk that a run takes on the claim of its checkpoints."""

from lora_trainer.contract.config import Merge, MergePrecision, TrainConfig
from lora_trainer.contract.fit.adapter import Adapter
from lora_trainer.contract.fit.memory import state_bytes
from lora_trainer.contract.fit.shape import Shape


def checkpoint_bytes(config: TrainConfig, adapter: Adapter) -> int:
    """Of one checkpoint: the adapter in fp32 and its optimizer's state; with early stopping the best adapter, too, and
    the start values of an adapter that is converted in the end."""
    adapters = 4 * adapter.parameters * (1 + (config.training.early_stopping_patience is not None))
    return adapters + _start_bytes(config, adapter) + round(state_bytes(adapter, config.training.optimizer))


def claim_bytes(config: TrainConfig, shape: Shape, adapter: Adapter) -> int:
    """At most at a time: one checkpoint more than are kept, since the oldest goes when a newer one is verified, and the
    result, which waits there to be published. A merged model is counted with 2 bytes a weight, or 4 in FP32."""
    result = adapter.file_bytes + _start_bytes(config, adapter)
    if config.output.merge is not Merge.ADAPTER:
        result += shape.parameters * (4 if config.output.merge_precision is MergePrecision.FP32 else 2)
    return (config.checkpoint.keep + 1) * checkpoint_bytes(config, adapter) + result


def _start_bytes(config: TrainConfig, adapter: Adapter) -> int:
    """Of the start values of PiSSA and OLoRA, which modules that are trained whole do not have. They double the rank
    of the result."""
    return 4 * sum(adapter.tensors) if config.lora.init.changes_base else 0
