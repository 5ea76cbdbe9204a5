"""The state of a training between two optimizer steps, and its files in a checkpoint.

There is no state of random numbers: everything random in a step follows from the run's seed, the step and the process
(`seed_step`), the order of the rows likewise (`batches.step_rows`). So a step that is taken again, after a restart or
with smaller micro-batches, draws what it drew before.
"""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.tensors import filled, on_all, outline_of, pieces_of, tensors_of
from lora_trainer.errors import CheckpointError, one_sentence
from lora_trainer.model.convert import Start
from lora_trainer.spec import codec
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import DatasetStats, ResolvedRun
from lora_trainer.storage.sealed import Write
from lora_trainer.storage.tensor_files import Entry, header_of
from lora_trainer.train.checkpoint import RUN_FILE
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.guards import LossGuard

_ADAPTER, _BEST, _STARTS = "adapter.safetensors", "best.safetensors", "starts.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_OUTLINE = "outline"
_STORED_AS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """Loss of a step, in nats per target token as far as that is what is minimised, and the weight that it is a mean
    over: target tokens, or examples."""

    loss: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """An evaluation on the way."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BestSoFar:
    """The evaluation with the lowest loss, and how many have passed since."""

    step: int
    loss: float
    waited: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Where a training stands after `step` optimizer steps. `seconds` counts all attempts; `losses` are those of
    the last steps; `limit_tokens` is what a micro-batch may hold, where memory did not suffice for the plan.
    `filled` are the tokens of micro-batches that had room for `room`."""

    step: int = 0
    tokens: int = 0
    rows: int = 0
    seconds: float = 0.0
    losses: tuple[StepLoss, ...] = ()
    guard: LossGuard
    evaluations: tuple[EvalResult, ...] = ()
    best: BestSoFar | None = None
    stopped_early: bool = False
    limit_tokens: int | None = None
    filled: int = 0
    room: int = 0

    @property
    def loss(self) -> float:
        """Mean over the target tokens of the last tenth of the steps; NaN where none was taken."""
        weight = sum(loss.weight for loss in self.losses)
        return sum(loss.loss * loss.weight for loss in self.losses) / weight if weight else math.nan

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation, whose weights are published; None where nobody looked for it."""
        return None if self.best is None else self.best.step

    @property
    def fill(self) -> float | None:
        """Share of the micro-batches' room that their tokens took, without padding; None where nothing counted it."""
        return self.filled / self.room if self.room else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a checkpoint says of its run: enough to make the adapter of it. `before` is the evaluation of the base
    model, `identity` as of `lora_trainer.train.identity`. `dataset_revision` and `validation_revision` are the
    commits of data sets on the Hub, `held_out_digest` as in `DatasetIndex`."""

    identity: Mapping[str, str]
    config: TrainConfig
    resolved: ResolvedRun
    dataset: DatasetStats
    held_out: bool
    base_model: str
    base_revision: str
    versions: Mapping[str, str]
    before: Evaluation
    dataset_revision: str | None = None
    validation_revision: str | None = None
    held_out_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a training needs to go on. `best` are the weights of the best evaluation, `starts` those that PiSSA and
    OLoRA took out of the base model."""

    trainer_state: TrainerState
    adapter: Tensors
    best: Tensors | None
    starts: Mapping[str, Start]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """About what its files take."""
        tensors = [*self.adapter.values(), *(self.best or {}).values(), *_start_tensors(self.starts).values()]
        tensors += tensors_of(self.optimizer)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 256 * len(tensors) + 2**16

    def taken_over(self, *, patient: bool) -> "State":
        """For another run that goes on from here: an early stop was not its own, and it has all of its patience left.

        The best evaluation counts for one that is `patient`; without patience the last weights are published.
        """
        before = self.trainer_state.best if patient else None
        best = None if before is None else replace(before, waited=0)
        trainer_state = replace(self.trainer_state, stopped_early=False, best=best)
        return replace(self, trainer_state=trainer_state, best=None if best is None else self.best)

    def published(self) -> "State":
        """With the weights that its run would publish, had it ended here."""
        return replace(self, adapter=self.best or self.adapter)

    def files(self, record: RunRecord) -> dict[str, Write]:
        """The files of its checkpoint."""
        files: dict[str, Write] = {
            RUN_FILE: lambda file: file.write(_json(record)),
            _STATE: lambda file: file.write(_json(self.trainer_state)),
            _ADAPTER: lambda file: file.write(safetensors.torch.save(dict(self.adapter))),
            _STARTS: lambda file: file.write(safetensors.torch.save(_start_tensors(self.starts))),
            _OPTIMIZER: lambda file: write_nested({"optimizer": self.optimizer, "scaler": self.scaler}, file),
        }
        best = self.best
        if best is not None:
            files[_BEST] = lambda file: file.write(safetensors.torch.save(dict(best)))
        return files


def read_record(folder: Path) -> RunRecord:
    """What a checkpoint says of its run. Raises `CheckpointError`."""
    try:
        return codec.decode(RunRecord, json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error


def read_trainer_state(folder: Path) -> TrainerState:
    """Where a checkpoint's training stood. Raises `CheckpointError`."""
    try:
        return codec.decode(TrainerState, json.loads((folder / _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error


def read_state(folder: Path) -> State:
    """The state in a checkpoint whose digests were found right. Raises `CheckpointError`."""
    trainer_state = read_trainer_state(folder)
    try:
        adapter = safetensors.torch.load_file(folder / _ADAPTER)
        best = safetensors.torch.load_file(folder / _BEST) if (folder / _BEST).exists() else None
        rest = read_nested(folder / _OPTIMIZER)
        starts = _starts(safetensors.torch.load_file(folder / _STARTS))
    except Exception as error:  # files of a volume: what the readers raise on foreign ones is not bounded
        raise _unreadable(folder, error) from error
    return State(
        trainer_state=trainer_state,
        adapter=adapter,
        best=best,
        starts=starts,
        optimizer=rest["optimizer"],
        scaler=rest["scaler"],
    )


def read_starts(folder: Path) -> dict[str, Start]:
    """The start values alone that a checkpoint's state has. Raises `CheckpointError`."""
    try:
        return _starts(safetensors.torch.load_file(folder / _STARTS))
    except Exception as error:  # as above
        raise _unreadable(folder, error) from error


def state_on_all(state: State | None, ranks: Ranks, device: torch.device) -> State:
    """The first process's state, on all; the others pass None. What these get is on `device`, where they take it from,
    and has neither the best weights, which the first one keeps for all, nor the start values, which they have."""
    trainer_state: Any = ranks.broadcast_value(None if state is None else state.trainer_state, TrainerState)
    whole = None if state is None else (dict(state.adapter), dict(state.optimizer), dict(state.scaler))
    parts: Any = on_all(whole, ranks, device)
    if state is not None:
        return state
    adapter, optimizer, scaler = parts
    return State(trainer_state=trainer_state, adapter=adapter, best=None, starts={}, optimizer=optimizer, scaler=scaler)


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder.name} cannot be read ({one_sentence(error)[:200]}): remove its folder to continue "
        "from the one before it, or use the trainer image that wrote it"
    )


def _json(value: object) -> bytes:
    return (json.dumps(codec.encode(value), indent=1, sort_keys=True) + "\n").encode()


def _start_tensors(starts: Mapping[str, Start]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, start in starts.items():
        tensors[f"{name}/lora_a"] = start.lora_a.cpu().contiguous()
        tensors[f"{name}/lora_b"] = start.lora_b.cpu().contiguous()
        tensors[f"{name}/scale"] = torch.tensor(start.scale, dtype=torch.float64)
    return tensors


def _starts(tensors: Tensors) -> dict[str, Start]:
    names = {key.rpartition("/")[0] for key in tensors}
    return {
        name: Start(
            lora_a=tensors[f"{name}/lora_a"], lora_b=tensors[f"{name}/lora_b"], scale=float(tensors[f"{name}/scale"])
        )
        for name in sorted(names)
    }


def write_nested(value: Any, file: Any) -> None:
    """Dictionaries, lists and tuples with tensors in them, as a safetensors file: an outline in its metadata says which
    tensor, by number, stands where. One tensor at a time is copied, and nothing in such a file can be executed."""
    tensors = {f"{number:08}": tensor.detach() for number, tensor in enumerate(tensors_of(value))}
    # Readers map the file: the widest numbers first, so that each tensor begins at a multiple of its numbers' size.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    starts = itertools.accumulate((tensors[name].nbytes for name in order), initial=0)
    entries = [
        Entry(
            name=name,
            dtype=_STORED_AS[tensors[name].dtype],
            shape=tuple(tensors[name].shape),
            start=start,
            size_bytes=tensors[name].nbytes,
        )
        for name, start in zip(order, starts, strict=False)
    ]
    file.write(header_of(entries, {_OUTLINE: json.dumps(outline_of(value))}))
    for name in order:
        for piece in pieces_of(tensors[name].cpu().contiguous()):
            file.write(piece.numpy())


def read_nested(path: Path) -> Any:
    """What `write_nested` wrote, its tensors on the CPU."""
    with safetensors.safe_open(path, framework="pt") as stored:
        tensors = (stored.get_tensor(name) for name in sorted(stored.keys()))
        return filled(json.loads(stored.metadata()[_OUTLINE]), lambda _gap: next(tensors))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The parameters' values on the CPU."""
    return {name: parameter.detach().to("cpu", copy=True).contiguous() for name, parameter in parameters.items()}


def put_back(parameters: Mapping[str, nn.Parameter], tensors: Tensors) -> None:
    """Set the parameters to saved values. Raises `CheckpointError` (`ResumeMismatch`) where they do not fit."""
    for name in (*parameters, *tensors):
        ours = tuple(parameters[name].shape) if name in parameters else None
        saved = tuple(tensors[name].shape) if name in tensors else None
        if ours != saved:
            raise CheckpointError(
                f"the checkpoint's {name} has the shape {saved}, this run's has {ours}: lora.rank and the target "
                "modules must be those of the run that wrote it",
                Reason.RESUME_MISMATCH,
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def are_finite(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether all values are numbers."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in parameters.values())


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make all random numbers of a step a function of the run's seed, the step and the process."""
    low, high = np.random.SeedSequence((seed, step, rank)).generate_state(2)
    torch.manual_seed(int(high) << 31 | int(low) >> 1)
