"""C14, C15 and C17: fifty pods that answer as nobody should, all at once, and a hundred runs that fail at once."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from tests.component.documents import Object, failed, succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.hostile_pods import LIES, NOISE, Pods, answer, flood, played_pods, progress
from tests.faults.moments import Kept, condition
from tests.faults.one_run import Run, begin
from tests.faults.seen import Sees, kept, remember, saw
from tests.ports import free_address

from lora_operator.controller.checks import RIGHTS
from lora_operator.model.names import NAME_LABEL
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import Reason

_QUESTIONS = 3
_FLOODS = 20
_FLOOD = "x" * 65_536
_LONGEST_LINE = 2_048
_LONGEST_STATUS = 16_384


@pytest.fixture
def pods() -> Iterator[Pods]:
    """A server for as many pods as a test wants."""
    with played_pods() as pods:
        yield pods


def test_fifty_hostile_pods_at_once_change_no_verdict_and_hold_nobody_up(stage: Stage, pods: Pods) -> None:
    """Noise is no progress, lies stay within the bounds, memory too, a good run goes its way and so does each end."""
    operator = stage.start()
    hostile = {**NOISE, **LIES}
    addresses = {name: free_address() for name in hostile}
    for name, talk in hostile.items():
        pods.play(addresses[name], talk)
        stage.apply(name, maxRetries=0)
    made = eventually(partial(_pods_of, stage, len(hostile)), "every run has a pod")
    before = remember(*(Run(stage=stage, name=name) for name in hostile))
    for name, address in addresses.items():
        stage.run_pod(made[name], ip=address)
    eventually(lambda: min(pods.asked.values()) >= 1, "every pod was asked")
    _live_a_good_life(stage, pods)
    asked = {name: pods.asked[address] for name, address in addresses.items()}

    def neglected() -> list[str]:
        return [name for name, count in asked.items() if pods.asked[addresses[name]] < count + _QUESTIONS]

    eventually(lambda: not neglected(), "all are asked again and again", deadline_s=600)

    statuses = {item["metadata"]["name"]: item["status"] for item in stage.objects("lorafinetunes")}
    assert {name: statuses[name].get("progress", {}).get("step") for name in NOISE} == dict.fromkeys(NOISE)
    assert {name: absurd for name in LIES if (absurd := _absurd(statuses[name]))} == {}
    assert {name: _state(statuses[name]) for name in hostile} == dict.fromkeys(hostile, ("Unknown", "Unknown"))
    kept(Kept.MEMORY, before)
    assert "Traceback" not in operator.text()

    _end_in_all_ways(stage, made)


def _live_a_good_life(stage: Stage, pods: Pods) -> None:
    """A run that is created meanwhile has its Job, progress that moves, and its end."""
    address = free_address()
    pods.play(address, partial(answer, body=progress()))
    stage.apply("good")
    pod = eventually(lambda: _pod_of(stage, "good"), "the good run has a pod")
    stage.run_pod(pod, ip=address)
    stage.wait_condition("Complete", reason="Training", name="good")
    eventually(lambda: _steps(stage, "good") == "5/40", "its progress is there")
    pods.play(address, partial(answer, body=progress(step=6)))
    eventually(lambda: _steps(stage, "good") == "6/40", "its progress moves")
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True", name="good")


def _steps(stage: Stage, name: str) -> str | None:
    steps: str | None = stage.finetune(name)["status"].get("progress", {}).get("steps")
    return steps


def _end_in_all_ways(stage: Stage, made: dict[str, Object]) -> None:
    """The verdict is what the pod ended with, whatever it had said before."""
    stage.end_pod(made["endless-continue"], 0, succeeded())
    stage.end_pod(made["silent"], ExitCode.NON_FINITE_LOSS, failed(Reason.NON_FINITE_LOSS, "The loss is not finite"))
    stage.end_pod(made["all-done"], ExitCode.DATASET_INVALID, failed(Reason.DATASET_INVALID, "Line 3 is no JSON"))
    stage.end_pod(made["beyond-the-end"], 0, "All 40 of 40 steps done, 100 %, the adapter is verified")
    runs = {name: Run(stage=stage, name=name) for name in made}
    saw(Sees(conditions={"Complete": ("True", Reason.SUCCEEDED)}), runs["endless-continue"])
    saw(Sees(conditions={"Failed": ("True", None)}, says=("The loss is not finite",)), runs["silent"])
    saw(Sees(conditions={"Failed": ("True", None)}, says=("Line 3 is no JSON",)), runs["all-done"])
    saw(Sees(conditions={"Failed": ("True", None)}, says=("no summary of a verified adapter",)), runs["beyond-the-end"])
    assert runs["silent"].condition("Failed")["reason"] == "NonFiniteLoss"
    assert runs["all-done"].condition("Failed")["reason"] == "DatasetInvalid"
    assert runs["beyond-the-end"].condition("Complete")["status"] == "False"


def test_trainers_that_flood_whatever_they_can_cost_the_operator_nothing(stage: Stage, pods: Pods) -> None:
    """Endless answers, a termination message far beyond what a kubelet stores, messages of their containers too."""
    proxy = stage.proxy()
    operator = stage.start(proxy=proxy)
    runs = [begin(stage, f"flood-{number}", maxRetries=0) for number in range(_FLOODS)]
    made = eventually(partial(_pods_of, stage, _FLOODS), "every run has a pod")
    said, before = len(operator.text()), remember(*runs)
    for run in runs:
        address = free_address()
        pods.play(address, partial(flood, head="HTTP/1.1 200 OK\r\n\r\n", again=b"x" * 2**20))
        stage.wait_pod_state(made[run.name], "ContainerCreating", _FLOOD)
        stage.run_pod(made[run.name], ip=address)
    eventually(lambda: min(pods.asked.values()) >= _QUESTIONS, "every pod was asked again and again")
    for run in runs:
        stage.end_pod(made[run.name], 1, f"{_FLOOD}\nRuntimeError: the last line")
    for run in runs:
        saw(Sees(conditions={"Failed": ("True", None)}, says=("look at its pod's log",)), run)
        run.wait_event("BackoffLimitExceeded")
    kept(Kept.MEMORY, before)
    statuses = [json.dumps(run.status) for run in runs]
    events = [e["message"] for e in stage.objects("events") if e["involvedObject"]["kind"] == "LoRAFineTune"]
    lines = operator.text()[said:].splitlines()
    assert max(map(len, (*events, *lines))) <= _LONGEST_LINE
    assert max(map(len, statuses)) <= _LONGEST_STATUS
    # Each question that is not answered is a line at DEBUG: the longer all of this takes the more there are.
    assert sum(len(line) for line in lines if " DEBUG " not in line) <= _FLOODS * _LONGEST_STATUS
    # A log would come through the API server, as pods/NAME/log, and metrics too through its proxy.
    assert pods.requests == {"GET /progress HTTP/1.0"}
    assert {call.subresource for call in proxy.calls if call.resource == "pods"} == {""}


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


_RUNS = 100
# The Job controller itself sends 20 requests a second, and needs three for each run.
_PATIENCE_S = 400
_MOST_WRITES = 12
_MOST_EVENTS = 5
_ENDINGS = (
    (ExitCode.NON_FINITE_LOSS, Reason.NON_FINITE_LOSS),
    (ExitCode.DATASET_INVALID, Reason.DATASET_INVALID),
    (ExitCode.CUDA_OUT_OF_MEMORY, Reason.CUDA_OUT_OF_MEMORY),
)


def test_a_hundred_runs_that_fail_at_once_are_all_ended_rightly_and_bounded_in_writes(stage: Stage) -> None:
    """Each with its own reason, in the metrics too, with at most twelve writes a run, Events among them.

    They end while no operator runs, and somebody else creates a run: the next operator finds all of it at once.
    """
    proxy = stage.proxy()
    first = stage.start(logLevel="INFO", proxy=proxy)
    endings = {f"run-{number:03}": _ENDINGS[number % len(_ENDINGS)] for number in range(_RUNS)}
    runs = [begin(stage, name) for name in endings]
    pods = eventually(partial(_pods_of, stage, _RUNS), "every run has a pod")
    eventually(lambda: _come_to_rest(first), "the first operator is at rest")
    first.kill()
    for name, (code, reason) in endings.items():
        stage.end_pod(pods[name], code, failed(reason, f"{name} cannot go on"))
    with another_namespace(stage) as other:
        theirs = begin(other, "theirs")
        before = dataclasses.replace(remember(*runs), metrics={})
        second = stage.start(logLevel="INFO", proxy=proxy, elsewhere={other.namespace: RIGHTS})
        ended = eventually(partial(_all_failed, stage), "all runs have failed", deadline_s=_PATIENCE_S)
        reasons = {name: reason.value for name, (_, reason) in endings.items()}
        assert {name: ended[name]["reason"] for name in endings} == reasons
        assert all(name in ended[name]["message"] for name in endings)
        theirs.wait("Accepted", "True")
        eventually(lambda: _counted(second) == _RUNS, "all are counted")
        saw(Sees(metric='lorafinetune_finished_total{result="failed"}'), since=before)
        eventually(lambda: _come_to_rest(second), "the second operator is at rest")
        # Kubernetes gives the name of an Event a suffix.
        wrote = Counter(call.about.split(".")[0] for call in proxy.made(about="run-*") if call.mutates)
        assert len(wrote) == _RUNS
        assert max(wrote.values()) <= _MOST_WRITES, wrote
        told = (e["involvedObject"] for e in stage.objects("events"))
        events = Counter(about["name"] for about in told if about["kind"] == "LoRAFineTune")
        assert max(events.values()) <= _MOST_EVENTS, events
        made = next(call.at_s for call in proxy.made("create jobs", about="theirs"))
        verdicts: dict[str, float] = {}
        for call in proxy.made("update lorafinetunes/status", about="run-*"):
            if condition(call.body, "Failed").get("status") == "True":
                verdicts.setdefault(call.about, call.at_s)
        assert len(verdicts) == _RUNS
        assert sum(at_s > made for at_s in verdicts.values()) >= _RUNS / 2, (made, verdicts)


@contextmanager
def another_namespace(stage: Stage) -> Iterator[Stage]:
    """A namespace of somebody else, with the same operators."""
    name = f"{stage.namespace}-theirs"
    stage.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield dataclasses.replace(stage, namespace=name)
    finally:
        for operator in stage.operators:
            operator.kill()
        stage.api.delete(f"/api/v1/namespaces/{name}")


def _come_to_rest(operator: OperatorProcess) -> bool:
    """Whether a second passes without a write."""
    before = operator.writes()
    time.sleep(1)
    return operator.writes() == before


def _all_failed(stage: Stage) -> dict[str, Object] | None:
    found = {item["metadata"]["name"]: _failed(item) for item in stage.objects("lorafinetunes")}
    return found if all(condition["status"] == "True" for condition in found.values()) else None


def _failed(item: Object) -> Object:
    conditions = item.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == "Failed"), {"status": ""})


def _counted(operator: OperatorProcess) -> float:
    return operator.metric('lorafinetune_finished_total{result="failed"}')
