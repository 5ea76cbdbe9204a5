"""A base model in memory, and the adapters that are trained on it, one after the other and each as if it were alone.

What belongs to the base is read once: its weights, how they are held, and on which processes. All else begins anew with
each adapter: modules, hooks, attention, fast paths, recomputation, micro-batches, optimizer, random numbers.
"""

import contextlib
import dataclasses
import gc
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lora_trainer.data.dataset import Data
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.errors import ConfigError
from lora_trainer.model.classes import class_name
from lora_trainer.model.convert import Adapter, copy_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.device_check import check_room
from lora_trainer.model.load_throttle import readers, throttled
from lora_trainer.model.loading import Adapted, Loaded, adapt, held_bytes, load_model
from lora_trainer.model.pristine import Pristine
from lora_trainer.model.sharding import device_bytes, divided_over, mesh_over, on_cpu, shard
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.plan.memory import communicators_of, outside_bytes
from lora_trainer.plan.planning import room_bytes
from lora_trainer.spec.config import ActivationCheckpointing, LoraConfig, Quantization
from lora_trainer.spec.summary import ResolvedRun
from lora_trainer.storage.base import Base
from lora_trainer.train.callbacks import TrainerCallback
from lora_trainer.train.checkpoint_policy import CheckpointPolicy
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.evaluator import Evaluator, limit_for
from lora_trainer.train.execution_config import ExecutionConfig, choose_execution
from lora_trainer.train.loop import Training
from lora_trainer.train.objective import objective_of
from lora_trainer.train.packs import accumulation
from lora_trainer.train.resolve_auto import RunSetup
from lora_trainer.train.resume import Saved
from lora_trainer.train.state import TrainerState, trainable
from lora_trainer.train.stopping import Stop

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An `adapter`, which the first process alone has, and the course of its training, whose plan was so many `steps`.
    `noise` is that of the loss `after` it; `left_alone` is what the adapter leaves alone."""

    adapter: Adapter | None
    trainer_state: TrainerState
    steps: int
    before: Evaluation
    after: Evaluation
    noise: float
    resolved: ResolvedRun
    left_alone: LeftAlone


@dataclass(slots=True, kw_only=True)
class Session:
    """Trains adapters for one base on the rows of `data`, on the same processes; each of them calls the same.

    With a `mesh` the base is divided over `over` of them, and takes one adapter: its parts are laid out with that.
    """

    base: Base
    data: Data
    device: Device
    ranks: Ranks
    quantization: Quantization
    over: int
    mesh: Any
    _loaded: Loaded | None = None
    _pristine: Pristine | None = None
    _adapters: int = 0

    @classmethod
    def open(cls, setup: RunSetup, base: Base, data: Data, device: Device, ranks: Ranks) -> "Session":
        """A session whose base is held as a run is settled; the first adapter has it read. Raises as `divided_over`."""
        config = setup.config
        over = divided_over(
            plan=setup.plan,
            weights=lambda: held_bytes(base, device, config.quantization),
            # Of the smallest GPU, as of `resolve_setup`: all must find the same.
            device_bytes=min(ranks.gather(device_bytes(device), int | None), key=lambda size: size or 0),
            ranks=ranks,
            config=config,
        )
        return cls(
            base=base,
            data=data,
            device=device,
            # Where its layers are collectives, all processes have as many passes.
            ranks=dataclasses.replace(ranks, fsdp=True) if over > 1 else ranks,
            quantization=config.quantization,
            over=over,
            mesh=mesh_over(device, ranks, over) if over > 1 else None,
        )

    def train(
        self,
        setup: RunSetup,
        *,
        start: Saved | None = None,
        stop: Stop | None = None,
        checkpoint_policy: Callable[[ResolvedRun, Evaluation], CheckpointPolicy | None] = lambda _resolved, _before: (
            None
        ),
        callback: TrainerCallback | None = None,
    ) -> Result:
        """Train one adapter, as a run is settled and from where it is to `start`; the base is as it was afterwards.

        `checkpoint_policy` is asked for once it is known how the run computes, and what the base's loss is. Raises as
        `adapted` and `Training.run`.
        """
        config, ranks = setup.config, self.ranks
        stop, callback = stop or Stop(), callback or TrainerCallback()
        with self.adapted(setup, start) as adapted:
            execution = choose_execution(setup, adapted, self.data, self.device, ranks, start=start)
            resolved = self._resolved(setup, adapted, execution)
            callback.adapted(resolved, adapted.left_alone)
            evaluation = Evaluator(
                adapted=adapted,
                data=self.data,
                objective=objective_of(config),
                limit=limit_for(config, execution.limit, self.device),
                device=self.device,
                ranks=ranks,
                alive=callback.alive,
                stop=stop,
            )
            before = start.record.before if start and start.goes_on else evaluation(trained=False)
            callback.begins(resolved, before, step=(start and start.resumed_step) or 0)
            self.device.reset_peak_memory()
            training = Training(
                adapted=adapted,
                examples=self.data.training,
                config=config.training,
                objective=objective_of(config),
                limit=execution.limit,
                device=self.device,
                ranks=ranks,
                callback=callback,
                stop=stop,
                checkpoint_policy=checkpoint_policy(resolved, before),
                evaluate=evaluation.on_the_way,
            )
            if start:
                start.restore(training)
            trainer_state = training.run()
            callback.evaluating(trainer_state.step)
            after = evaluation(trained=True)
            noise = evaluation.noise(after)
            callback.ended(trainer_state, after)
            return Result(
                adapter=copy_adapter(adapted.model, adapted.starts) if ranks.is_main else None,
                trainer_state=trainer_state,
                steps=training.total,
                before=before,
                after=after,
                noise=noise,
                resolved=resolved,
                left_alone=adapted.left_alone,
            )

    @contextlib.contextmanager
    def adapted(self, setup: RunSetup, start: Saved | None = None) -> Iterator[Adapted]:
        """The base with a fresh adapter, the same on all processes; afterwards the base as it was.

        Raises `ConfigError` for an adapter that the session's base cannot take, and what reading can raise.
        """
        config, plan, ranks = setup.config, setup.plan, self.ranks
        self._check(setup)
        self._adapters += 1
        at_once = readers(self.base.folder, self.device.dtype, ranks) if self.mesh else ranks.local_world
        try:
            with throttled(ranks, at_once):
                adapted = adapt(
                    self._held(setup),
                    config.lora,
                    self.base,
                    self.device,
                    config.training.seed,
                    checkpointing=config.training.activation_checkpointing,
                    planned=plan.checkpointing if plan else None,
                    starts=(start.starts() or None) if start and ranks.is_main else None,
                    ranks=ranks,
                )
                if self.mesh:
                    shard(adapted.model, self.device, self.mesh)
            self._log(adapted)
            for parameter in trainable(adapted.model).values():
                ranks.broadcast(parameter.data)
            yield adapted
        finally:
            self._put_back(config.lora)

    def _check(self, setup: RunSetup) -> None:
        asked, plan = setup.config.quantization, setup.plan
        if asked is not self.quantization:
            raise ConfigError(
                f"quantization is {asked.value}: the session holds {self.base.name} with {self.quantization.value}; "
                "open another session"
            )
        if self._adapters and (self.mesh or (plan is not None and plan.sharded)):
            raise ConfigError(
                f"{self.base.name} is divided over GPUs for this adapter or one before it, and a base that is divided "
                "takes one adapter for a session: open another session"
            )

    def _held(self, setup: RunSetup) -> Loaded:
        """The base, read where it is not there."""
        if self._adapters > 1:
            # What the last adapter has left behind refers to itself, and would keep its memory.
            gc.collect()
            self.device.give_back()
        if self._loaded is None:
            if setup.plan is not None and setup.plan.fits:
                # All processes have met: NCCL has taken its own.
                taken = outside_bytes(communicators_of(setup.config.device)) - outside_bytes(0)
                check_room(self.device.torch_device, self.device.name, room_bytes(setup.plan) - taken)
            first = on_cpu(self.device) if self.mesh else self.device
            self._loaded = load_model(self.base, self.quantization, first, packs_later=self.mesh is not None)
            self._pristine = Pristine(self._loaded.model)
        return self._loaded

    def _put_back(self, lora: LoraConfig) -> None:
        if self._pristine is not None and not self.mesh:
            self._pristine.put_back()
        if lora.init.changes_base:
            # To be read again: to add back what was taken out of the weights would give others.
            self._loaded = self._pristine = None

    def _log(self, adapted: Adapted) -> None:
        log.info(
            "trainable parameters %d of %d (%.3f %%) in %s",
            adapted.trainable_parameters,
            adapted.total_parameters,
            100 * adapted.trainable_parameters / adapted.total_parameters,
            ", ".join(adapted.target_modules),
        )
        if self.mesh:
            where = "all nodes" if self.over > self.ranks.local_world else "each node"
            log.info("the base model's layers are divided over %d processes, those of %s", self.over, where)

    def _resolved(self, setup: RunSetup, adapted: Adapted, execution: ExecutionConfig) -> ResolvedRun:
        config, base, data, device, world = setup.config, self.base, self.data, self.device, self.ranks.world
        limit, effective = execution.limit, config.training.effective_batch_size
        room = data.training.room(packed=limit.packed)
        return ResolvedRun(
            device=device.name,
            compute_dtype=device.dtype_name,
            model_type=base.model_type,
            model_revision=base.revision,
            dataset_format=data.kind.value,
            dataset_fingerprint=data.fingerprint,
            target_modules=adapted.target_modules,
            trainable_parameters=adapted.trainable_parameters,
            total_parameters=adapted.total_parameters,
            micro_batch_size=min(limit.rows, math.ceil(effective / world)),
            micro_batch_tokens=limit.tokens,
            gradient_accumulation_steps=accumulation(room, limit, effective, config.training.seed, world),
            quantization=config.quantization.value,
            packing=limit.packed,
            attention=execution.attention,
            optimizer=config.training.optimizer.value,
            activation_checkpointing=adapted.checkpointing.recomputes,
            selective_checkpointing=adapted.checkpointing is ActivationCheckpointing.SELECTIVE,
            processes=world,
            sharded=self.over > 1,
            sharded_over=self.over if self.over > 1 else None,
            model_class=class_name(adapted.model.config, base.name),
            kernels=execution.kernels.names,
            kernels_left_out=execution.kernels.left_out,
            kernels_unchecked=execution.kernels.unchecked,
        )
