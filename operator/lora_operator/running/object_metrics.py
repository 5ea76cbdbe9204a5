"""One set of series for each LoRAFineTune, read from the cache at each scrape and gone with the resource."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from lora_operator.decision.advice import CODES, SEVERITIES
from lora_operator.decision.retries import Cause, stored_retries
from lora_operator.decision.spent_time import stored_time
from lora_operator.decision.states import group_of
from lora_operator.views.conditions import Type, result_of, state_of
from lora_operator.views.model import FineTune
from lora_operator.views.names import QUEUE_LABEL
from lora_operator.views.request import read_nodes
from lora_operator.views.wording import block_of, maps_of, parse_instant, text_of

_STATUSES = ("True", "False", "Unknown")
_TYPES = frozenset(kind.value for kind in Type)
_KINDS = {"info": "_info", "counter": "_total", "gauge": ""}

Labels = tuple[tuple[str, str], ...]
Series = tuple[tuple[Labels, float], ...]
Found = Series | float | None
"""A number without a label of its own is kept as it is: as tuples, those of all resources take four times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """A metric: `read` gives a resource's series, with the labels beside its place, or its one number; neither where
    nothing is known."""

    name: str
    help: str
    kind: str = "gauge"
    read: Callable[[FineTune, float], Found]

    @property
    def sample_name(self) -> str:
        """The name of each of its series."""
        return self.name + _KINDS[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """All that the series of one resource say, family by family: far less than the resource itself."""

    place: Labels
    written: str
    found: tuple[Found, ...]


class ObjectFamily(Metric):
    """The series of all resources for one metric. A sample is made when it is written, and none is kept."""

    def __init__(self, family: _Family, number: int, rows: Sequence[_Row]) -> None:
        super().__init__(family.name, family.help, family.kind)
        self._name, self._number, self._rows = family.sample_name, number, rows
        # What reads a family goes through its samples once.
        self.samples = cast("list[Sample]", self._samples())

    def _samples(self) -> Iterator[Sample]:
        for row in self._rows:
            for labels, value in _series(row.found[self._number]):
                yield Sample(self._name, dict((*row.place, *labels)), value)

    def lines(self, *, openmetrics: bool) -> Iterator[str]:
        """The family in the exposition format, a line at a time."""
        name, kind = (self.name, self.type) if openmetrics else (self._name, _plain(self.type))
        yield f"# HELP {name} {self.documentation}\n# TYPE {name} {kind}\n"
        for row in self._rows:
            found = row.found[self._number]
            if found is None:
                continue
            for labels, value in _series(found):
                written = _written((*row.place, *labels)) if labels else row.written
                yield f"{self._name}{{{written}}} {_digits(value)}\n"


class ObjectCollector(Collector):
    """Reads LoRAFineTunes as they are known now, of which a cluster may hold thousands; `clock` is seconds since 1970.

    To keep series few, a condition has one, not one for each status that it could have, and so has the state.
    """

    def __init__(self, finetunes: Iterable[FineTune], clock: Callable[[], float] = time.time) -> None:
        self._finetunes = finetunes
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not read the cache."""
        return _families(())

    def collect(self) -> Iterable[Metric]:
        """The families with the samples of each resource."""
        now_s = self._clock()
        return _families(tuple(_read(finetune, now_s) for finetune in self._finetunes))


def _read(finetune: FineTune, now_s: float) -> _Row:
    place = ("namespace", finetune.namespace), ("name", finetune.name)
    return _Row(
        place=place,
        written=_written(place),
        found=tuple(family.read(finetune, now_s) for family in _FAMILIES),
    )


def _families(rows: Sequence[_Row]) -> Iterator[ObjectFamily]:
    return (ObjectFamily(family, number, rows) for number, family in enumerate(_FAMILIES))


def _series(found: Found) -> Series:
    if found is None:
        return ()
    return (((), found),) if isinstance(found, float) else found


@functools.cache
def _is(*labels: tuple[str, str]) -> tuple[Labels, float]:
    """A series of 1 for labels from lists of ours: one for all resources."""
    return labels, 1.0


def _plain(kind: str) -> str:
    return "gauge" if kind == "info" else kind


def _written(labels: Labels) -> str:
    """In the library's order."""
    return ",".join([f'{key}="{_escaped(value)}"' for key, value in sorted(labels)])


def _digits(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)


def _escaped(value: str) -> str:
    if '"' not in value and "\\" not in value and "\n" not in value:
        return value
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _facts(finetune: FineTune, _: float) -> Series:
    labels = (
        ("base_model", text_of(block_of(finetune.spec, "model").get("uri"))),
        ("quantization", _quantization(finetune)),
        ("queue", _queue(finetune)),
    )
    return ((labels, 1.0),)


def _queue(finetune: FineTune) -> str:
    labels = block_of(block_of(finetune.manifest, "metadata"), "labels")
    kept = block_of(block_of(finetune.status, "resolved"), "pod")
    return text_of(labels.get(QUEUE_LABEL)) or text_of(kept.get("queue"))


def _state(finetune: FineTune, _: float) -> Series:
    group = group_of(finetune.status)
    return () if group is None else (_is(("group", group.value), ("state", state_of(finetune.status))),)


def _conditions(finetune: FineTune, _: float) -> Series:
    listed = maps_of(finetune.status.get("conditions"))
    stated = ((text_of(one.get("type")), text_of(one.get("status"))) for one in listed)
    known = ((kind, status) for kind, status in stated if kind in _TYPES and status in _STATUSES)
    return tuple(_is(("condition", kind), ("status", status)) for kind, status in known)


def _retries(finetune: FineTune, _: float) -> Series:
    retries, ended = stored_retries(finetune.status), bool(result_of(finetune.status))
    counts = ((cause, retries.of(cause)) for cause in Cause)
    return tuple(((("cause", cause.value),), float(number)) for cause, number in counts if number or not ended)


def _advice(finetune: FineTune, _: float) -> Series:
    listed = maps_of(finetune.status.get("advice"))
    stated = {text_of(one.get("code")): text_of(one.get("severity")) for one in listed}
    known = ((code, severity) for code, severity in stated.items() if code in CODES and severity in SEVERITIES)
    return tuple(_is(("code", code), ("severity", severity)) for code, severity in known)


def _quantization(finetune: FineTune) -> str:
    """What the run really uses; until that is known, what it asks for."""
    found = block_of(finetune.status, "resolved").get("quantization")
    return text_of(found) or text_of(finetune.spec.get("quantization")) or "None"


def _requested_gpus(finetune: FineTune) -> float | None:
    gpus = _number(block_of(finetune.spec, "resources").get("gpus", 1))
    return None if gpus is None else gpus * read_nodes(finetune.manifest)


def _progress_ratio(finetune: FineTune) -> float | None:
    progress = block_of(finetune.status, "progress")
    step, total = _number(progress.get("step")), _number(progress.get("totalSteps"))
    return min(1.0, step / total) if step is not None and total else None


def _state_since(finetune: FineTune) -> object:
    """Before the first status of an operator, and at the end, other times say it."""
    status = finetune.status
    since = status.get("stateSince") or (status.get("completionTime") if result_of(status) else None)
    seen = "observedGeneration" in status
    return since if seen or since else block_of(finetune.manifest, "metadata").get("creationTimestamp")


def _gpu_seconds(finetune: FineTune, now_s: float) -> float | None:
    active_s, gpus = _active_seconds(finetune, now_s), _requested_gpus(finetune)
    return None if active_s is None or gpus is None else active_s * gpus


def _active_seconds(finetune: FineTune, now_s: float) -> float | None:
    spent = stored_time(finetune.status)
    if spent.active_since is None:
        return float(spent.run_s) if spent.active_until else None
    return spent.run_s + max(0.0, now_s - spent.active_since.timestamp())


def _checkpoint_step(finetune: FineTune) -> float | None:
    left = _number(block_of(finetune.status, "checkpoint").get("step"))
    return _number(block_of(finetune.status, "progress").get("checkpointStep")) if left is None else left


def _one(read: Callable[[FineTune], float | None]) -> Callable[[FineTune, float], Found]:
    return lambda finetune, _: read(finetune)


def _timestamp(read: Callable[[FineTune], object]) -> Callable[[FineTune, float], Found]:
    def seconds(finetune: FineTune) -> float | None:
        moment = parse_instant(read(finetune))
        return moment.timestamp() if moment else None

    return _one(seconds)


def _status_number(block: str, field: str) -> Callable[[FineTune, float], Found]:
    return _one(lambda finetune: _number(block_of(finetune.status, block).get(field)))


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


_FAMILIES = (
    _Family(
        name="lorafinetune",
        kind="info",
        help="What is trained and how; quantization is the one that is used, once that is known, and queue is empty "
        "without one.",
        read=_facts,
    ),
    _Family(
        name="lorafinetune_state",
        help="1 for the STATE that the run is in and its group (docs/states.md); no series for the others.",
        read=_state,
    ),
    _Family(
        name="lorafinetune_state_since_timestamp_seconds",
        help="Since when the run is in its state.",
        read=_timestamp(_state_since),
    ),
    _Family(
        name="lorafinetune_status_condition",
        help="1 for the status that a condition has, True, False or Unknown; no series for the two others.",
        read=_conditions,
    ),
    _Family(
        name="lorafinetune_created_timestamp_seconds",
        help="When the LoRAFineTune was created.",
        read=_timestamp(lambda finetune: block_of(finetune.manifest, "metadata").get("creationTimestamp")),
    ),
    _Family(
        name="lorafinetune_started_timestamp_seconds",
        help="When its first Job started.",
        read=_timestamp(lambda finetune: finetune.status.get("startTime")),
    ),
    _Family(
        name="lorafinetune_completed_timestamp_seconds",
        help="When the run ended, successfully or not.",
        read=_timestamp(lambda finetune: finetune.status.get("completionTime")),
    ),
    _Family(
        name="lorafinetune_active_seconds",
        help="How long the run has been active, over all attempts and with the preflight: what activeDeadlineSeconds "
        "limits.",
        read=_active_seconds,
    ),
    _Family(
        name="lorafinetune_gpu_seconds",
        help="The time for which the run has been active times the GPUs that it asks for. A gauge: take delta(), as "
        "the end of a period of activity corrects it by some seconds.",
        read=_gpu_seconds,
    ),
    _Family(
        name="lorafinetune_requested_gpus",
        help="GPUs that the run asks for, of all its nodes together; 0 for a run on the CPU.",
        read=_one(_requested_gpus),
    ),
    _Family(
        name="lorafinetune_attempts",
        help="Training Jobs made for the run so far; above 1 only where one was deleted before it was done.",
        read=_one(lambda finetune: _number(finetune.status.get("attempt", 0))),
    ),
    _Family(
        name="lorafinetune_retries",
        kind="counter",
        help="Pods that ended early in a way that is tried again, by cause as in status.retries; after the end only "
        "the causes that there were.",
        read=_retries,
    ),
    _Family(
        name="lorafinetune_advice",
        help="1 for each piece of advice in the status, by what it is about and its severity, Info or Warning.",
        read=_advice,
    ),
    _Family(
        name="lorafinetune_progress_ratio",
        help="Share of the optimizer steps that are done, from 0 to 1; none before the first report.",
        read=_one(_progress_ratio),
    ),
    _Family(
        name="lorafinetune_checkpoint_step",
        help="Step after which the last valid checkpoint was saved; none before the first.",
        read=_one(_checkpoint_step),
    ),
    _Family(
        name="lorafinetune_estimated_memory_bytes",
        help="Highest memory that the training is expected to use, of a GPU or, without one, of the pod.",
        read=_status_number("plan", "peakBytes"),
    ),
    _Family(
        name="lorafinetune_peak_memory_bytes",
        help="Highest device memory that the trainer has reported.",
        read=_status_number("progress", "peakMemoryBytes"),
    ),
    _Family(
        name="lorafinetune_final_loss",
        help="Training loss of a run that succeeded, over the last tenth of its steps, in nats per target token.",
        read=_status_number("results", "trainLoss"),
    ),
    _Family(
        name="lorafinetune_final_eval_loss",
        help="Held-out loss of a run that succeeded, in nats per target token.",
        read=_status_number("results", "evalLossAfter"),
    ),
    _Family(
        name="lorafinetune_final_eval_loss_before",
        help="Held-out loss of the base model, before the training of a run that succeeded, in nats per target token.",
        read=_status_number("results", "evalLossBefore"),
    ),
)
