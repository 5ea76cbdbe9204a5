"""A resource that is being deleted while somebody else's finalizer keeps it: garbage collection begins after that."""

from typing import Any

import pytest
from tests.unit.builders import (
    NAME,
    NAMESPACE,
    NOW,
    condition_object,
    finished_job,
    job_name,
    make_finetune,
    make_job,
)
from tests.unit.plans import finished, plan_for

from lora_operator.cluster.store import Key, Stores
from lora_operator.model.names import PREFLIGHT
from lora_operator.model.objects import FineTune, ObjectRef, Plan
from lora_operator.model.observe import parse_finetune
from lora_operator.model.wording import instant

FOREIGN = "team.example/keep"
STATUS: dict[str, Any] = {"attempt": 1, "jobName": job_name()}


def leaving(*finalizers: str) -> FineTune:
    return make_finetune(metadata={"deletionTimestamp": instant(NOW), "finalizers": list(finalizers)}, status=STATUS)


def test_its_jobs_that_go_on_are_deleted_after_a_live_read() -> None:
    """They would train for whoever has given the run up, and hold their GPUs, for as long as the finalizer is there."""
    plan = plan_for(leaving(FOREIGN), jobs=(make_job(), make_job(stage=PREFLIGHT)))
    assert plan.delete == (
        ObjectRef(kind="Job", name=job_name(), uid="job-1"),
        ObjectRef(kind="Job", name=job_name(1, PREFLIGHT), uid=f"{PREFLIGHT}-1"),
    )
    assert {job_name(), job_name(1, PREFLIGHT)} <= plan.verify
    assert plan.status == STATUS


def test_so_are_those_of_one_that_has_ended() -> None:
    """A Job that was given up, and whose deletion was refused."""
    manifest = finished().manifest
    gone = {**manifest["metadata"], "deletionTimestamp": instant(NOW), "finalizers": [FOREIGN]}
    plan = plan_for(parse_finetune({**manifest, "metadata": gone}), jobs=(make_job(),))
    assert [target.name for target in plan.delete] == [job_name()]


@pytest.mark.parametrize(
    "finalizers",
    [
        (),
        ("orphan",),
        ("foregroundDeletion",),
        (FOREIGN, "orphan"),
        ("foregroundDeletion", FOREIGN),
        (*(f"{FOREIGN}-{number}" for number in range(1000)), "orphan"),
    ],
)
def test_garbage_collection_that_has_begun_or_follows_at_once_is_left_to_it(finalizers: tuple[str, ...]) -> None:
    """It keeps the Jobs whose user wants them kept."""
    assert plan_for(leaving(*finalizers), jobs=(make_job(),)) == Plan(status=STATUS, rule="deleting")


@pytest.mark.parametrize(
    "job",
    [
        finished_job(),
        make_job(status={"conditions": [condition_object("FailureTarget")]}),
        make_job(deleting=True),
        make_job(owner_uid="other"),
        make_job(owner_uid=""),
    ],
    ids=["ended", "ends", "is deleted", "of another run", "orphaned"],
)
def test_other_jobs_stay(job: Any) -> None:
    """What holds no GPU for long, and what is not the run's."""
    plan = plan_for(leaving(FOREIGN), jobs=(job,))
    assert plan == Plan(status=STATUS, rule="deleting")


def test_a_resource_that_stays_is_run_whatever_its_finalizers() -> None:
    """They are looked at once it is being deleted."""
    assert make_finetune(metadata={"finalizers": [FOREIGN, "orphan"]}) == make_finetune()


def test_what_is_read_of_finalizers_survives_packing_and_is_bounded() -> None:
    """A finished run is kept packed; a list of finalizers may be as large as the resource."""
    cache = Stores()
    many = [f"{FOREIGN}-{number}" for number in range(1000)]
    manifest = {**finished().manifest}
    manifest["metadata"] = {**manifest["metadata"], "deletionTimestamp": instant(NOW), "finalizers": many}
    cache.finetunes.put(manifest)
    kept = cache.finetunes.get(Key(NAMESPACE, NAME))
    assert kept is not None
    assert kept.lingers
    assert len(kept.manifest["metadata"]["finalizers"]) == 1
