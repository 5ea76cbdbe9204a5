"""A run from `kubectl apply` to its verdict, on a real control plane, with a kubelet that is played."""

import json
from functools import partial

import pytest
from tests.component.documents import failed, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone

from lora_trainer.spec.reasons import Reason


def test_a_new_resource_gets_a_job_that_it_owns_and_that_holds_its_configuration(stage: Stage) -> None:
    """It carries a controller reference, so that the garbage collector takes it with the resource."""
    stage.start()
    uid = stage.apply()["metadata"]["uid"]
    job = stage.wait_job()
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (uid, True)
    pod = stage.wait_pod(job)
    assert json.loads(pod["metadata"]["annotations"]["lora-operator.io/config"])["run"]["uid"] == uid
    accepted = stage.wait_condition("Accepted", status="True")
    assert accepted["observedGeneration"] == 1
    assert stage.finetune()["status"]["jobName"] == job["metadata"]["name"]


def test_a_pod_that_ends_with_a_verified_adapter_completes_the_run(stage: Stage) -> None:
    """Starting, then Complete with what the trainer's summary says, in status and metrics."""
    operator = stage.start()
    stage.apply()
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.wait_condition("PodsReady", status="True")
    stage.end_pod(pod, 0, succeeded())
    complete = stage.wait_condition("Complete", status="True")
    assert complete["reason"] == "Succeeded"
    status = stage.finetune()["status"]
    assert status["artifact"]["uri"] == "pvc://adapters/tone/tone-abcde"
    assert status["resolved"]["device"] == "cpu"
    assert status["completionTime"]
    assert stage.condition("ArtifactPublished")["status"] == "True"
    finished = 'lorafinetune_finished_total{result="succeeded"}'
    assert eventually(lambda: operator.metric(finished), "the end is counted") == 1.0
    assert operator.metric(f'lorafinetune_final_eval_loss{{name="tone",namespace="{stage.namespace}"}}') == 2.0


def test_an_exit_code_without_a_summary_never_completes_a_run(stage: Stage) -> None:
    """A trainer that ends with 0 and proves nothing has failed."""
    stage.start()
    stage.apply()
    stage.end_pod(stage.wait_pod(stage.wait_job()), 0, "bye")
    stage.wait_condition("Failed", status="True", reason="ResultUnknown")
    assert stage.condition("Complete")["status"] == "False"


def test_a_bad_data_set_fails_the_run_at_once_with_the_trainers_sentence(stage: Stage) -> None:
    """Exit code 65 is final: no retry, and the message reaches the status, the events and the metrics."""
    operator = stage.start()
    stage.apply()
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.end_pod(pod, 65, failed(Reason.DATASET_INVALID, "line 17 has no field 'output': add it"))
    verdict = stage.wait_condition("Failed", status="True", reason="DatasetInvalid")
    assert "line 17" in verdict["message"]
    assert len(stage.objects("pods")) == 1
    finished = 'lorafinetune_finished_total{result="failed"}'
    assert eventually(lambda: operator.metric(finished), "the end is counted") == 1.0
    stage.wait_event("Normal", "Accepted")
    assert "line 17" in stage.wait_event("Warning", "DatasetInvalid")["message"]


def test_a_killed_trainer_is_retried_and_the_restart_is_counted(stage: Stage) -> None:
    """The Job's own back-off makes a new pod; the operator tells of it and counts it once."""
    operator = stage.start()
    stage.apply()
    job = stage.wait_job()
    first = stage.wait_pod(job)
    stage.run_pod(first)
    stage.wait_condition("PodsReady", status="True")
    stage.end_pod(first, 137, reason="OOMKilled")
    second = stage.wait_pod(job, other_than=first["metadata"]["uid"])
    stage.run_pod(second)
    stage.wait_condition("PodsReady", status="True")
    restarts = f'lorafinetune_retries_total{{kind="used",name="tone",namespace="{stage.namespace}"}}'
    assert eventually(lambda: operator.metric(restarts), "the restart is counted") == 1.0
    assert stage.finetune()["status"]["podName"] == second["metadata"]["name"]


@pytest.mark.parametrize(
    ("waiting", "message", "reason"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "registry.example/lora-trainer:test"', "ImagePullBackOff"),
        ("CreateContainerConfigError", 'secret "hf-token" not found', "SecretNotFound"),
    ],
)
def test_a_pod_that_does_not_come_up_says_why(stage: Stage, waiting: str, message: str, reason: str) -> None:
    """The kubelet's reason for waiting becomes the reason of PodsReady."""
    stage.start()
    stage.apply()
    pod = stage.wait_pod(stage.wait_job())
    stage.wait_pod_state(pod, waiting, message)
    stage.wait_condition("PodsReady", status="False", reason=reason)


def test_a_pod_whose_claim_is_missing_names_it(stage: Stage) -> None:
    """The scheduler's complaint becomes a reason, and the claim's name is in the message."""
    stage.start()
    stage.apply()
    found = stage.wait_condition("PodsReady", status="False", reason="VolumeNotReady")
    assert "PersistentVolumeClaim data" in found["message"]


def test_suspend_stops_the_pod_and_resume_brings_a_new_one(stage: Stage) -> None:
    """The Job is suspended by its own field; the run goes on afterwards in the same Job."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    first = stage.wait_pod(job)
    stage.change(suspend=True)
    stage.wait_condition("Suspended", status="True", reason="SuspendedByUser")
    eventually(partial(gone, stage.api, stage.path("pods", first["metadata"]["name"])), "the pod is gone")
    stage.change(suspend=False)
    stage.wait_pod(job, other_than=first["metadata"]["uid"])
    stage.wait_condition("Suspended", status="False")
    assert [j["metadata"]["uid"] for j in stage.objects("jobs")] == [job["metadata"]["uid"]]


def test_a_deleted_job_is_made_again_as_the_next_attempt(stage: Stage) -> None:
    """What was deleted by hand is a new Job with another name, and counts."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    stage.wait_condition("Accepted", status="True")
    stage.api.delete(stage.path("jobs", job["metadata"]["name"]) + "?propagationPolicy=Foreground")
    again = stage.wait_job(attempt=2)
    assert again["metadata"]["name"] != job["metadata"]["name"]
    eventually(lambda: stage.finetune()["status"].get("attempt") == 2, "the status tells of attempt 2")
    stage.wait_event("Warning", "JobRecreated")


def test_a_job_whose_controller_reference_is_taken_off_gets_it_back(stage: Stage) -> None:
    """Its pod runs on, no other attempt begins, and the garbage collector takes it with the resource again."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    stage.run_pod(stage.wait_pod(job))
    stage.wait_condition("PodsReady", status="True")
    path = stage.path("jobs", job["metadata"]["name"])
    stage.api.patch(path, {"metadata": {"ownerReferences": None}})
    owners = job["metadata"]["ownerReferences"]
    eventually(lambda: stage.api.get(path)["metadata"].get("ownerReferences") == owners, "the reference is back")
    assert [found["metadata"]["uid"] for found in stage.objects("jobs")] == [job["metadata"]["uid"]]
    assert stage.condition("PodsReady")["status"] == "True"


def test_deleting_the_resource_takes_its_children_with_it(stage: Stage) -> None:
    """No finalizer holds it up, with the operator there."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    stage.api.delete(stage.path("lorafinetunes", "tone"))
    path = stage.path("jobs", job["metadata"]["name"])
    eventually(partial(gone, stage.api, path), f"{path} is gone")


def test_the_time_to_live_takes_the_job_and_leaves_the_verdict(stage: Stage) -> None:
    """The Job goes, after the status was written."""
    stage.start()
    stage.apply(ttlSecondsAfterFinished=0)
    job = stage.wait_job()
    pod = stage.wait_pod(job)
    stage.run_pod(pod)
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True")
    path = stage.path("jobs", job["metadata"]["name"])
    eventually(partial(gone, stage.api, path), f"{path} is gone")
    assert stage.condition("Complete")["status"] == "True"
