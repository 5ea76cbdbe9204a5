"""A Job of an earlier attempt that turns up late, and pods that a live read does not speak of."""

import dataclasses
from typing import Any, cast

import pytest
from tests.unit.builders import (
    NAME,
    NAMESPACE,
    UID,
    ended_pod,
    finished_job,
    job_name,
    make_finetune,
    make_job,
    make_pod_object,
    make_summary,
)
from tests.unit.plans import plan_for, stated

from lora_operator.cluster.api import FINETUNES, Api, ApiError, Chunk
from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.look import look, read_live
from lora_operator.decision.stages import order
from lora_operator.decision.stages.preflight import PREFLIGHT
from lora_operator.decision.stages.train import TRAIN
from lora_operator.views.model import Answer, ObjectRef, Plan
from lora_operator.views.names import JOB_NAME_LABEL

SECOND: dict[str, Any] = {"attempt": 2, "jobName": job_name(2)}


def test_a_job_of_an_earlier_attempt_that_turns_up_late_is_stopped_after_a_live_read() -> None:
    """A request that was cut off may make it long after another operator has gone on."""
    late, present = make_job(), make_job(attempt=2, uid="job-2")
    plan = plan_for(make_finetune(status=SECOND), jobs=(late, present))
    assert plan.delete == (ObjectRef(kind="Job", name=job_name(1), uid=late.uid),)
    assert plan.read_first
    assert stated(plan, "Complete") == ("Unknown", "Pending")


def test_a_run_ends_though_a_job_of_an_earlier_attempt_cannot_be_deleted() -> None:
    """A webhook keeps it, say: what the present attempt's Job has proven is no less true."""
    late, done = make_job(), finished_job(attempt=2, uid="job-2")
    pod = ended_pod(0, make_summary().to_message(), attempt=2, job_uid="job-2")
    plan = plan_for(make_finetune(status=SECOND), jobs=(late, done), pods=(pod,))
    assert [target.uid for target in plan.delete] == [late.uid]
    assert stated(plan, "Complete") == ("True", "Succeeded")


def test_no_attempt_begins_while_an_earlier_one_is_being_stopped() -> None:
    """Two would write the same output."""
    plan = plan_for(make_finetune(status=SECOND), jobs=(make_job(deleting=True),))
    assert (plan.create, plan.delete) == ((), ())
    assert stated(plan, "Complete") == ("Unknown", "Restarting")


def test_an_earlier_attempt_that_has_ended_is_left_alone() -> None:
    """Its pods tell how it failed."""
    plan = plan_for(make_finetune(status=SECOND), jobs=(finished_job("Failed"), make_job(attempt=2, uid="job-2")))
    assert plan.delete == ()


def test_a_further_stage_is_a_row_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Job comes before that of the training, and is none of another release's."""
    further = dataclasses.replace(
        PREFLIGHT, name="check", is_due=lambda case: case.children.attempt == 0, condition=lambda *_: None
    )
    monkeypatch.setattr(order, "STAGES", (PREFLIGHT, further, TRAIN))
    assert created(plan_for(make_finetune())) == [job_name(stage="check")]
    going = plan_for(make_finetune(), jobs=(make_job(stage="check"),))
    assert (going.create, going.delete) == ((), ())
    assert created(plan_for(make_finetune(), jobs=(finished_job(stage="check"),))) == [job_name()]


def created(plan: Plan) -> list[str]:
    """Names of what a plan creates."""
    return [manifest["metadata"]["name"] for manifest in plan.create]


class Server:
    """Has the resource, no Job, and no pod."""

    async def get(self, resource: Any, namespace: str, name: str) -> Any:
        """Read one of them."""
        if resource is FINETUNES:
            return {"metadata": {"namespace": namespace, "name": name, "uid": UID, "resourceVersion": "50"}}
        raise ApiError(404, "NotFound", "it is gone")

    async def list_chunks(self, *_: Any, **__: Any) -> Any:
        """A list of pods."""
        yield Chunk(documents=[], version="60")


async def test_a_live_read_of_some_jobs_says_nothing_of_the_pods_of_others() -> None:
    """The pod of an attempt before is no news to it, and that of the attempt that it asks for is gone."""
    cache = Cache()
    for attempt in (1, 2):
        pod = make_pod_object(name=f"pod-{attempt}", attempt=attempt)
        pod["metadata"]["resourceVersion"] = "40"
        cache.pods.put(pod)
    await read_live(cache, cast("Api", Server()), make_finetune(), (job_name(2),))
    assert [pod.name for pod in cache.pods.of(Key(NAMESPACE, NAME), UID)] == ["pod-1"]


@pytest.mark.parametrize("attempt", [1, 2])
async def test_an_orphan_that_no_watch_follows_holds_the_run_up_only_while_it_lives(attempt: int) -> None:
    """Without our labels no watch reports its end: a live read asks for the pods of its Job, of whichever attempt."""
    cache, finetune = Cache(), make_finetune(status=SECOND)

    def plan() -> Plan:
        seen = look(cache, finetune, events=(), ask=lambda _: Answer())
        return plan_for(finetune, pods=seen.pods)

    orphan = make_pod_object(attempt=attempt, job_uid="gone", phase="Running", state={"running": {}})
    orphan["metadata"] |= {"labels": {JOB_NAME_LABEL: job_name(attempt)}, "resourceVersion": "40"}
    cache.pods.put(orphan, (NAME, UID))
    waits = plan()
    assert (waits.create, stated(waits, "Complete")[1], waits.read_first) == ((), "Restarting", True)
    await read_live(cache, cast("Api", Server()), finetune, waits.job_names)
    assert created(plan()) == [job_name(3)]
