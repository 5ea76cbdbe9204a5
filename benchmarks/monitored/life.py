"""The life of runs in a fleet that is always as full: their statuses at any time, as the operator writes them."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.unit.builders import condition_object

from lora_operator.model.conditions import Type
from lora_operator.model.names import QUEUE_LABEL
from lora_operator.model.objects import FineTune
from lora_operator.model.observe import parse_finetune
from lora_operator.model.wording import instant
from lora_trainer.spec.reasons import Reason

WAITS_S, TRAINS_S, STAYS_S = 4.5 * 3600, 1.5 * 3600, 24 * 3600
"""In a queue, with its pod, and after its end until it is deleted: 15, 5 and 80 of 100 runs at any time."""
LIFE_S = WAITS_S + TRAINS_S + STAYS_S
STEPS = 5400
_CHECKPOINT_S = 600
_TEAMS = 10
_FAILURES = (Reason.CUDA_OUT_OF_MEMORY, Reason.DATASET_INVALID, Reason.STORAGE_FULL, Reason.LOSS_DIVERGED)
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The run of a number at a time, in seconds since 1970; one is created every `pace_s`."""

    number: int
    pace_s: float

    @property
    def name(self) -> str:
        return f"run-{self.number % 1_000_000:06}"

    @property
    def namespace(self) -> str:
        return f"team-{self.number % _TEAMS}"

    @property
    def uid(self) -> str:
        return f"{self.number:08x}-0000-4000-8000-000000000000"

    @property
    def created_s(self) -> float:
        return self.number * self.pace_s

    @property
    def started_s(self) -> float:
        """When its pod began."""
        return self.created_s + WAITS_S

    @property
    def ended_s(self) -> float:
        return self.started_s + TRAINS_S

    def trains(self, now_s: float) -> bool:
        """Whether it has its pod."""
        return self.started_s <= now_s < self.ended_s


def runs(total: int, now_s: float) -> Iterator[Run]:
    """Those that exist, `total` of them, the oldest first."""
    pace_s = LIFE_S / total
    last = int(now_s / pace_s)
    return (Run(number=number, pace_s=pace_s) for number in range(last - total + 1, last + 1))


def finetune(run: Run, now_s: float) -> FineTune:
    """The resource. One that waits or has ended does not change."""
    if run.trains(now_s):
        return _made(run, training(run, now_s - run.started_s))
    return _at_rest(run, now_s >= run.ended_s)


@functools.lru_cache(maxsize=8192)
def _at_rest(run: Run, ended: bool) -> FineTune:
    return _made(run, _ended(run) if ended else _waiting(run))


def _made(run: Run, status: Mapping[str, Any]) -> FineTune:
    metadata = {
        "name": run.name,
        "namespace": run.namespace,
        "uid": run.uid,
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": _moment(run.created_s),
        "labels": {QUEUE_LABEL: run.namespace},
    }
    spec = {"model": {"uri": f"hf://acme/base-{run.number % 5}"}, "quantization": "NF4", "resources": {"gpus": 1}}
    return parse_finetune({"metadata": metadata, "spec": spec, "status": {"observedGeneration": 1, **status}})


def _waiting(run: Run) -> dict[str, Any]:
    """For quota; one of a hundred for a node."""
    queued = run.number % 100 != 0
    reason = Reason.QUEUED if queued else Reason.UNSCHEDULABLE
    return {"stateSince": _moment(run.created_s), "attempt": 1, "conditions": _conditions(reason, quota=not queued)}


def training(run: Run, age_s: float) -> dict[str, Any]:
    """So many seconds after the pod began; one of seven has lost a node by the middle."""
    saved_s = age_s - age_s % _CHECKPOINT_S
    resolved = {"quantization": "NF4"}
    return {
        "stateSince": _moment(run.started_s + 60),
        "startTime": _moment(run.started_s),
        "activeSince": _moment(run.started_s),
        "attempt": 1,
        "podName": pod_name(run),
        "plan": {"peakBytes": 20 * _GIB},
        "resolved": resolved,
        "progress": {
            "step": int(age_s * STEPS / TRAINS_S),
            "totalSteps": STEPS,
            "peakMemoryBytes": 19 * _GIB,
            "checkpointStep": int(saved_s * STEPS / TRAINS_S),
        },
        "retries": {"nodeLost": 1} if run.number % 7 == 0 and age_s > TRAINS_S / 2 else {},
        "advice": [{"code": "NodePressure", "severity": "Warning"}] if run.number % 3 == 0 else [],
        "conditions": _conditions(Reason.TRAINING, quota=True),
    }


def _ended(run: Run) -> dict[str, Any]:
    """One of twelve badly."""
    failed = run.number % 12 == 5
    reason = _FAILURES[run.number // 12 % len(_FAILURES)] if failed else Reason.SUCCEEDED
    before = training(run, TRAINS_S - 1)
    del before["activeSince"], before["stateSince"]
    return {
        **before,
        "runSeconds": int(TRAINS_S),
        "activeUntil": _moment(run.ended_s),
        "completionTime": _moment(run.ended_s),
        "results": {} if failed else {"trainLoss": "1.31", "evalLossBefore": "2.52", "evalLossAfter": "1.44"},
        "checkpoint": {"step": STEPS},
        "conditions": _conditions(reason, quota=False, ended="False" if failed else "True"),
    }


def pod_name(run: Run) -> str:
    """Of its only pod."""
    return f"{run.name}-{run.number:08x}-1-0-abcde"


def _conditions(reason: Reason, *, quota: bool, ended: str = "") -> list[dict[str, Any]]:
    """All nine; `ended` is the status of Complete for a run that has ended."""
    runs_now, published = reason is Reason.TRAINING, {"": "Unknown"}.get(ended, ended)
    opposite = {"True": "False", "False": "True"}.get(ended, "Unknown")
    statuses = {
        Type.ACCEPTED: "True",
        Type.QUOTA_RESERVED: str(quota),
        Type.PREFLIGHT_PASSED: "True",
        Type.PODS_READY: str(runs_now),
        Type.CHECKPOINT_SAVED: str(runs_now or bool(ended)),
        Type.SUSPENDED: str(reason is Reason.QUEUED),
        Type.ARTIFACT_PUBLISHED: published,
        Type.COMPLETE: published,
        Type.FAILED: opposite,
    }
    return [condition_object(kind.value, status, reason=reason.value) for kind, status in statuses.items()]


def _moment(at_s: float) -> str:
    return instant(datetime.fromtimestamp(at_s, UTC))
