"""C14, C15 and C17: fifty pods that answer as nobody should, all at once, and a hundred runs that fail at once."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.component.documents import Object, failed, succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.hostile_pods import LIES, NOISE, Pods, answer, played_pods, progress

from lora_operator.views.names import NAME_LABEL
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.reasons import Reason

_ADDRESSES = (f"127.84.0.{number}" for number in itertools.count(1))
_QUESTIONS = 3
_MIB = 2**20
# Fifty answers of a few KiB are much less; what is left is for the runs themselves.
_MOST_GROWTH = 8 * _MIB


@pytest.fixture
def pods() -> Iterator[Pods]:
    """A server for as many pods as a test wants."""
    with played_pods() as pods:
        yield pods


@pytest.mark.fault("C14", "C15")
def test_fifty_hostile_pods_at_once_change_no_verdict_and_hold_nobody_up(stage: Stage, pods: Pods) -> None:
    """Noise is no progress, lies stay within the bounds, memory too, a good run goes its way and so does each end."""
    operator = stage.start()
    hostile = {**NOISE, **LIES}
    addresses = {name: next(_ADDRESSES) for name in hostile}
    for name, talk in hostile.items():
        pods.play(addresses[name], talk)
        stage.apply(name, maxRetries=0)
    made = eventually(partial(_pods_of, stage, len(hostile)), "every run has a pod")
    before = _resident_bytes(operator)
    for name, address in addresses.items():
        stage.run_pod(made[name], ip=address)
    eventually(lambda: min(pods.asked.values()) >= 1, "every pod was asked")
    _live_a_good_life(stage, pods)
    asked = {name: pods.asked[address] for name, address in addresses.items()}

    def neglected() -> list[str]:
        return [name for name, count in asked.items() if pods.asked[addresses[name]] < count + _QUESTIONS]

    eventually(lambda: not neglected(), "all are asked again and again")

    statuses = {item["metadata"]["name"]: item["status"] for item in stage.objects("lorafinetunes")}
    assert {name: statuses[name].get("progress", {}).get("step") for name in NOISE} == dict.fromkeys(NOISE)
    assert {name: absurd for name in LIES if (absurd := _absurd(statuses[name]))} == {}
    assert {name: _state(statuses[name]) for name in hostile} == dict.fromkeys(hostile, ("Unknown", "Unknown"))
    # Neither its log nor its metrics: a flood of them reaches nobody here.
    assert pods.requests == {"GET /progress HTTP/1.0"}
    assert _peak_bytes(operator) - before < _MOST_GROWTH
    assert "Traceback" not in operator.text()

    _end_in_all_ways(stage, made)


def _live_a_good_life(stage: Stage, pods: Pods) -> None:
    """A run that is created meanwhile has its Job, its progress and its end."""
    address = next(_ADDRESSES)
    pods.play(address, partial(answer, body=progress()))
    stage.apply("good")
    pod = eventually(lambda: _pod_of(stage, "good"), "the good run has a pod")
    stage.run_pod(pod, ip=address)
    stage.wait_condition("Complete", reason="Training", name="good")
    assert stage.finetune("good")["status"]["progress"]["steps"] == "5/40"
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True", name="good")


def _end_in_all_ways(stage: Stage, made: dict[str, Object]) -> None:
    """The verdict is what the pod ended with, whatever it had said before."""
    stage.end_pod(made["endless-continue"], 0, succeeded())
    stage.end_pod(made["silent"], ExitCode.NON_FINITE_LOSS, failed(Reason.NON_FINITE_LOSS, "The loss is not finite"))
    stage.end_pod(made["all-done"], ExitCode.DATASET_INVALID, failed(Reason.DATASET_INVALID, "Line 3 is no JSON"))
    stage.end_pod(made["beyond-the-end"], 0, "All 40 of 40 steps done, 100 %, the adapter is verified")
    stage.wait_condition("Complete", status="True", name="endless-continue")
    stage.wait_condition("Failed", status="True", reason="NonFiniteLoss", name="silent")
    stage.wait_condition("Failed", status="True", reason="DatasetInvalid", name="all-done")
    stage.wait_condition("Failed", status="True", name="beyond-the-end")
    assert stage.condition("Complete", "beyond-the-end")["status"] == "False"


def _absurd(status: Object) -> list[str]:
    """What no honest trainer can have reached; the API server itself bounds texts and signs."""
    block, resolved = status["progress"], status.get("resolved", {})
    step, total = block.get("step", 0), block.get("totalSteps", 2**63)
    found = {
        "more steps than there are": step > total or block.get("checkpointStep", 0) > total,
        "a resumption after the end": block.get("resumedStep", 0) > total,
        "a percentage that is none": not 0 <= block.get("percentage", 0) <= 100,
        "a text with control characters": not str(resolved.get("modelType", "")).isprintable(),
        "a time of its own": not status["startTime"] <= block["lastUpdateTime"] < "2200",
    }
    return [name for name, is_so in found.items() if is_so]


def _state(status: Object) -> tuple[str, str]:
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    return conditions["Complete"], conditions["Failed"]


def _pods_of(stage: Stage, count: int) -> dict[str, Object] | None:
    pods = {pod["metadata"]["labels"][NAME_LABEL]: pod for pod in stage.objects("pods")}
    return pods if len(pods) == count else None


def _pod_of(stage: Stage, name: str) -> Object | None:
    return next((pod for pod in stage.objects("pods") if pod["metadata"]["labels"][NAME_LABEL] == name), None)


def _resident_bytes(operator: OperatorProcess) -> int:
    return _kernel_says(operator, "VmRSS")


def _peak_bytes(operator: OperatorProcess) -> int:
    return _kernel_says(operator, "VmHWM")


def _kernel_says(operator: OperatorProcess, field: str) -> int:
    lines = Path(f"/proc/{operator.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


_RUNS = 100
# The Job controller itself sends 20 requests a second, and needs three for each run.
_PATIENCE_S = 120
_MOST_WRITES = 12
_MOST_EVENTS = 5
_ENDINGS = (
    (ExitCode.NON_FINITE_LOSS, Reason.NON_FINITE_LOSS),
    (ExitCode.DATASET_INVALID, Reason.DATASET_INVALID),
    (ExitCode.CUDA_OUT_OF_MEMORY, Reason.CUDA_OUT_OF_MEMORY),
)


@pytest.mark.fault("C17")
def test_a_hundred_runs_that_fail_at_once_are_all_told_rightly_and_bounded_in_writes(stage: Stage) -> None:
    """Each with its own reason, in the metrics too, with at most twelve writes a run, Events among them."""
    operator = stage.start(logLevel="INFO")
    questions = operator.writes()
    endings = {f"run-{number:03}": _ENDINGS[number % len(_ENDINGS)] for number in range(_RUNS)}
    for name in endings:
        stage.apply(name)
    pods = eventually(partial(_pods_of, stage, _RUNS), "every run has a pod")
    for name, (code, reason) in endings.items():
        stage.end_pod(pods[name], code, failed(reason, f"{name} cannot go on"))

    def told() -> dict[str, Object] | None:
        found = {item["metadata"]["name"]: _failed(item) for item in stage.objects("lorafinetunes")}
        return found if all(condition["status"] == "True" for condition in found.values()) else None

    conditions = eventually(told, "all runs have failed", deadline_s=_PATIENCE_S)
    assert {name: conditions[name]["reason"] for name in endings} == {n: r.value for n, (_, r) in endings.items()}
    assert all(name in conditions[name]["message"] for name in endings)
    eventually(lambda: _counted(stage, operator) == _RUNS, "all are counted by their reason")
    assert operator.writes() - questions <= _MOST_WRITES * _RUNS
    events = [e for e in stage.objects("events") if e["involvedObject"]["kind"] == "LoRAFineTune"]
    assert len(events) <= _MOST_EVENTS * _RUNS


def _failed(item: Object) -> Object:
    conditions = item.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == "Failed"), {"status": ""})


def _counted(stage: Stage, operator: OperatorProcess) -> float:
    labels = f'namespace="{stage.namespace}"'
    return sum(
        operator.metric(f'lorafinetune_finished_total{{{labels},reason="{reason.value}",result="failed"}}')
        for _, reason in _ENDINGS
    )
