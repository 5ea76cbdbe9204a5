"""The training loop: optimizer steps, between them evaluations and saves, and an end that loses no step."""

import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.tensors import on_all
from lora_trainer.errors import (
    NonFiniteLossError,
    PeerFailedError,
    StorageError,
    TerminatedError,
    explain,
    out_of_memory,
)
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted, set_input_casts, set_training
from lora_trainer.model.recompute import recompute_activations
from lora_trainer.spec.config import ActivationCheckpointing, TrainingConfig
from lora_trainer.train.batches import MicroBatchLimit, Rows, step_rows
from lora_trainer.train.callbacks import SPEED_WINDOW, Step, TrainerCallback, speed_and_rest
from lora_trainer.train.checkpoint_policy import CheckpointPolicy
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.guards import LossGuard, check_trained, was_in_range
from lora_trainer.train.objective import SFT, Objective
from lora_trainer.train.optimizers import load_state, make_optimizer
from lora_trainer.train.packs import accumulation, room
from lora_trainer.train.schedule import learning_rate_factor, total_steps, wanted_rows
from lora_trainer.train.state import (
    BestSoFar,
    EvalResult,
    State,
    StepLoss,
    Tensors,
    TrainerState,
    are_finite,
    copy_of,
    put_back,
    seed_step,
    trainable,
)
from lora_trainer.train.step import run_step
from lora_trainer.train.stopping import Interrupted, Stop

log = logging.getLogger(__name__)
MOST_LOSSES = 1000
"""Most steps whose losses the reported training loss is a mean of."""


@dataclass(slots=True, kw_only=True)
class Training:
    """A training in progress. `stop` says when to end, `checkpoint_policy` keeps states where there is a place for
    them; `evaluate` gives the loss of all evaluated rows. Process 0 has the `best` weights."""

    adapted: Adapted
    examples: Examples
    config: TrainingConfig
    limit: MicroBatchLimit
    device: Device
    objective: Objective = SFT
    ranks: Ranks = field(default_factory=Ranks)
    callback: TrainerCallback = field(default_factory=TrainerCallback)
    stop: Stop = field(default_factory=Stop)
    checkpoint_policy: CheckpointPolicy | None = None
    evaluate: Callable[[], Evaluation] | None = None
    clock: Callable[[], float] = time.monotonic
    trainer_state: TrainerState = field(default_factory=lambda: TrainerState(guard=LossGuard()))
    best: Tensors | None = None
    total: int = field(init=False)
    parameters: dict[str, torch.nn.Parameter] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    recent: deque[Step] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    interruptible: bool = False

    def __post_init__(self) -> None:
        self.total = total_steps(self.config, len(self.examples))
        self.parameters = trainable(self.adapted.model)
        self.optimizer = make_optimizer(list(self.parameters.values()), self.config, self.device)
        self.scaler = torch.amp.GradScaler(self.device.torch_device.type, enabled=self.device.dtype == torch.float16)

    def restore(self, state: State, *, weights_only: bool = False) -> None:
        """Go on from a saved state, or start at step 0 from its weights. Raises `CheckpointError`."""
        put_back(self.parameters, state.adapter)
        if weights_only:
            return
        self.trainer_state, self.best = state.trainer_state, state.best
        self.total = total_steps(self.config, len(self.examples), self.trainer_state.step, self.trainer_state.rows)
        load_state(self.optimizer, state.optimizer)
        # None was there where the GPU before this one had bf16.
        self.scaler.load_state_dict(dict(state.scaler) or self.scaler.state_dict())
        if self.trainer_state.limit_tokens is not None:
            self.limit = dataclasses.replace(self.limit, tokens=min(self.limit.tokens, self.trainer_state.limit_tokens))
        if self.checkpoint_policy is not None:
            self.checkpoint_policy.begin(self.trainer_state.step)

    def state(self) -> State:
        """All that is needed to go on after the last step."""
        return State(
            trainer_state=self.trainer_state,
            adapter=copy_of(self.parameters),
            best=self.best,
            starts=self.adapted.starts,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
        )

    def run(self) -> TrainerState:
        """Train to the end, in place; what was done, all attempts together. Raises `NonFiniteLossError`,
        `CudaOutOfMemoryError`, `StorageError`, and `TerminatedError` once the state is saved of a run that was asked to
        stop."""
        set_training(self.adapted.model, on=True)
        with self.stop.deferred(), self._watched_passes():
            # An attempt that was stopped within an evaluation has saved the step before it.
            with contextlib.suppress(Interrupted):
                self._evaluate_if_due()
            self._end_if_asked()
            config, count, seen = self.config, len(self.examples), self.trainer_state.rows
            wanted = wanted_rows(config, count, self.trainer_state.step, seen)
            for rows in step_rows(count, config.effective_batch_size, wanted, config.seed, seen):
                if self.trainer_state.stopped_early:
                    break
                with contextlib.suppress(Interrupted):
                    self._take(self.trainer_state.step + 1, rows)
                    self._evaluate_if_due()
                self._end_if_asked()
                if self.ranks.any(self._save_is_due()):
                    self._save()
            check_trained(self.trainer_state.step, len(self.trainer_state.losses))
            self._save()
            self._end_if_asked()
        self._take_best()
        return self.trainer_state

    @contextlib.contextmanager
    def _watched_passes(self) -> Iterator[None]:
        """Inputs are as steps take them, see `set_input_casts`. Before every forward pass: a sign of life, and the
        place where a request to stop is heard."""

        def look(*_: object) -> None:
            self.callback.alive()
            if self.interruptible:
                self.stop.interrupt()

        handle = self.adapted.model.register_forward_pre_hook(look)
        set_input_casts(self.adapted.model, on=self.device.dtype == torch.float32)
        try:
            yield
        finally:
            set_input_casts(self.adapted.model, on=True)
            handle.remove()

    def _take(self, number: int, rows: Rows) -> None:
        """One optimizer step, or one left out for its numbers. Raises `Interrupted` with nothing changed."""
        started = self.clock()
        factor = learning_rate_factor(number - 1, self.total, self.config.warmup_ratio, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        weights = {name: float(each[rows].sum()) for name, each in self.objective.weights(self.examples).items()}
        share = self._gradients(number, rows, weights)
        self.scaler.unscale_(self.optimizer)
        length = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        # The one place of a step that waits for the device.
        part, norm = torch.stack([share, length.to(share)]).tolist()
        loss, guard = self.ranks.sum(part), dataclasses.replace(self.trainer_state.guard)
        good = guard.may_take(number, loss, norm, self.scaler.get_scale if self.scaler.is_enabled() else None)
        taken = good and was_in_range(number, norm)
        if taken:
            # Not by the scaler, which asks the device what the norm has told: whether all gradients are finite.
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        before = self.trainer_state
        counted = StepLoss(loss=loss, weight=next(iter(weights.values())))
        self._count(guard, number, rows, counted if taken else None, started)
        if not taken:
            self.callback.left_out(number, bad=not good)
            return
        guard.observe(number, loss)
        self._report(before, loss, norm, factor, self.clock() - started)

    def _gradients(self, number: int, rows: Rows, weights: Mapping[str, float]) -> torch.Tensor:
        """Gradients of a step's loss, over all processes; this process's share of that loss."""
        mine = [self.examples[row] for row in self.ranks.share(rows.tolist(), self._room()[rows].tolist())]
        while True:
            seed_step(self.config.seed, number, self.ranks.rank)
            share, trouble = self._attempt(mine, weights)
            if not self.ranks.any(trouble is not None):
                break
            self.optimizer.zero_grad(set_to_none=True)
            if self.ranks.any(isinstance(trouble, Interrupted)):
                raise Interrupted
            self._halve(number, trouble)
        self.ranks.sum_gradients(self.parameters.values())
        return share

    def _room(self) -> Rows:
        """What each example takes of a micro-batch."""
        return self.examples.room(packed=self.limit.packed)

    def _attempt(
        self, examples: Sequence[Example], weights: Mapping[str, float]
    ) -> tuple[torch.Tensor, Exception | None]:
        """This process's share of the loss, or why there is none, without the frames that hold on to memory."""
        # Where layers are collectives, a process that gives up alone would leave the others waiting.
        self.interruptible = not self.ranks.fsdp
        try:
            share = run_step(
                self.adapted,
                examples,
                objective=self.objective,
                weights=weights,
                limit=self.limit,
                device=self.device,
                scaler=self.scaler,
                ranks=self.ranks,
            )
        except Interrupted as error:
            return torch.zeros(()), error.with_traceback(None)
        except Exception as error:
            if self.ranks.fsdp or not out_of_memory(error):
                raise
            return torch.zeros(()), error.with_traceback(None)
        finally:
            self.interruptible = False
        return share, None

    def _halve(self, number: int, trouble: Exception | None) -> None:
        """Let micro-batches hold half, or where one row alone was too much, recompute activations if the run leaves
        that open. Raises `CudaOutOfMemoryError` where neither helps."""
        peak, halved = self.device.peak_memory_bytes(), self.limit.halved()
        if halved is None and self.adapted.may_recompute:
            log.warning(
                "step %d: out of memory (peak %.2f GiB) with one row: continuing with recomputed activations",
                number,
                peak / 2**30,
            )
            recompute_activations(self.adapted.model)
            self.adapted = dataclasses.replace(
                self.adapted, checkpointing=ActivationCheckpointing.FULL, may_recompute=False
            )
            self.device.give_back()
            return
        if halved is None:
            if trouble is None:
                raise PeerFailedError("its memory does not suffice for one example", accounted=True)
            raise type(explain(trouble))(
                f"the memory does not suffice for one example of {self.limit.longest} tokens (peak "
                f"{peak / 2**30:.2f} GiB): lower training.maxSequenceLength, set training.activationCheckpointing: "
                "Full or quantization: NF4, or use a device with more memory"
            )
        log.warning(
            "step %d: out of memory (peak %.2f GiB) with %d tokens in a micro-batch: continuing with %d, at the same "
            "effective batch",
            number,
            peak / 2**30,
            self.limit.tokens,
            halved.tokens,
        )
        self.limit = halved
        self.trainer_state = dataclasses.replace(self.trainer_state, limit_tokens=halved.tokens)
        self.device.give_back()
        rows, seed = self.config.effective_batch_size, self.config.seed
        self.callback.halved(halved, accumulation(self._room(), halved, rows, seed, self.ranks.world))

    def _count(self, guard: LossGuard, number: int, rows: Rows, loss: StepLoss | None, started: float) -> None:
        losses = self.trainer_state.losses if loss is None else (*self.trainer_state.losses, loss)
        ranks, tokens = self.ranks, int(self.examples.lengths[rows].sum())
        self.trainer_state = dataclasses.replace(
            self.trainer_state,
            step=number,
            tokens=self.trainer_state.tokens + tokens,
            rows=self.trainer_state.rows + len(rows),
            filled=self.trainer_state.filled + tokens,
            room=self.trainer_state.room + room(self._room()[rows], self.limit, ranks.world, fsdp=ranks.fsdp),
            seconds=self.trainer_state.seconds + self.clock() - started,
            losses=losses[-max(1, min(MOST_LOSSES, self.total // 10)) :],
            guard=guard,
        )

    def _report(self, before: TrainerState, loss: float, norm: float, factor: float, seconds: float) -> None:
        tokens = self.trainer_state.tokens - before.tokens
        speed, remaining = speed_and_rest(self.recent, tokens, seconds, self.total - self.trainer_state.step)
        step = Step(
            number=self.trainer_state.step,
            total=self.total,
            epoch=self.trainer_state.rows / len(self.examples),
            loss=loss,
            learning_rate=self.config.learning_rate * factor,
            gradient_norm=norm,
            tokens=tokens,
            rows=self.trainer_state.rows - before.rows,
            fill=tokens / (self.trainer_state.room - before.room),
            seconds=seconds,
            tokens_per_second=speed,
            remaining_seconds=remaining,
        )
        self.recent.append(step)
        self.callback.stepped(step)

    def _evaluate_if_due(self) -> None:
        """Evaluate after every `eval_steps` steps, and after the last one where the best is asked for. Raises
        `Interrupted`."""
        step, done = self.trainer_state.step, self.trainer_state.evaluations[-1:]
        if (
            self.evaluate is None
            or step in {0, *(eval_result.step for eval_result in done)}
            or not self._evaluation_is_due()
        ):
            return
        self.callback.evaluating(step)
        self.interruptible = self.ranks.world == 1
        try:
            result = self.evaluate()
        finally:
            self.interruptible = False
        eval_result = EvalResult(step=step, loss=result.loss)
        self.trainer_state = dataclasses.replace(
            self.trainer_state, evaluations=(*self.trainer_state.evaluations, eval_result)
        )
        if self.config.early_stopping_patience is not None:
            self._compare(step, result.loss, self.config.early_stopping_patience)
        self.callback.evaluated(step, result)

    def _evaluation_is_due(self) -> bool:
        step, every = self.trainer_state.step, self.config.eval_steps
        last = step == self.total and self.config.early_stopping_patience is not None
        # The evaluation after the training is one after the last step, too.
        return every is not None and (last or (step % every == 0 and step != self.total))

    def _compare(self, step: int, loss: float, patience: int) -> None:
        best = self.trainer_state.best
        if self.ranks.broadcast_value(loss < (float("inf") if best is None else best.loss), bool):
            self.trainer_state = dataclasses.replace(self.trainer_state, best=BestSoFar(step=step, loss=loss, waited=0))
            self.best = copy_of(self.parameters) if self.ranks.is_main else None
        elif best is not None:
            waited = dataclasses.replace(best, waited=best.waited + 1)
            early = waited.waited >= patience and step < self.total
            self.trainer_state = dataclasses.replace(self.trainer_state, best=waited, stopped_early=early)

    def _save_is_due(self) -> bool:
        # A good state makes no room for one that may be spoilt.
        due = (
            self.checkpoint_policy is not None
            and self.checkpoint_policy.is_due(self.trainer_state.step)
            and not self.trainer_state.guard.suspicious
        )
        return due and self.ranks.is_main

    def _save(self) -> None:
        """Save the state after the last step, unless it is. Raises `StorageError`."""
        step = self.trainer_state.step
        if self.checkpoint_policy is None or step in {0, self.checkpoint_policy.saved_step}:
            return
        if not are_finite(self.parameters):
            raise NonFiniteLossError(
                f"the adapter's weights are not finite after step {step} and are not saved: lower training.learningRate"
            )
        self.callback.saving(step)
        if self.ranks.is_main:
            try:
                self.checkpoint_policy.save(self.state())
            except StorageError:
                self.callback.not_saved(step)
                raise
        self.ranks.barrier()
        self.checkpoint_policy.begin(step)
        self.callback.saved(step)

    def _end_if_asked(self) -> None:
        """Raises `TerminatedError`, once the state is saved, where any process was asked to stop."""
        if not self.ranks.any(self.stop.requested):
            return
        self._save()
        saved = self.checkpoint_policy is not None and self.trainer_state.step > 0
        what = (
            f"its state after step {self.trainer_state.step} of {self.total} is saved, and the next attempt continues "
            "there"
        )
        raise TerminatedError(
            f"the run was asked to stop before its end: {what if saved else 'nothing is saved'}",
            by_a_peer=not self.stop.requested,
        )

    def _take_best(self) -> None:
        best = self.trainer_state.best
        if best is not None and best.step != self.trainer_state.step:
            log.info("the best evaluation was after step %d: taking its weights", best.step)
            put_back(self.parameters, on_all(dict(self.best or {}), self.ranks, self.device.torch_device))
