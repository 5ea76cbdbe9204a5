"""Rights and calls are one list: a tour of all that the operator does asks for each right that it has, and no other."""

from typing import Any

from tests.component.documents import finetune, succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.injections import Answer, LostAnswer, Rule
from tests.faults.proxy import FaultProxy
from tests.faults.queue_kind import QUEUE, kueue, make_workload, workload_path

from lora_operator.controller.checks import LEASE_RIGHTS, RIGHTS
from lora_operator.model.names import TRAIN

__all__ = ["kueue"]


def test_the_operator_calls_for_each_of_its_rights_and_for_no_other(stage: Stage, kueue: None) -> None:
    """Also for those that only a crash, a conflict, a queue or several nodes make it use."""
    proxy = stage.proxy()
    # What it made and heard nothing of it looks at, as after a crash; a conflict makes it read the resource anew.
    for kind in ("services", "jobs"):
        proxy.add(Rule(fault=LostAnswer(), what=f"create {kind}", times=1))
    proxy.lose(lambda call, _: call.what in ("watch jobs", "watch pods") and len(proxy.made("create jobs")) < 2)
    proxy.add(Rule(fault=Answer(code=409, reason="Conflict"), what="update lorafinetunes/status", times=1))
    operator = stage.start(
        proxy=proxy,
        retryPeriodSeconds=0.3,
    )
    train_on_two_nodes(stage, proxy)
    give_up(stage)
    queue(stage)
    wanted = {str(right) for right in (*RIGHTS, *LEASE_RIGHTS)}
    eventually(lambda: wanted <= used(proxy), f"all is used; left: {sorted(wanted - used(proxy))}")
    eventually(lambda: operator_rests(operator), "the operator rests")
    assert used(proxy) == wanted


def used(proxy: FaultProxy) -> set[str]:
    """Rights that requests needed so far; to ask about one's own rights needs none, nor does discovery."""
    calls = [call for call in proxy.made() if call.resource]
    assert {call.resource for call in calls if call.group == "authorization.k8s.io"} == {"selfsubjectaccessreviews"}
    return {call.right for call in calls if call.group != "authorization.k8s.io"}


def operator_rests(operator: OperatorProcess) -> bool:
    return operator.metric("lora_operator_queue_depth") == 0.0


def train_on_two_nodes(stage: Stage, proxy: FaultProxy) -> None:
    """Waits for its pods, is suspended and resumed, trains, and is cleared away when its time is over."""
    stage.apply("two", resources={"nodes": 2}, ttlSecondsAfterFinished=1)
    job = stage.wait_job()
    stage.wait_condition("Accepted", status="True", name="two")
    stage.wait_pods(job, 2)
    stage.change("two", suspend=True)
    stage.wait_condition("Suspended", status="True", name="two")
    stage.wait_held(job)
    stage.change("two", suspend=False)
    stage.wait_condition("Suspended", status="False", name="two")
    leader = living_pods(stage, job)[0]
    # Why a pod with a node does not start only its Events may say.
    stage.wait_pod_state(leader, "ContainerCreating", "")
    eventually(lambda: "list events" in used(proxy), "the pod's Events are read")
    # The success of the first node's pod is that of the Job, which then stops the other.
    stage.end_pod(leader, 0, succeeded())
    stage.wait_condition("Complete", status="True", name="two")
    eventually(lambda: stage.jobs_of(TRAIN) == [], "the Job is cleared away")


def give_up(stage: Stage) -> None:
    """It waits too long, so that its Job, which would go on, is deleted."""
    stage.apply("late", pendingTimeoutSeconds=1)
    stage.wait_condition("Failed", status="True", name="late")
    eventually(lambda: stage.jobs_of(TRAIN) == [], "the Job is stopped")


def living_pods(stage: Stage, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The two pods that came after the suspension."""

    def look() -> list[dict[str, Any]] | None:
        ours = (
            p for p in stage.objects("pods") if p["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        )
        living = (pod for pod in ours if not pod["metadata"].get("deletionTimestamp"))
        pods = sorted(living, key=lambda pod: str(pod["metadata"]["name"]))
        return pods if len(pods) == 2 else None

    return eventually(look, "two pods live")


def queue(stage: Stage) -> None:
    """Its Job stands in a queue: what is suspended then is Kueue's Workload."""
    manifest = finetune("queued")
    manifest["metadata"]["labels"] = QUEUE
    stage.api.post(stage.path("lorafinetunes"), manifest)
    make_workload(stage, "job-queued", stage.wait_job())
    stage.change("queued", suspend=True)
    path = workload_path(stage, "job-queued")
    eventually(lambda: stage.api.get(path)["spec"]["active"] is False, "the Workload is not active")
