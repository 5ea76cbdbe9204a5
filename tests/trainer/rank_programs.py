"""What tests run in several processes at once."""

import contextlib
import dataclasses
import hashlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from peft.tuners.lora.layer import LoraLayer
from tests.trainer.conftest import make_config
from tests.trainer.trainings import record_of
from torch.distributed.tensor import DTensor

from lora_trainer.data.formats import PlainText
from lora_trainer.data.store import Examples
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.group import join
from lora_trainer.errors import TerminatedError
from lora_trainer.model.convert import Start
from lora_trainer.model.device import Device, same_type
from lora_trainer.model.fast import ADAPTER, isolate, usable
from lora_trainer.model.load_throttle import throttled
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.model.lora_kernel import fuse
from lora_trainer.model.recompute import recompute_activations, recompute_mlps
from lora_trainer.model.sharding import mesh_over, shard, stream
from lora_trainer.result.verify import verify
from lora_trainer.spec.config import (
    CheckpointConfig,
    LoraConfig,
    LossOn,
    Quantization,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.storage.base import Base, open_folder
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.callbacks import Step, TrainerCallback
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.checkpoint_policy import CheckpointPolicy
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.evaluator import Evaluator
from lora_trainer.train.guards import LossGuard
from lora_trainer.train.loop import Training
from lora_trainer.train.resolve_auto import RunSetup
from lora_trainer.train.self_check import checked
from lora_trainer.train.session import Session
from lora_trainer.train.state import State, TrainerState, state_on_all
from lora_trainer.train.stopping import Stop

CPU = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)
WAIT_S = 300.0


def timeouts(timeout_s: float, over: int) -> list[float]:
    """How long the collectives of a divided base's layers wait at most, by the groups of its mesh."""
    with join(CPU.torch_device, timeout_s) as ranks:
        groups = mesh_over(CPU, ranks, over).get_all_groups()
        return [group._get_backend(CPU.torch_device).options._timeout.total_seconds() for group in groups]


def every_collective() -> dict[str, Any]:
    """Every collective once; gradients that all, one and none of the processes have."""
    with join(CPU.torch_device, WAIT_S) as ranks:
        everywhere, somewhere, nowhere = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
        everywhere.grad = torch.full((2, 3), float(ranks.rank + 1))
        if ranks.rank == 1:
            somewhere.grad = torch.full((2, 3), 5.0)
        ranks.sum_gradients([everywhere, somewhere, nowhere])
        return {
            "place": (ranks.rank, ranks.world, ranks.local_rank, ranks.is_main),
            "sum": ranks.sum(ranks.rank + 0.5),
            "any": (ranks.any(ranks.rank == 1), ranks.any(False)),
            "broadcast": ranks.broadcast(torch.full((2,), ranks.rank + 7)).tolist(),
            "value": ranks.broadcast_value(TrainerState(step=ranks.rank, guard=LossGuard()), TrainerState).step,
            "gather": ranks.gather(f"rank {ranks.rank}" * (1 + ranks.rank), str),
            "rounds": ranks.rounds(ranks.rank + 2),
            "gradients": [None if p.grad is None else p.grad.tolist() for p in (everywhere, somewhere, nowhere)],
        }


class _Code:
    """As a pickle it makes a file where it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def receive_a_pickle(file: Path, how: str) -> None:
    """Process 0 sends pickles by the collectives of PyTorch, as whatever joined in place of a process may do; process 1
    takes it for one of its own."""
    with join(CPU.torch_device, WAIT_S) as ranks:
        if ranks.is_main and how == "gather":
            received: list[Any] = [None, None]
            with mock.patch.object(dist.distributed_c10d, "_tensor_to_object"):  # its own is not to be read
                dist.all_gather_object(received, _Code(file))
        elif ranks.is_main:
            dist.broadcast_object_list([_Code(file)], src=0)
        elif how == "gather":
            ranks.gather("", str)
        else:
            ranks.broadcast_value("", str)


def lose_a_process(how: str) -> str:
    """Rank 1 ends in the middle, by a signal or by an error of its own; the others wait for it in a collective."""
    with join(CPU.torch_device, WAIT_S) as ranks:
        ranks.barrier()
        if ranks.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("its own fault")
        ranks.sum(1.0)
    return "unreachable"


def agree_on_a_type(own: tuple[Device, ...]) -> Device:
    """What this process computes on, where each has one of these devices."""
    with join(CPU.torch_device, WAIT_S) as ranks:
        return same_type(own[ranks.rank], ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training of the tiny model.

    With `resume_at` it is stopped after that step and goes on from its state; with `state` from the state in that file,
    or, where there is none, it writes it there after that step. At `short_of_memory_at`, process 1 lacks memory once.
    `evaluated` are the losses that evaluations after each step find.
    """

    folder: Path
    config: TrainingConfig
    micro: int = 64
    packed: bool = False
    sharded_over: int | None = None
    quantization: Quantization = Quantization.NONE
    resume_at: int | None = None
    state: Path | None = None
    short_of_memory_at: int | None = None
    recompute: bool = False
    selective: bool = False
    may_recompute: bool = False
    fused: bool = False
    scaled: bool = False
    evaluated: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one process saw: losses, gradient norms and rows of the steps, the loss afterwards, the adapter, how many of
    the layers' frozen weights it holds, and in the end how many tokens a micro-batch may have, and whether activations
    are recomputed."""

    losses: list[float]
    norms: list[float]
    rows: list[int]
    after: float
    adapter: dict[str, list[float]]
    layer_weights: int
    limit_tokens: int
    recomputes: bool


class Taken(TrainerCallback):
    """Keeps the steps; as process 0, asks for an end after the step `until`."""

    def __init__(self, until: int | None = None) -> None:
        self.steps: list[Step] = []
        self.stop = Stop()
        self.until = until

    def stepped(self, step: Step) -> None:
        """Keep it."""
        self.steps.append(step)
        self.stop.requested = step.number == self.until


def train(plan: Plan) -> Outcome:
    """Train in as many processes as there are; the steps are those that process 0 reports."""
    torch.set_num_threads(1)
    with join(CPU.torch_device, WAIT_S) as ranks:
        base = open_folder(plan.folder)
        encoder = load_encoder(base, LossOn.COMPLETION, 256)
        rows = Examples.of(
            encoder.encode(PlainText(where=f"{i}", text=f"Ahoy {i}! " + "Fair winds. " * (i % 4))) for i in range(12)
        )
        taken = Taken(plan.resume_at)
        training = _training(plan, base, rows, ranks, taken)
        if plan.short_of_memory_at is not None and ranks.rank == 1:
            _lack_memory(training, plan.short_of_memory_at)
        if plan.resume_at is not None:
            state = _state_after_a_stop(training, plan.state)
            taken.stop = Stop()
            training = _training(plan, base, rows, ranks, taken)
            training.restore(state_on_all(state, ranks, CPU.torch_device))
        training.run()
        model = training.adapted.model
        after = evaluate(
            model, training.adapted.head, rows, CPU, lambda rows: None, limit=training.limit, ranks=training.ranks
        )
        return Outcome(
            losses=[step.loss for step in taken.steps],
            norms=[step.gradient_norm for step in taken.steps],
            rows=[step.rows for step in taken.steps],
            after=after.loss,
            adapter={name: p.detach().flatten().tolist() for name, p in training.parameters.items()},
            limit_tokens=training.limit.tokens,
            recomputes=bool(model.get_base_model().model.gradient_checkpointing),
            layer_weights=sum(
                _own(parameter).numel()
                for name, parameter in model.named_parameters()
                if ".layers." in name and not parameter.requires_grad
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """How a process ended that was stopped in an evaluation: its last sentence and exit code, batches that it evaluated
    until then, and the losses of the rows where nobody stops, heard and unheard."""

    sentence: str
    code: int
    batches: int
    losses: tuple[float, float]


def stop_in_an_evaluation(plan: Plan, folder: Path) -> Stopped:
    """Process 1 gets SIGTERM while it evaluates its second batch, after the second step; process 0 has a single row."""
    torch.set_num_threads(1)
    with join(CPU.torch_device, WAIT_S) as ranks:
        base = open_folder(plan.folder)
        encoder = load_encoder(base, LossOn.COMPLETION, 256)
        words = ["Fair winds. " * 12, *["Ahoy!"] * 9]
        rows = Examples.of(encoder.encode(PlainText(where=f"{i}", text=text)) for i, text in enumerate(words))
        taken, batches = Taken(), [0]
        signal.signal(signal.SIGTERM, taken.stop.handle)
        training = _training(plan, base, rows, ranks, taken)

        def alive() -> None:
            batches[0] += 1
            if ranks.rank == 1 and taken.steps and batches[0] == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        evaluator = Evaluator(
            adapted=training.adapted,
            data=SimpleNamespace(evaluation=rows, held_out=True),  # type: ignore[arg-type]
            objective=training.objective,
            limit=MicroBatchLimit(tokens=1, longest=int(rows.lengths.max())),
            device=CPU,
            ranks=training.ranks,
            alive=alive,
            stop=taken.stop,
        )
        losses = evaluator.on_the_way().loss, evaluator(trained=False).loss
        batches[0] = 0
        training.evaluate = evaluator.on_the_way
        training.checkpoint_policy = CheckpointPolicy(
            checkpoints=Checkpoints(folder, keep=1),
            config=CheckpointConfig(interval_s=3600, interval_steps=None, keep=1),
            record=record_of(make_config()),
        )
        try:
            training.run()
        except TerminatedError as error:
            return Stopped(sentence=str(error), code=int(error.code), batches=batches[0], losses=losses)
        raise AssertionError("nobody heard")


def check_on_a_divided_base(folder: Path, *, wrong: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is taken and what is left out, where the fused adapter of process 1 alone is `wrong`."""
    torch.set_num_threads(1)
    with join(CPU.torch_device, 60.0) as group:
        base = open_folder(folder)
        adapted = adapt(load_model(base, Quantization.NONE, CPU), LoraConfig(rank=4, alpha=8), base, CPU, 3)
        shard(adapted.model, CPU, mesh_over(CPU, group, 2))
        ranks = dataclasses.replace(group, fsdp=True)
        encoder = load_encoder(base, LossOn.COMPLETION, 256)
        words = "Fair winds. " * 5
        rows = Examples.of(encoder.encode(PlainText(where=f"{i}", text=f"Ahoy {i}! {words}")) for i in range(4))
        packed = isolate(adapted.model)

        def install(module: Any) -> None:
            ADAPTER.install(module)
            right = module.forward
            vars(module)["forward"] = lambda x: 1.1 * right(x)

        entries = list(usable(adapted.model, CPU, packed=packed))
        if wrong and ranks.rank == 1:
            entries[0] = dataclasses.replace(ADAPTER, install=install)
        limit = MicroBatchLimit(tokens=256, longest=128, packed=packed)
        found = checked(adapted, entries, rows, limit, CPU, ranks=ranks)
        return found.names, found.left_out


def start_from_directions(folder: Path, config: TrainConfig) -> tuple[str, dict[str, str]]:
    """Digests of the whole model before its training, and of the start values of each module; process 1 computes with
    other numbers."""
    with join(CPU.torch_device, WAIT_S) as ranks, contextlib.ExitStack() as stack:
        if ranks.rank == 1:
            for init in ("pissa_init", "olora_init"):
                stack.enter_context(mock.patch.object(LoraLayer, init, _of_other_weights(getattr(LoraLayer, init))))
        setup = RunSetup(config=config, plan=None)
        nothing: Any = None
        session = Session.open(setup, open_folder(folder), nothing, CPU, ranks)
        with session.adapted(setup) as adapted:
            starts = {name: _digest([start.lora_a, start.lora_b]) for name, start in adapted.starts.items()}
            return _digest(adapted.model.parameters()), starts


def _of_other_weights(take: Callable[..., None]) -> Callable[..., None]:
    def found(layer: Any, *arguments: Any) -> None:
        layer.get_base_layer().weight.data *= 1.001
        take(layer, *arguments)

    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a process has of a state that the first one read: all of it as text, how many best weights and start values,
    and by how many bytes its resident set grew at most."""

    text: str
    others: int
    grown: int


def hand_out_state(tensors: int, values: int) -> Given:
    """Give all processes a state with so many large tensors of so many values, and some of all other kinds."""
    torch.set_num_threads(1)
    with join(CPU.torch_device, WAIT_S) as ranks:
        state = _some_state(tensors, values) if ranks.is_main else None
        ranks.barrier()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = _resident("VmRSS")
        found = state_on_all(state, ranks, CPU.torch_device)
        grown = _resident("VmHWM") - before
    text = _text([found.trainer_state, found.adapter, found.optimizer, found.scaler])
    others = len(found.best or {}) + len(found.starts)
    return Given(text=text, others=others, grown=grown)


def _some_state(tensors: int, values: int) -> State:
    random = torch.Generator().manual_seed(0)
    large = {f"large.{number}": torch.randn(values, generator=random) for number in range(tensors)}
    first = {"step": torch.tensor(3.0), "state1": torch.arange(6, dtype=torch.uint8).view(2, 3), "none": None}
    second = {"step": 3, "absmax1": torch.randn(4, 2, generator=random).T, "qmap1": torch.ones(3, dtype=torch.bfloat16)}
    groups = [{"lr": 0.5, "betas": (0.9, 0.999), "params": [0, 1]}]
    return State(
        trainer_state=TrainerState(step=3, guard=LossGuard()),
        adapter={**large, "empty": torch.empty(0, 4)},
        best=dict(large),
        starts={"one": Start(lora_a=torch.ones(2, 2), lora_b=torch.ones(2, 2), scale=2.0)},
        optimizer={"state": {0: first, 1: second}, "param_groups": groups},
        scaler={"scale": 64.0},
    )


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        data = value.contiguous().view(-1).view(torch.uint8) if value.numel() else value
        return f"{value.device} {value.dtype} {tuple(value.shape)} {_digest([data])}"
    if isinstance(value, dict):
        return str({key: _text(inner) for key, inner in value.items()})
    return str([_text(inner) for inner in value]) if isinstance(value, list | tuple) else repr(value)


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def verify_adapter(folder: Path, claims: Path) -> float:
    """The loss that the verification finds."""
    torch.set_num_threads(1)
    return verify(folder, Volumes(claims=claims, config_maps=claims), Hub()).loss


def verify_streamed(folder: Path, claims: Path, *, copies: bool) -> tuple[float, int]:
    """The loss that the verification finds where all GPUs together hold nothing, and how many models were streamed
    here; with `copies` main memory has room for one that is converted."""
    torch.set_num_threads(1)
    streamed: list[Device] = []

    def note(model: Any, device: Device) -> None:
        streamed.append(device)
        stream(model, device)

    def readers(_folder: Path, _dtype: torch.dtype, ranks: Ranks) -> int:
        return 1 if copies else ranks.local_world

    changed: dict[str, Any] = {"device_bytes": lambda _device: 2**10, "stream": note, "readers": readers}
    with mock.patch.multiple("lora_trainer.result.verify", **changed):
        return verify(folder, Volumes(claims=claims, config_maps=claims), Hub()).loss, len(streamed)


def packed_weights_of_a_divided_base(folder: Path) -> list[tuple[str, bool]]:
    """Of each adapted module when it computes: what its weight is, and whether that has its scales beside it."""
    torch.set_num_threads(1)
    with join(CPU.torch_device, WAIT_S) as ranks:
        base = open_folder(folder)
        loaded = load_model(base, Quantization.NF4, CPU, packs_later=True)
        model = adapt(loaded, LoraConfig(rank=4, alpha=8), base, CPU, 3).model
        shard(model, CPU, mesh_over(CPU, ranks, ranks.world))
        found: list[tuple[str, bool]] = []

        def look(module: Any, *_: object) -> None:
            weight = module.get_base_layer().weight
            found.append((type(weight).__name__, hasattr(weight, "quant_state")))

        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.register_forward_pre_hook(look)
        for _ in range(2):
            model(torch.arange(8)[None])
        return found


def _state_after_a_stop(training: Training, file: Path | None) -> Any:
    """The state of a training that was stopped, in process 0 alone."""
    if file is None or not file.exists():
        with contextlib.suppress(TerminatedError):
            training.run()
        if file is not None and training.ranks.is_main:
            torch.save(training.state(), file)
        return training.state() if training.ranks.is_main else None
    return torch.load(file, weights_only=False) if training.ranks.is_main else None


def _lack_memory(training: Training, step: int) -> None:
    """Let the first micro-batch of a step raise what PyTorch raises."""
    raised: list[int] = []

    def look(*_: object) -> None:
        if training.trainer_state.step == step - 1 and not raised:
            raised.append(step)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    training.adapted.model.register_forward_pre_hook(look)


def _training(plan: Plan, base: Base, rows: Examples, ranks: Ranks, taken: Taken) -> Training:
    lora = LoraConfig(rank=4, alpha=8)
    mesh = None if plan.sharded_over is None else mesh_over(CPU, ranks, plan.sharded_over)
    with throttled(ranks, ranks.local_world if mesh is None else 1):
        adapted = adapt(load_model(base, plan.quantization, CPU, packs_later=mesh is not None), lora, base, CPU, 3)
        if plan.recompute:
            recompute_activations(adapted.model)
        elif plan.selective:
            recompute_mlps(adapted.model)
        if mesh is not None:
            shard(adapted.model, CPU, mesh)
            ranks = dataclasses.replace(ranks, fsdp=True)
    adapted = dataclasses.replace(adapted, may_recompute=plan.may_recompute)
    if plan.fused:
        fuse(adapted.model)
    training = Training(
        adapted=adapted,
        examples=rows,
        config=plan.config,
        limit=MicroBatchLimit.of(plan.micro, int(rows.lengths.max()), packed=plan.packed),
        device=CPU,
        ranks=ranks,
        callback=taken,
        stop=taken.stop,
    )
    if plan.evaluated:
        training.evaluate = lambda: Evaluation(sums=(plan.evaluated[training.trainer_state.step - 1],), tokens=(1,))
    if plan.scaled:
        training.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    return training


def _own(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
