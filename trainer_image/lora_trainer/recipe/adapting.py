"""The base model with its adapter, whole on each process or divided over them, and the same on all."""

import dataclasses
import logging
from collections.abc import Mapping

from lora_trainer.model.convert import Start
from lora_trainer.model.device import Device
from lora_trainer.model.device_check import check_room
from lora_trainer.model.loading import Adapted, adapt, load_model
from lora_trainer.model.sharding import device_bytes, divided_over, mesh_over, on_cpu, shard, weight_bytes
from lora_trainer.model.turns import in_turn, readers
from lora_trainer.places.base import Base
from lora_trainer.places.model_folder import weights_in
from lora_trainer.plan.memory import communicators_of, outside_bytes
from lora_trainer.plan.planning import room_bytes
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.recipe.settling import Settled
from lora_trainer.training.state import trainable

log = logging.getLogger(__name__)


def adapted_on_all(
    settled: Settled, base: Base, device: Device, starts: Mapping[str, Start] | None, ranks: Ranks, *, linear: int
) -> tuple[Adapted, Ranks]:
    """The model with its adapter, the same on all processes, and these in lockstep where they share its weights, of
    which `linear` are quantized. `starts` are those of a checkpoint, on the first process."""
    config, plan = settled.config, settled.plan
    if plan is not None and plan.fits:
        # All processes have met: NCCL has taken its own.
        taken = outside_bytes(communicators_of(config.device)) - outside_bytes(0)
        check_room(device.torch_device, device.name, room_bytes(plan) - taken)
    over = divided_over(
        plan=plan,
        weight_bytes=weight_bytes(weights_in(base.folder), device.dtype, config.quantization, linear),
        # Of the smallest GPU, as of `settle`: all must find the same.
        device_bytes=min(ranks.gather(device_bytes(device), int | None), key=lambda size: size or 0),
        ranks=ranks,
        config=config,
    )
    mesh = mesh_over(device, ranks, over) if over > 1 else None
    with in_turn(ranks, readers(base.folder, device.dtype, ranks) if mesh else ranks.local_world):
        adapted = adapt(
            load_model(base, config.quantization, on_cpu(device) if mesh else device, packs_later=mesh is not None),
            config.lora,
            base,
            device,
            config.training.seed,
            checkpointing=config.training.activation_checkpointing,
            planned=plan.manner if plan else None,
            starts=starts or None,
            ranks=ranks,
        )
        if mesh:
            shard(adapted.model, device, mesh)
    log.info(
        "trainable parameters %d of %d (%.3f %%) in %s",
        adapted.trainable_parameters,
        adapted.total_parameters,
        100 * adapted.trainable_parameters / adapted.total_parameters,
        ", ".join(adapted.target_modules),
    )
    if over > 1:
        adapted = dataclasses.replace(adapted, sharded_over=over)
        ranks = dataclasses.replace(ranks, lockstep=True)
        where = "all nodes" if over > ranks.local_world else "each node"
        log.info("the base model's layers are divided over %d processes, those of %s", over, where)
    for parameter in trainable(adapted.model).values():
        ranks.broadcast(parameter.data)
    return adapted, ranks
