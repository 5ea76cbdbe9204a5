"""One set of series for each LoRAFineTune, read from the cache at each scrape and gone with the resource."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from lora_operator.views.model import FineTune
from lora_operator.views.names import QUEUE_LABEL
from lora_operator.views.request import read_nodes
from lora_operator.views.wording import block_of, parse_instant

_STATUSES = ("True", "False", "Unknown")
_IDENTITY = ("namespace", "name")
_CONDITION = "lorafinetune_status_condition"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """A gauge of one number for each resource; no series where `read` finds none."""

    name: str
    help: str
    read: Callable[[FineTune], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """All that the series of one resource say: far less than the resource itself."""

    place: tuple[str, str]
    facts: Mapping[str, str]
    conditions: tuple[tuple[str, str], ...]
    numbers: tuple[float | None, ...]


class ObjectCollector(Collector):
    """Reads LoRAFineTunes as they are known now.

    A cluster may hold thousands of finished ones: a sample is made when it is written, and none is kept. For the same
    reason a condition has one series, not one for each status that it could have.
    """

    def __init__(self, finetunes: Iterable[FineTune]) -> None:
        self._finetunes = finetunes

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not read the cache."""
        return _families(())

    def collect(self) -> Iterable[Metric]:
        """The families with a sample for each resource."""
        return _families(tuple(map(_read, self._finetunes)))


def _read(finetune: FineTune) -> _Row:
    conditions = finetune.status.get("conditions")
    listed = conditions if isinstance(conditions, list) else ()
    return _Row(
        place=(finetune.namespace, finetune.name),
        facts={
            "base_model": _text(_map(finetune.spec, "model").get("uri")),
            "quantization": _quantization(finetune),
            "queue": _text(_map(_map(finetune.manifest, "metadata"), "labels").get(QUEUE_LABEL)),
        },
        conditions=tuple((sys.intern(_text(c.get("type"))), sys.intern(_text(c.get("status")))) for c in listed),
        numbers=tuple(value.read(finetune) for value in _VALUES),
    )


def _families(rows: Sequence[_Row]) -> Iterator[Metric]:
    info = InfoMetricFamily("lorafinetune", "What is trained and how; queue is empty without one.", labels=_IDENTITY)
    yield _with(info, (Sample("lorafinetune_info", {**_identity(row), **row.facts}, 1.0) for row in rows))
    conditions = GaugeMetricFamily(
        _CONDITION, "1 for the status that a condition has, True, False or Unknown; no series for the two others."
    )
    yield _with(conditions, _condition_samples(rows))
    for number, value in enumerate(_VALUES):
        yield _with(GaugeMetricFamily(value.name, value.help), _number_samples(rows, number, value.name))


def _with(family: Metric, samples: Iterator[Sample]) -> Metric:
    # What writes a family goes through its samples once.
    family.samples = cast("list[Sample]", samples)
    return family


def _identity(row: _Row) -> dict[str, str]:
    return dict(zip(_IDENTITY, row.place, strict=True))


def _condition_samples(rows: Iterable[_Row]) -> Iterator[Sample]:
    for row in rows:
        for kind, status in row.conditions:
            if status in _STATUSES:
                yield Sample(_CONDITION, {**_identity(row), "condition": kind, "status": status}, 1.0)


def _number_samples(rows: Iterable[_Row], number: int, name: str) -> Iterator[Sample]:
    for row in rows:
        value = row.numbers[number]
        if value is not None:
            yield Sample(name, _identity(row), value)


def _quantization(finetune: FineTune) -> str:
    """What the run really uses; until that is known, what it asks for."""
    found = block_of(finetune.status, "resolved").get("quantization")
    return _text(found) or _text(finetune.spec.get("quantization")) or "None"


def _requested_gpus(finetune: FineTune) -> float | None:
    gpus = _number(_map(finetune.spec, "resources").get("gpus", 1))
    return None if gpus is None else gpus * read_nodes(finetune.manifest)


def _progress_ratio(finetune: FineTune) -> float | None:
    progress = block_of(finetune.status, "progress")
    step, total = _number(progress.get("step")), _number(progress.get("totalSteps"))
    return min(1.0, step / total) if step is not None and total else None


def _timestamp(read: Callable[[FineTune], object]) -> Callable[[FineTune], float | None]:
    def seconds(finetune: FineTune) -> float | None:
        moment = parse_instant(read(finetune))
        return moment.timestamp() if moment else None

    return seconds


def _status_number(block: str, field: str) -> Callable[[FineTune], float | None]:
    return lambda finetune: _number(block_of(finetune.status, block).get(field))


def _map(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None


_VALUES = (
    _Value(
        name="lorafinetune_created_timestamp_seconds",
        help="When the LoRAFineTune was created.",
        read=_timestamp(lambda finetune: _map(finetune.manifest, "metadata").get("creationTimestamp")),
    ),
    _Value(
        name="lorafinetune_started_timestamp_seconds",
        help="When its first Job started.",
        read=_timestamp(lambda finetune: finetune.status.get("startTime")),
    ),
    _Value(
        name="lorafinetune_completed_timestamp_seconds",
        help="When the run ended, well or badly.",
        read=_timestamp(lambda finetune: finetune.status.get("completionTime")),
    ),
    _Value(
        name="lorafinetune_requested_gpus",
        help="GPUs that the run asks for, of all its nodes together; 0 for a run on the CPU.",
        read=_requested_gpus,
    ),
    _Value(
        name="lorafinetune_attempts",
        help="Jobs made for the run so far; above 1 only where one was deleted before it was done.",
        read=lambda finetune: _number(finetune.status.get("attempt", 0)),
    ),
    _Value(
        name="lorafinetune_progress_ratio",
        help="Share of the optimizer steps that are done, from 0 to 1; none before the first report.",
        read=_progress_ratio,
    ),
    _Value(
        name="lorafinetune_peak_memory_bytes",
        help="Highest device memory that the trainer has reported.",
        read=_status_number("progress", "peakMemoryBytes"),
    ),
    _Value(
        name="lorafinetune_final_loss",
        help="Training loss of a run that succeeded, over the last tenth of its steps, in nats per target token.",
        read=_status_number("results", "trainLoss"),
    ),
    _Value(
        name="lorafinetune_final_eval_loss",
        help="Held-out loss of a run that succeeded, in nats per target token.",
        read=_status_number("results", "evalLossAfter"),
    ),
)
