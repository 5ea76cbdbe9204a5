"""What a run would take, without a GPU, a cluster or PyTorch: all of a plan that is shown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.plan.adapter import Adapter, AdapterError, doubtful, plan_adapter
from lora_trainer.plan.architecture import GUESSED, ModelArchitecture, UncountedError
from lora_trainer.plan.choice import expert_copies, presumed
from lora_trainer.plan.families import counted, described, positions_of
from lora_trainer.plan.hints import Spoken, before, spoken
from lora_trainer.plan.planning import OnGpu, Row, on_gpu, plan_by_weights, plan_of, rows
from lora_trainer.spec.config import ActivationCheckpointing, Quantization, TrainConfig
from lora_trainer.spec.gpus import Gpu, gib, slice_of
from lora_trainer.spec.run_plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says besides the manifest. `tokens` is the size of the data set, None where not known;
    without `gpus` all known ones are shown."""

    config_file: Path | None = None
    gpus: tuple[str, ...] = ()
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer. Sizes are bytes; `quantization` and `recompute` are as the manifest has them, `preflight` what the
    plan before the training would say, by what is known here: of the device that the manifest names, or the one that
    was asked about. `trained_tokens` are those of all epochs, `spread` is by how much the memory may be off for what
    `doubts` name; `advice` is what can be said without data."""

    run: str
    model: str
    family: str
    parameters: int
    trainable_parameters: int
    adapted_modules: int
    adapter_bytes: int
    rank: int
    quantization: Quantization
    recompute: ActivationCheckpointing
    micro_batch_tokens: int
    longest_row: int
    learned_share: float
    pod_memory_bytes: int
    preflight: RunPlan
    trained_tokens: int | None
    rows: tuple[Row, ...]
    gpus: tuple[OnGpu, ...]
    spread: float
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    advice: tuple[Spoken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanByWeights:
    """The answer for a model whose layers are not known here, in the words of `Plan`: of its weights alone.
    `parameters` and `preflight` are None where no file of weights was named either."""

    run: str
    model: str
    family: str
    parameters: int | None = None
    preflight: RunPlan | None = None
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    advice: tuple[Spoken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model as far as it was looked at: its configuration, read from a file of this `name`, and how many numbers
    its files hold, 0 where only the configuration was named."""

    document: Mapping[str, Any]
    name: str
    stored: int = 0

    @property
    def shape(self) -> ModelArchitecture:
        """Its shape. Raises `ArchitectureError`."""
        return counted(described(self.document, self.name), self.stored)


def answer(config: TrainConfig, model: Model, asked: Asked, gpus: tuple[Gpu, ...]) -> Plan | PlanByWeights:
    """What a run of this model takes on each of these. Raises `ArchitectureError` and `AdapterError`."""
    try:
        shape = model.shape
    except UncountedError as error:
        return _by_weights(config, model, asked, gpus, error)
    try:
        adapter = plan_adapter(config.lora, shape)
    except AdapterError as error:
        if shape.spread >= GUESSED:
            return _by_weights(config, model, asked, gpus, error)
        raise
    return _by_layers(config, model, doubtful(shape, adapter), adapter, asked=asked, gpus=gpus)


def _by_weights(
    config: TrainConfig, model: Model, asked: Asked, gpus: tuple[Gpu, ...], error: ValueError
) -> PlanByWeights:
    """As preflight makes it; a guess is no reason to refuse."""
    only = gpus[0] if len(asked.gpus) == 1 else None
    planned = plan_by_weights(config, model.stored, gpu=only) if model.stored else None
    notes = [*_on_length(config, model)]
    if planned is None:
        notes.append("a config.json alone does not have the weights: without --config those of model.uri are counted")
    else:
        notes += _on_memory(config, planned)
    return PlanByWeights(
        run=config.run.name,
        model=config.model.uri,
        family=str(model.document.get("model_type")),
        parameters=model.stored or None,
        preflight=planned,
        doubts=(_unknown(error),),
        notes=tuple(notes),
        advice=spoken(before(config)),
    )


def _unknown(error: ValueError) -> str:
    """What is not known, and why; an adapter is refused by names and numbers that are guessed alone."""
    unknown, why = "the layers of the model are not known here", str(error).partition(";")[0]
    if not isinstance(error, AdapterError):
        return f"{unknown}: {why}"
    field = why.partition(" ")[0]
    fits = "names its modules" if field == "lora.targetModules" else "goes with them"
    return f"{unknown}, nor whether {field} {fits}: by a guess, {why}"


def _by_layers(
    config: TrainConfig,
    model: Model,
    shape: ModelArchitecture,
    adapter: Adapter,
    *,
    asked: Asked,
    gpus: tuple[Gpu, ...],
) -> Plan:
    wanted = (Quantization.NONE, Quantization.NF4, config.quantization)
    shown = tuple(kind for kind in dict.fromkeys(wanted) if kind is not Quantization.AUTO)
    setting = presumed(config, shape)
    only = gpus[0] if len(asked.gpus) == 1 else None
    planned = plan_of(config, shape, adapter, tokens=asked.tokens, gpu=only)
    on_gpus = tuple(on_gpu(config, shape, adapter, gpu, shown) for gpu in gpus)
    return Plan(
        run=config.run.name,
        model=config.model.uri,
        family=shape.family,
        parameters=shape.parameters,
        trainable_parameters=adapter.parameters,
        adapted_modules=adapter.modules,
        adapter_bytes=adapter.file_bytes,
        rank=config.lora.rank,
        quantization=config.quantization,
        recompute=config.training.activation_checkpointing,
        micro_batch_tokens=setting.tokens,
        longest_row=setting.row,
        learned_share=setting.target_share,
        pod_memory_bytes=planned.pod_memory_bytes,
        preflight=planned,
        trained_tokens=_trained(config, asked.tokens),
        rows=rows(config, shape, adapter, shown),
        gpus=on_gpus,
        spread=shape.spread,
        doubts=shape.doubts,
        notes=(
            *_on_length(config, model),
            *_notes(config, asked, planned),
            *_on_copies(config, shape, planned, on_gpus),
        ),
        advice=spoken(before(config, None, planned, shape)),
    )


def _trained(config: TrainConfig, tokens: int | None) -> int | None:
    """Tokens of all epochs; a run of so many steps is not known in tokens."""
    epochs = config.training.epochs
    return None if tokens is None or epochs is None else round(tokens * epochs)


def _on_copies(
    config: TrainConfig, shape: ModelArchitecture, planned: RunPlan, gpus: Iterable[OnGpu]
) -> tuple[str, ...]:
    """That main memory is without the experts' copies, where it is not known whether the base is divided."""
    copies = expert_copies(config, shape)
    if planned.device is not None or not copies or not any(gpu.default.divided for gpu in gpus):
        return ()
    more = f"{gib(copies)} of main memory more for a copy of the experts"
    return (f"a base that is divided over GPUs takes {more}; --gpu, or the GPU in resources, shows whether it is",)


def _on_length(config: TrainConfig, model: Model) -> tuple[str, ...]:
    """That rows, whose lengths are not known here, may be longer than the model has positions."""
    positions = positions_of(model.document)
    warning = positions.warning(config.training.max_sequence_length) if positions else ""
    return (warning,) if warning else ()


def _on_memory(config: TrainConfig, planned: RunPlan) -> tuple[str, ...]:
    given = config.device.pod_memory_bytes
    if given is None or given >= planned.pod_memory_bytes:
        return ()
    return (f"resources.memory gives {gib(given)}, less than that; preflight asks again with the data's own rows",)


def _notes(config: TrainConfig, asked: Asked, planned: RunPlan) -> tuple[str, ...]:
    notes = [*_on_memory(config, planned)]
    if planned.device is None and config.device.gpu is not None:
        notes.append(planned.reason)
    if config.device.gpus == 0:
        notes.append("resources.gpus is 0: the run trains on the CPU, and the GPUs above are for comparison")
    if config.device.gpus > 1 and slice_of(config.device.gpu or "") is not None:
        notes.append(
            f"resources.gpus is {config.device.gpus}, slices of a GPU: a run may have one, since NCCL refuses two of "
            "the same GPU; name a larger slice or whole GPUs"
        )
    if asked.tokens is not None and config.training.epochs is None:
        notes.append("--tokens is not used: training.maxSteps sets the length of the run, whatever the data set's size")
    return tuple(notes)
