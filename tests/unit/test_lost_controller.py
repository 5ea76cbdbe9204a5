"""Somebody takes the controller reference off a Job: it stays its run's, and gets the reference back."""

from typing import Any

import pytest
from tests.unit.builders import (
    UID,
    condition_object,
    ended_pod,
    job_name,
    make_finetune,
    make_job_object,
    running_pod,
)
from tests.unit.plans import condition, plan_for, stated
from tests.unit.turns import KEY, Object, World

from lora_operator.cluster.cache import Cache
from lora_operator.cluster.carry_out import Writer
from lora_operator.cluster.kueue import Kueue
from lora_operator.decision.adjust import MOST_RELABELLED
from lora_operator.views.model import PodView
from lora_operator.views.names import RELABELLED_ANNOTATION
from lora_operator.views.observe import parse_job

STATUS: Object = {
    "observedGeneration": 1,
    "attempt": 1,
    "jobName": job_name(),
    "conditions": [condition_object(kind, "Unknown", reason="Training") for kind in ("Complete", "Failed")],
}
OTHER: Object = {"apiVersion": "v1", "kind": "ConfigMap", "name": "mine", "uid": "other"}


def disowned(*owners: Object, **changes: Any) -> Object:
    """The run's Job without a controller."""
    job = make_job_object(**changes)
    job["metadata"]["ownerReferences"] = list(owners)
    return job


@pytest.mark.parametrize(
    ("pods", "spec"),
    [
        ((running_pod(),), {}),
        ((ended_pod(143, deleting=True),), {}),
        ((), {"suspend": True}),
    ],
    ids=["its pod runs", "its pod was drained, and the next is not made yet", "it is suspended"],
)
def test_a_job_without_a_controller_is_not_taken_for_a_deleted_one(
    pods: tuple[PodView, ...], spec: dict[str, Any]
) -> None:
    """No other attempt begins beside it, and it gets its reference back."""
    plan = plan_for(make_finetune(status=STATUS), jobs=(parse_job(disowned(spec=spec)),), pods=pods)
    assert (plan.create, plan.read_first) == ((), True)
    assert "is gone" not in condition(plan, "Complete")["message"]
    (patch,) = plan.patch
    (reference,) = patch.body["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["uid"], reference["controller"]) == ("LoRAFineTune", UID, True)
    assert patch.body["metadata"]["uid"] == "job-1", "of another Job by its name it says nothing"


def test_references_of_others_stay_beside_the_one_that_is_put_back() -> None:
    """A merge patch replaces the whole list. Ours that controls nothing is replaced."""
    reference = {**make_job_object()["metadata"]["ownerReferences"][0], "controller": False}
    (patch,) = plan_for(make_finetune(status=STATUS), jobs=(parse_job(disowned(OTHER, reference)),)).patch
    assert [owner["uid"] for owner in patch.body["metadata"]["ownerReferences"]] == ["other", UID]


def test_who_takes_the_reference_off_again_and_again_is_not_fought() -> None:
    """The Job is followed without."""
    job = disowned(annotations={RELABELLED_ANNOTATION: str(MOST_RELABELLED)}, status={"active": 1})
    plan = plan_for(make_finetune(status=STATUS), jobs=(parse_job(job),), pods=(running_pod(),))
    assert not [patch for patch in plan.patch if "ownerReferences" in patch.body.get("metadata", {})]
    assert (plan.create, stated(plan, "PodsReady")[0]) == ((), "True")


def test_a_job_that_has_another_controller_is_that_ones() -> None:
    """Whatever its pod template says."""
    job = parse_job(disowned({**OTHER, "controller": True}))
    assert job.owner_uid == "other"
    assert plan_for(make_finetune(status=STATUS), jobs=(job,)).patch == ()


def test_an_operator_that_is_started_anew_knows_it() -> None:
    """By its pod template, which nobody can change."""
    cache = Cache()
    assert cache.jobs.put(disowned(version="5")) == KEY
    assert [job.uid for job in cache.jobs.of(KEY, UID)] == ["job-1"]


@pytest.mark.parametrize(("template", "adopted"), [(None, True), ({}, False)], ids=["ours", "a stranger"])
async def test_one_that_has_lost_its_labels_too_is_adopted_by_name(template: Object | None, *, adopted: bool) -> None:
    """No watch shows it: its name is taken when the Job is to be made. A stranger's Job of that name is left alone."""
    world = World()
    job = disowned(version="30", **({} if template is None else {"spec": {"template": template}}))
    job["metadata"]["labels"] = {}
    world.server.job, world.server.conflict = job, True
    writer, finetune = Writer(world.server, world.cache, Kueue()), make_finetune()
    creation = await writer.create(finetune, make_job_object() | {"kind": "Job"}, patient=False)
    assert (creation.adopted, creation.rejection is None) == (adopted, adopted)
