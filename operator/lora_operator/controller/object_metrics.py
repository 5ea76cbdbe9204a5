"""One set of series for each LoRAFineTune, read from the cache at each scrape and gone with the resource.

Labels beside a resource's place come from lists of ours, but for the model's address and the queue's name, which the
definition keeps free of credentials. A run that has ended has few series: thousands of them stay for months.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from lora_operator.decide.advice import CODES, SEVERITIES
from lora_operator.decide.states import group_of
from lora_operator.model.conditions import result_of, state_of
from lora_operator.model.names import QUEUE_LABEL
from lora_operator.model.objects import FineTune
from lora_operator.model.request import read_nodes
from lora_operator.model.stored import read_stored
from lora_operator.model.wording import block_of, maps_of, parse_instant, text_of

_SUFFIXES = {"info": "_info", "counter": "_total", "gauge": ""}

Labels = Mapping[str, str]
Found = Iterable[tuple[Labels, float]] | float | None
"""Series by the labels that they have beside a resource's place, or the number of the only one, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """A metric, and how it is read from a resource; `stays` where it outlives the end of a run."""

    name: str
    help: str
    kind: str = "gauge"
    stays: bool = False
    read: Callable[[FineTune, float], Found]


class ObjectCollector(Collector):
    """Reads LoRAFineTunes as they are known now, of which a cluster may hold thousands; `clock` is seconds since 1970.

    To keep series few, the state has one, not one for each that it could be.
    """

    def __init__(self, finetunes: Iterable[FineTune], clock: Callable[[], float] = time.time) -> None:
        self._finetunes = finetunes
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not read the cache."""
        return [Metric(family.name, family.help, family.kind) for family in _FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """The families, one at a time: samples are ten times as large as what was read for them."""
        now_s = self._clock()
        read = [(_place(finetune), _read(finetune, now_s)) for finetune in self._finetunes]
        for number, family in enumerate(_FAMILIES):
            metric = Metric(family.name, family.help, family.kind)
            for place, found in read:
                for labels, value in _series(found[number]):
                    metric.add_sample(family.name + _SUFFIXES[family.kind], {**place, **labels}, value)
            yield metric


def _place(finetune: FineTune) -> Labels:
    return {"namespace": finetune.namespace, "name": finetune.name}


def _read(finetune: FineTune, now_s: float) -> tuple[Found, ...]:
    ended = bool(result_of(finetune.status))
    return tuple(family.read(finetune, now_s) if family.stays or not ended else None for family in _FAMILIES)


def _series(found: Found) -> Iterable[tuple[Labels, float]]:
    if found is None:
        return ()
    return (({}, found),) if isinstance(found, float) else found


def _facts(finetune: FineTune, _: float) -> Found:
    labels = block_of(block_of(finetune.manifest, "metadata"), "labels")
    resolved = block_of(finetune.status, "resolved")
    queue = text_of(labels.get(QUEUE_LABEL)) or text_of(block_of(resolved, "pod").get("queue"))
    used = text_of(resolved.get("quantization")) or text_of(finetune.spec.get("quantization")) or "None"
    uri = text_of(block_of(finetune.spec, "model").get("uri"))
    return [({"base_model": uri, "quantization": used, "queue": queue}, 1.0)]


def _state(finetune: FineTune, _: float) -> Found:
    group = group_of(finetune.status)
    return None if group is None else [({"group": group.value, "state": state_of(finetune.status)}, 1.0)]


def _state_since(finetune: FineTune, _: float) -> Found:
    """Before the first status of an operator it is the definition's, as old as the resource."""
    seen = "observedGeneration" in finetune.status
    since = finetune.status.get("stateSince")
    return _timestamp(since if seen else block_of(finetune.manifest, "metadata").get("creationTimestamp"))


def _retries(finetune: FineTune, _: float) -> Found:
    block, ended = block_of(finetune.status, "retries"), bool(result_of(finetune.status))
    counts = ((kind, _number(block.get(kind)) or 0.0) for kind in ("used", "preempted"))
    return [({"kind": kind}, number) for kind, number in counts if number or not ended]


def _advice(finetune: FineTune, _: float) -> Found:
    listed = maps_of(finetune.status.get("advice"))
    stated = {text_of(one.get("code")): text_of(one.get("severity")) for one in listed}
    known = ((code, severity) for code, severity in stated.items() if code in CODES and severity in SEVERITIES)
    return [({"code": code, "severity": severity}, 1.0) for code, severity in known]


def _requested_gpus(finetune: FineTune, _: float = 0) -> float | None:
    gpus = _number(block_of(finetune.spec, "resources").get("gpus", 1))
    return None if gpus is None else gpus * read_nodes(finetune.manifest)


def _active_seconds(finetune: FineTune, now_s: float) -> float | None:
    spent = read_stored(finetune.status)
    if spent.active_since is None:
        return float(spent.run_s) if spent.active_until else None
    return spent.run_s + max(0.0, now_s - spent.active_since.timestamp())


def _gpu_seconds(finetune: FineTune, now_s: float) -> float | None:
    active_s, gpus = _active_seconds(finetune, now_s), _requested_gpus(finetune)
    return None if active_s is None or gpus is None else active_s * gpus


def _progress_ratio(finetune: FineTune, _: float) -> float | None:
    progress = block_of(finetune.status, "progress")
    step, total = _number(progress.get("step")), _number(progress.get("totalSteps"))
    return min(1.0, step / total) if step is not None and total else None


def _checkpoint_step(finetune: FineTune, _: float) -> float | None:
    left = _number(block_of(finetune.status, "checkpoint").get("step"))
    return _number(block_of(finetune.status, "progress").get("checkpointStep")) if left is None else left


def _status_number(block: str, field: str) -> Callable[[FineTune, float], Found]:
    return lambda finetune, _: _number(block_of(finetune.status, block).get(field))


def _timestamp(value: object) -> float | None:
    moment = parse_instant(value)
    return moment.timestamp() if moment else None


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
        help="Base model, quantization (the one used, once known) and queue (empty without one).",
        stays=True,
        read=_facts,
    ),
    _Family(
        name="lorafinetune_state",
        help="1 for the run's STATE and its group (docs/states.md); other states have no series.",
        stays=True,
        read=_state,
    ),
    _Family(
        name="lorafinetune_state_since_timestamp_seconds",
        help="When the present state began.",
        read=_state_since,
    ),
    _Family(
        name="lorafinetune_completed_timestamp_seconds",
        help="When the run succeeded or failed.",
        stays=True,
        read=lambda finetune, _: _timestamp(finetune.status.get("completionTime")),
    ),
    _Family(
        name="lorafinetune_active_seconds",
        help="Active seconds, over all attempts and with the preflight, which activeDeadlineSeconds limits.",
        read=_active_seconds,
    ),
    _Family(
        name="lorafinetune_requested_gpus",
        help="Requested GPUs of all nodes together; 0 for a run on the CPU.",
        read=_requested_gpus,
    ),
    _Family(
        name="lorafinetune_gpu_seconds",
        help="Active seconds times requested GPUs. A gauge: use delta(), because the end of an active period "
        "corrects it by some seconds.",
        stays=True,
        read=_gpu_seconds,
    ),
    _Family(
        name="lorafinetune_attempts",
        help="Training Jobs created; above 1 only if one was deleted before it was done.",
        read=lambda finetune, _: _number(finetune.status.get("attempt", 0)),
    ),
    _Family(
        name="lorafinetune_retries",
        kind="counter",
        help="Retries by kind: used counts against maxRetries, preempted does not. After the end only kinds above 0.",
        stays=True,
        read=_retries,
    ),
    _Family(
        name="lorafinetune_advice",
        help="1 for each piece of advice in the status.",
        stays=True,
        read=_advice,
    ),
    _Family(
        name="lorafinetune_progress_ratio",
        help="Share of the optimizer steps done, from 0 to 1; absent before the first report.",
        stays=True,
        read=_progress_ratio,
    ),
    _Family(
        name="lorafinetune_checkpoint_step",
        help="Step of the last valid checkpoint; absent before the first.",
        stays=True,
        read=_checkpoint_step,
    ),
    _Family(
        name="lorafinetune_estimated_memory_bytes",
        help="Expected peak memory of a GPU or, without one, of the pod.",
        read=_status_number("plan", "peakBytes"),
    ),
    _Family(
        name="lorafinetune_final_eval_loss",
        help="Validation loss of a run that succeeded, in nats per loss token.",
        stays=True,
        read=_status_number("results", "evalLossAfter"),
    ),
    _Family(
        name="lorafinetune_final_eval_loss_before",
        help="Validation loss of the base model, for a run that succeeded, in nats per loss token.",
        stays=True,
        read=_status_number("results", "evalLossBefore"),
    ),
)
