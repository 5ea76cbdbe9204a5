"""What would make a run fit its GPU: the cheapest changes first, each with the memory that it leads to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from lora_trainer.contract.config import (
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
from lora_trainer.contract.gpus import Gpu, least_memory, slice_of
from lora_trainer.contract.manifest import checkpoint_claim
from lora_trainer.contract.resource import PRODUCT_LABEL
from lora_trainer.plan.adapter import Adapter, AdapterError, plan_adapter
from lora_trainer.plan.choice import Fit, Load, Option, choose
from lora_trainer.plan.shapes import Shape

MOST = 3
_MOST_AT_ONCE = 3
"""Changes that are named together."""
_GIB = 2**30
LABELS = "where nodes have the labels of GPU feature discovery"
"""What fields that choose a GPU need: without, pods wait forever."""
_LEAST_LENGTH, _LEAST_RANK = 256, 4
_GPUS = (2, 4, 8)
"""Of a node."""
_SIZES = (12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""GiB that GPUs are sold with."""

_Picked = dict[int, int]
"""Of each kind of change that is made, by its number, the number of the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A run on a GPU, of rows that are `load`. `adapter` is None where the model cannot have it."""

    config: TrainConfig
    shape: Shape
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
    """One change, as a sentence has it. `labels` says that nodes need labels for it, `counts` that it says how many
    GPUs there are, which no other change of several may, too."""

    text: str
    made: Callable[[_Case], _Case]
    labels: bool = False
    counts: bool = False


_Kinds = Sequence[Sequence[_Change]]
"""Kinds of changes, and the ways of each."""


def remedies(config: TrainConfig, shape: Shape, adapter: Adapter, gpu: Gpu, load: Load) -> str:
    """At most `MOST` changes, each of which makes the run fit, as the end of a sentence: single ones, and where these
    are too few, several at once; the cheapest first."""
    case = _Case(config=config, shape=shape, adapter=adapter, gpu=gpu, load=load)
    kinds = list(_kinds(case))
    found = _enough(case, kinds)
    if not found and slice_of(gpu.name) is None:
        # Many nodes where one GPU that is larger would do are the dearest of all.
        kinds.append(tuple(_nodes(config)))
        found = _enough(case, kinds)
    if not found:
        tried = f"none of the changes that are tried here makes it fit, not even {_MOST_AT_ONCE} at once"
        return f"{tried}: take a smaller model"
    # By the costliest change of each: so those that need labels are among the last.
    found.sort(key=lambda picked: (max(picked), len(picked), sorted(picked)))
    texts = list(_texts(case, kinds, found))
    needed = f", {LABELS}" if any(kinds[kind][way].labels for picked in found for kind, way in picked.items()) else ""
    return f"it would fit with {' or '.join(texts)}{needed}{'' if len(found) == MOST else '; nothing else was found'}"


def _enough(case: _Case, kinds: _Kinds) -> list[_Picked]:
    found = _single(case, kinds)
    return found if len(found) == MOST else [*found, *_together(case, kinds, found)][:MOST]


def _texts(case: _Case, kinds: _Kinds, found: Iterable[_Picked]) -> Iterator[str]:
    """Each with what the run takes then."""
    for picked in found:
        option = _with(case, kinds, picked).option()
        names = " and ".join(kinds[kind][way].text for kind, way in picked.items())
        if option is not None:
            yield f"{names} ({option.peak_bytes / _GIB:.1f} GiB)"


def _with(case: _Case, kinds: _Kinds, picked: _Picked) -> _Case:
    for kind, way in picked.items():
        case = kinds[kind][way].made(case)
    return case


def _single(case: _Case, kinds: _Kinds) -> list[_Picked]:
    """Of each kind the smallest change that is enough alone."""
    found: list[_Picked] = []
    for kind, ways in enumerate(kinds):
        enough = next((way for way, change in enumerate(ways) if change.made(case).fits()), None)
        found += [] if enough is None else [{kind: enough}]
        if len(found) == MOST:
            break
    return found


def _together(case: _Case, kinds: _Kinds, single: Sequence[_Picked]) -> Iterator[_Picked]:
    """Changes that are enough only with each other, few at once before many, and the cheapest of as many first."""
    alone = {kind: way for picked in single for kind, way in picked.items()}
    # Of a kind that is enough alone, what is less than that.
    last = {kind: alone.get(kind, len(ways)) - 1 for kind, ways in enumerate(kinds)}
    last = {kind: way for kind, way in last.items() if way >= 0}
    if not last or not _with(case, kinds, last).fits():
        return
    found = list(single)
    for count in range(2, _MOST_AT_ONCE + 1):
        for chosen in sorted(combinations(last, count), key=lambda one: one[::-1]):
            picked = {kind: last[kind] for kind in chosen}
            if (
                sum(kinds[kind][way].counts for kind, way in picked.items()) > 1
                or not _with(case, kinds, picked).fits()
            ):
                continue
            picked = _smaller(case, kinds, picked)
            if not any(_is_within(one, picked) for one in found):
                found.append(picked)
                yield picked
                if len(found) == MOST:
                    return


def _smaller(case: _Case, kinds: _Kinds, picked: _Picked) -> _Picked:
    """Each change no larger than the others need."""
    for kind in picked:
        ways = ({**picked, kind: way} for way in range(picked[kind]))
        picked = next((less for less in ways if _with(case, kinds, less).fits()), picked)
    return picked


def _is_within(less: Mapping[int, int], more: Mapping[int, int]) -> bool:
    """Whether some changes are a part of others, which are not needed then."""
    return all(more.get(kind, -1) >= way for kind, way in less.items())


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
    for gpus in _GPUS:
        if config.device.gpus < gpus and gpus * config.device.nodes <= config.training.effective_batch_size:
            yield replace(_of(f"resources.gpus: {gpus}", "device", gpus=gpus), counts=True)


def _nodes(config: TrainConfig) -> Iterator[_Change]:
    """With as many GPUs as a node has at most, or a step has rows for; where a claim holds the checkpoints, which
    several nodes need."""
    device, rows, most = config.device, config.training.effective_batch_size, config.device.processes
    for nodes in (2, 4) if checkpoint_claim(config) is not None else ():
        gpus = max((count for count in _GPUS if count * nodes <= rows), default=1)
        if device.nodes < nodes and device.gpus <= gpus and gpus * nodes > max(most, _GPUS[-1]):
            most = gpus * nodes
            text = f"resources.gpus: {gpus} and " if gpus > device.gpus else ""
            change = _of(f"{text}resources.nodes: {nodes}", "device", gpus=gpus, nodes=nodes)
            yield replace(change, counts=True)


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
