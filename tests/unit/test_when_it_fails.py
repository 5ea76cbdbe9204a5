"""docs/when-it-fails.md quotes what the operator and the trainer say, character by character."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.builders import (
    condition_object,
    ended_pod,
    finished_job,
    make_job,
    make_summary,
    outlasted_pod,
    waiting_pod,
)
from tests.unit.fit_models import llama
from tests.unit.reached import creation_failed, queued, refused, stalled, unscheduled, waiting
from tests.unit.test_fit_choice import run
from tests.unit.test_planning import plan

from lora_trainer.contract.config import DatasetConfig, Quantization
from lora_trainer.contract.uri import HubUri, parse_uri
from lora_trainer.data.formats import detect
from lora_trainer.data.rows import Row
from lora_trainer.errors import DoesNotFitError, TrainerError, explain, storage_error
from lora_trainer.places.hub_errors import explain_hub
from lora_trainer.places.roles import Role
from lora_trainer.training.guards import LossGuard

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/when-it-fails.md").read_text(encoding="utf-8")
QUOTED = re.compile(
    r"^    Message: +(.+)\n    Observed Generation: +1\n    Reason: +(.+)\n    Status: +(.+)\n    Type: +(.+)$",
    re.MULTILINE,
)
Status = dict[str, Any]


class ConnectTimeout(Exception):  # noqa: N818 - its name
    """As httpx names it."""


class OutOfMemoryError(RuntimeError):
    """As PyTorch names it, which the trainer goes by."""


def test_each_quoted_condition_is_what_the_program_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `kubectl describe` prints it, of each of these runs."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    said = [{shown(each) for each in status["conditions"]} for status in (*waits(), *map(failed, failures()))]
    quoted = {tuple(each) for each in QUOTED.findall(PAGE)}
    assert quoted - set().union(*said) == set()
    assert all(quoted & each for each in said)


def shown(condition: Status) -> tuple[str, ...]:
    """Of a condition, what the page quotes."""
    return tuple(condition[key] for key in ("message", "reason", "status", "type"))


def waits() -> list[Status]:
    """Statuses of runs that wait, or are tried again."""
    taint = "0/4 nodes are available: 4 node(s) had untolerated taint {nvidia.com/gpu: present}."
    unassigned = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor a100"
    pulled = 'Back-off pulling image "registry.example/lora-trainer:1.0"'
    exceeded = (
        'pods "support-tone" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
        "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
    )
    away = explain_hub(ConnectTimeout("timed out"), hub_address("hf://acme/base"), Role.MODEL)
    unreached = ended_pod(int(away.code), make_summary(away.reason, str(away)).to_message())
    full = storage_error(OSError(errno.ENOSPC, "No space left on device"), "pvc://adapters/support-tone")
    summary = make_summary(full.reason, str(full)).to_message()
    return [
        waiting(unscheduled(taint)),
        waiting(unscheduled('persistentvolumeclaim "adapters" not found')),
        waiting(unscheduled("0/4 nodes are available: 4 node(s) didn't match PersistentVolume's node affinity.")),
        waiting(waiting_pod("ImagePullBackOff", pulled)),
        waiting(waiting_pod("CreateContainerConfigError", 'secret "hf-token" not found')),
        creation_failed(exceeded),
        queued(condition_object("QuotaReserved", "False", reason="Pending", message=f"{unassigned}, 1 more needed")),
        refused('admission webhook "images.example" denied the request: tag latest is not allowed'),
        stalled(),
        waiting(outlasted_pod(0, {"running": {}})),
        waiting(ended_pod(int(full.code), summary), job=make_job(status={"failed": 1})),
        waiting(unreached, job=finished_job("Failed", failed=4, reason="BackoffLimitExceeded")),
        waiting(
            ended_pod(137, reason="OOMKilled"), job=finished_job("Failed", failed=4, reason="BackoffLimitExceeded")
        ),
    ]


def failures() -> list[TrainerError]:
    """What a trainer ends with."""
    free = "GPU 0 has a total capacity of 14.74 GiB of which 1.10 GiB is free."
    row = Row(0, "train.jsonl, line 1", "train.jsonl", 1, {"ticket": "?", "reply": "!"})
    short = plan("T4", run(quantization=Quantization.NONE), llama())
    guard = LossGuard()
    return [
        hub(401, "hf://meta-llama/Llama-3.1-8B-Instruct", Role.MODEL),
        hub(404, "hf://acme/suport-chats", Role.DATASET),
        raised(lambda: detect(DatasetConfig(uri="pvc://data/train.jsonl"), row)),
        DoesNotFitError(short.reason, short),
        explain(OutOfMemoryError(f"CUDA out of memory. Tried to allocate 1.96 GiB. {free}")),
        raised(lambda: [guard.may_take(step, float("nan"), 1.0, None) for step in (41, 42, 43)]),
    ]


def failed(error: TrainerError) -> Status:
    """The status of a run whose trainer ended so."""
    pod = ended_pod(int(error.code), make_summary(error.reason, str(error)).to_message())
    return waiting(pod, job=finished_job("Failed", reason="PodFailurePolicy", failed=1))


def hub(status: int, uri: str, role: Role) -> TrainerError:
    """What the trainer makes of an answer of the Hub."""
    error = Exception()
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return explain_hub(error, hub_address(uri), role)


def hub_address(uri: str) -> HubUri:
    """The address of a repository."""
    address = parse_uri(uri)
    assert isinstance(address, HubUri)
    return address


def raised(act: Callable[[], object]) -> TrainerError:
    """The error that an act raises."""
    with pytest.raises(TrainerError) as caught:
        act()
    return caught.value
