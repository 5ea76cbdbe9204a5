"""What would make a run fit its GPU: the cheapest changes first, each with the memory that it leads to."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

from lora_trainer.plan.adapter import Adapter, AdapterError, plan_adapter
from lora_trainer.plan.architecture import ModelArchitecture
from lora_trainer.plan.choice import Fit, Load, Option, choose
from lora_trainer.spec.config import (
    ActivationCheckpointing,
    DeviceConfig,
    Init,
    Merge,
    MergePrecision,
    Optimizer,
    Precision,
    Quantization,
    TrainConfig,
    Variant,
)
from lora_trainer.spec.gpus import Gpu, least_memory, slice_of
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.resource import PRODUCT_LABEL

MOST = 3
_GIB = 2**30
LABELS = "where nodes have the labels of GPU feature discovery"
"""What fields that choose a GPU need: without, pods wait forever."""
_LEAST_LENGTH, _LEAST_RANK = 256, 4
_GPUS = (2, 4, 8)
"""Of a node."""
_SIZES = (12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""GiB that GPUs are sold with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A run on a GPU, of rows that are `load`. `adapter` is None where the model cannot have it."""

    config: TrainConfig
    shape: ModelArchitecture
    adapter: Adapter | None
    gpu: Gpu
    load: Load

    def option(self) -> Option | None:
        """How it computes; None where it does not fit."""
        if self.adapter is None:
            return None
        option = choose(self.config, self.shape, self.adapter, self.gpu, load=self.load).option
        return option if option.fit is Fit.FITS else None

    def fits(self) -> bool:
        """Whether it does with what takes least of all that is left open: a row at a time, recomputed."""
        training = self.config.training
        if training.activation_checkpointing is ActivationCheckpointing.AUTO:
            training = replace(training, activation_checkpointing=ActivationCheckpointing.FULL)
        config = replace(self.config, training=training)
        return replace(self, config=config, load=replace(self.load, tokens=1)).option() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """One change, as a sentence has it. `labels` says that nodes need labels for it."""

    text: str
    made: Callable[[_Case], _Case]
    labels: bool = False


def remedies(config: TrainConfig, shape: ModelArchitecture, adapter: Adapter, gpu: Gpu, load: Load) -> str:
    """Changes that make the run fit, as the end of a sentence: at most `MOST`, each of which is enough, the cheapest
    first; where none is, as few together as are."""
    case = _Case(config=config, shape=shape, adapter=adapter, gpu=gpu, load=load)
    kinds = [tuple(ways) for ways in _kinds(case)]
    single = (next((way for way in ways if _fits(case, (way,))), None) for ways in kinds)
    found: list[tuple[_Change, ...]] = [(way,) for way in islice(filter(None, single), MOST)]
    found = found or [_together(case, kinds)]
    if not any(found):
        return "none of the changes that are tried here makes it fit: take a smaller model"
    needed = f", {LABELS}" if any(change.labels for changes in found for change in changes) else ""
    return f"it would fit with {' or '.join(_said(case, changes) for changes in found)}{needed}"


def _together(case: _Case, kinds: Sequence[Sequence[_Change]]) -> tuple[_Change, ...]:
    """Of each kind the smallest change, or none, that the others need, the dearest given up first; empty where the
    largest of all are not enough."""
    made = {kind: ways[-1:] for kind, ways in enumerate(kinds)}
    if not _fits(case, chain(*made.values())):
        return ()
    for kind in reversed(made):
        smaller: Iterable[Sequence[_Change]] = ((), *((way,) for way in kinds[kind]))
        made[kind] = next(less for less in smaller if _fits(case, chain(*{**made, kind: less}.values())))
    return tuple(chain(*made.values()))


def _after(case: _Case, changes: Iterable[_Change]) -> _Case:
    for change in changes:
        case = change.made(case)
    return case


def _fits(case: _Case, changes: Iterable[_Change]) -> bool:
    return _after(case, changes).fits()


def _said(case: _Case, changes: Sequence[_Change]) -> str:
    """With what the run takes then."""
    option = _after(case, changes).option()
    names = " and ".join(change.text for change in changes)
    return names if option is None else f"{names} ({option.peak_bytes / _GIB:.1f} GiB)"


def _kinds(case: _Case) -> Iterator[Sequence[_Change]]:
    """From what costs time alone, over what changes the result little, to what changes it or costs money; of the ways
    of each the smallest change first, so that one of them is named."""
    config = case.config
    training, lora = config.training, config.lora
    if training.activation_checkpointing in {ActivationCheckpointing.NONE, ActivationCheckpointing.SELECTIVE}:
        auto = ActivationCheckpointing.AUTO
        yield (_of("training.activationCheckpointing: Auto", "training", activation_checkpointing=auto),)
    if training.optimizer is Optimizer.ADAMW:
        yield (_of("training.optimizer: AdamW8bit", "training", optimizer=Optimizer.ADAMW_8BIT),)
    if training.precision is Precision.FP32:
        yield (_of("training.precision: Auto", "training", precision=Precision.AUTO),)
    if config.quantization is not Quantization.AUTO:
        yield (_Change(text="quantization: Auto", made=lambda one: _changed(one, quantization=Quantization.AUTO)),)
    if lora.variant is Variant.DORA:
        yield (_of("lora.variant: LoRA", "lora", variant=Variant.LORA),)
    if config.device.processes > 1 and config.output.merge is not Merge.ADAPTER:
        # A base that is divided is not merged.
        alone = config.output.merge_precision is MergePrecision.AUTO
        text = f"output.merge: Adapter{'' if alone else ' without output.mergePrecision'}"
        yield (_of(text, "output", merge=Merge.ADAPTER, merge_precision=MergePrecision.AUTO),)
    if lora.init.changes_base:
        yield (_of("lora.init: Default", "lora", init=Init.DEFAULT),)
    if lora.dropout > 0:
        yield (_of('lora.dropout: "0"', "lora", dropout=0.0),)
    yield tuple(_shorter(config, case.load))
    yield tuple(_lower(config))
    if lora.modules_to_save:
        yield (_of("lora.modulesToSave: []", "lora", modules_to_save=()),)
    if lora.target_parameters:
        yield (_of("lora.targetParameters: []", "lora", target_parameters=()),)
    # NCCL lets one run have one slice of a GPU alone ("Duplicate GPU detected"), and nothing says whose slices it gets.
    yield tuple(_more(config) if slice_of(case.gpu.name) is None else ())
    yield tuple(_larger(case))


def _of(text: str, section: str, **values: Any) -> _Change:
    """Of values in a section of the configuration."""
    return _Change(
        text=text,
        made=lambda case: _changed(case, **{section: replace(getattr(case.config, section), **values)}),
    )


def _changed(case: _Case, **values: Any) -> _Case:
    changed = replace(case, config=replace(case.config, **values))
    if "lora" not in values:
        return changed
    try:
        return replace(changed, adapter=plan_adapter(changed.config.lora, case.shape))
    except AdapterError:
        return replace(changed, adapter=None)


def _shorter(config: TrainConfig, load: Load) -> Iterator[_Change]:
    """None that would cut more than one row in twenty; where only the longest row is known, none that would cut any."""
    known = load.longest if load.p95 is None else load.p95
    least = max(_LEAST_LENGTH, known or 0)
    length = 1 << (config.training.max_sequence_length - 1).bit_length() - 1
    while length >= least:
        yield _of(f"training.maxSequenceLength: {length}", "training", max_sequence_length=length)
        length //= 2


def _lower(config: TrainConfig) -> Iterator[_Change]:
    rank = config.lora.rank // 2
    while rank >= _LEAST_RANK:
        yield _of(f"lora.rank: {rank}", "lora", rank=rank)
        rank //= 2


def _more(config: TrainConfig) -> Iterator[_Change]:
    """Of a node up to as many as one has, then of several nodes, where a claim holds the checkpoints that these need;
    never more than a step has rows for."""
    device, several = config.device, (2, 4) if checkpoint_claim(config) is not None else ()
    for nodes, gpus in (*((device.nodes, gpus) for gpus in _GPUS), *((nodes, _GPUS[-1]) for nodes in several)):
        if device.gpus <= gpus and device.processes < gpus * nodes <= config.training.effective_batch_size:
            named = {"gpus": gpus, "nodes": nodes} if nodes > device.nodes else {"gpus": gpus}
            yield _of(" and ".join(f"resources.{key}: {number}" for key, number in named.items()), "device", **named)


def _larger(case: _Case) -> Iterator[_Change]:
    """Memory that GPUs are sold with."""
    present = case.config.device.gpu
    for size in _SIZES:
        if least_memory(size) > case.gpu.memory_bytes:
            named = present is not None and "/" in present
            labels = not named and not case.config.device.gpu_selected
            yield _Change(text=_wanting(case.config.device, size), made=partial(_on, size), labels=labels)


def _on(size: int, case: _Case) -> _Case:
    return replace(case, gpu=replace(case.gpu, memory_bytes=least_memory(size)))


def _wanting(device: DeviceConfig, size: int) -> str:
    """How to ask for that size, by what named the present GPU: beside a resource's name, or a product that has less,
    gpuMinMemoryGiB would find no node, and beside a selected product nothing would."""
    present = device.gpu
    if device.gpu_selected and not (present and "/" in present):
        return f"{PRODUCT_LABEL} of {size} GiB in scheduling.nodeSelector"
    if present is None or present.endswith(" GiB"):
        return f"resources.gpuMinMemoryGiB: {size}"
    return f"a GPU of {size} GiB" if "/" in present else f"resources.gpuProducts of {size} GiB"
