"""What comes before the training and what runs beside it: the preflight, several nodes, checkpoints."""

from functools import partial

import pytest
from tests.component.documents import failed, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.unit.reports import make_plan, make_report

from lora_operator.model.names import CONFIG_ANNOTATION, PREFLIGHT, TRAIN
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.spec.reasons import Reason

RUN = {"preflight": "Run"}


def test_a_run_is_looked_at_before_a_gpu_is_asked_for_and_trains_as_planned(stage: Stage) -> None:
    """A Job without GPUs first, the training Job when it has succeeded; both stay until the end, like the plan."""
    stage.start()
    stage.apply(**RUN, quantization="Auto")
    pod = stage.wait_pod(stage.wait_job(stage=PREFLIGHT))
    assert "nvidia.com/gpu" not in pod["spec"]["containers"][0]["resources"]["limits"]
    stage.run_pod(pod)
    stage.wait_condition("Complete", status="Unknown", reason="Preflight")
    stage.wait_condition("PreflightPassed", status="Unknown", reason="Preflight")
    assert stage.jobs_of(TRAIN) == []
    stage.end_pod(pod, 0, make_report().to_message())
    job = stage.wait_job()
    stage.wait_condition("PreflightPassed", status="True", reason="PreflightPassed")
    config = TrainConfig.from_json(job["spec"]["template"]["metadata"]["annotations"][CONFIG_ANNOTATION])
    assert config.quantization is Quantization.NONE
    assert config.planned is not None
    training = stage.wait_pod(job)
    stage.run_pod(training)
    stage.wait_condition("PodsReady", status="True")
    stage.end_pod(training, 0, succeeded())
    stage.wait_condition("Complete", status="True")
    status = stage.finetune()["status"]
    assert status["resolved"]["quantization"] == "None"
    assert status["plan"]["peakMemory"] == "18.7 GiB"
    assert status["preflight"]["dataset"]["trainSamples"] == 200
    assert len(stage.objects("jobs")) == 2


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (66, Reason.MODEL_NOT_FOUND, "spec.model.uri is hf://acme/model: the Hub has no such"),
        (64, Reason.DOES_NOT_FIT, "The run needs 21 GiB, and the GPU has 16: write quantization NF4"),
    ],
    ids=str,
)
def test_a_run_that_would_fail_makes_no_training_job(stage: Stage, code: int, reason: Reason, said: str) -> None:
    """The verdict has the trainer's sentence, and the plan stays to be read."""
    stage.start()
    stage.apply(**RUN)
    pod = stage.wait_pod(stage.wait_job(stage=PREFLIGHT))
    stage.run_pod(pod)
    stage.end_pod(pod, code, failed(reason, said, plan=make_plan(fits=False)))
    verdict = stage.wait_condition("Failed", status="True", reason=reason.value)
    assert said in verdict["message"]
    assert stage.condition("PreflightPassed")["status"] == "False"
    assert stage.finetune()["status"]["plan"]["fits"] is False
    assert stage.jobs_of(TRAIN) == []
    assert len(stage.objects("pods")) == 1


def test_a_run_that_skips_it_trains_at_once(stage: Stage) -> None:
    """And has no condition about it."""
    stage.start()
    stage.apply(preflight="Skip")
    stage.wait_job()
    stage.wait_condition("Accepted", status="True")
    assert stage.jobs_of(PREFLIGHT) == []
    assert stage.condition("PreflightPassed") == {}


def test_an_operator_that_was_killed_meanwhile_goes_on_with_one_training_job(stage: Stage) -> None:
    """What was found while nobody looked is not found out again."""
    stage.start()
    stage.apply(**RUN)
    looking = stage.wait_job(stage=PREFLIGHT)
    pod = stage.wait_pod(looking)
    stage.operators[-1].kill()
    stage.end_pod(pod, 0, make_report().to_message())
    stage.start()
    training = stage.wait_job()
    stage.wait_condition("PreflightPassed", status="True")
    stage.operators[-1].kill()
    stage.start()
    stage.wait_condition("Accepted", status="True")
    assert stage.finetune()["status"]["plan"]["fits"] is True
    assert {j["metadata"]["uid"] for j in stage.objects("jobs")} == {
        looking["metadata"]["uid"],
        training["metadata"]["uid"],
    }


def test_a_preflight_is_made_again_when_its_job_is_deleted_and_held_when_the_run_is_suspended(stage: Stage) -> None:
    """Under the same name, and no attempt is counted."""
    stage.start()
    stage.apply(**RUN)
    first = stage.wait_job(stage=PREFLIGHT)
    stage.wait_condition("Accepted", status="True")
    path = stage.path("jobs", first["metadata"]["name"])
    stage.api.delete(path + "?propagationPolicy=Background")

    def again() -> bool:
        return any(j["metadata"]["uid"] != first["metadata"]["uid"] for j in stage.jobs_of(PREFLIGHT))

    eventually(again, "the Job is made again")
    pod = stage.wait_pod(stage.wait_job(stage=PREFLIGHT))
    stage.change(suspend=True)
    stage.wait_condition("Suspended", status="True", reason="SuspendedByUser")
    eventually(partial(gone, stage.api, stage.path("pods", pod["metadata"]["name"])), "the pod is gone")
    assert "attempt" not in stage.finetune()["status"]


def test_several_nodes_train_as_one_job_with_a_name_for_each_pod(stage: Stage) -> None:
    """A headless Service that the resource owns, a pod for each index; ready when all run, complete when all ended."""
    stage.start()
    uid = stage.apply(resources={"nodes": 2})["metadata"]["uid"]
    job = stage.wait_job()
    name = job["metadata"]["name"]
    service = stage.api.get(stage.path("services", name))
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["ownerReferences"][0]["uid"] == uid
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    first, second = stage.wait_pods(job, 2)
    hosts = [(pod["spec"]["hostname"], pod["spec"]["subdomain"]) for pod in (first, second)]
    assert hosts == [(f"{name}-0", name), (f"{name}-1", name)]
    stage.run_pod(second, ip="127.82.0.2")
    eventually(lambda: "1 of 2 pods run" in stage.condition("PodsReady").get("message", ""), "one pod runs")
    stage.run_pod(first)
    stage.wait_condition("PodsReady", status="True")
    assert stage.finetune()["status"]["podName"] == first["metadata"]["name"]
    stage.end_pod(second, 0)
    stage.end_pod(first, 0, succeeded())
    stage.wait_condition("Complete", status="True", reason="Succeeded")
    stage.api.delete(stage.path("lorafinetunes", "tone"))
    eventually(partial(gone, stage.api, stage.path("services", name)), "the Service goes with the resource")


def test_the_next_pods_of_several_nodes_come_after_seconds_although_all_of_them_ended(stage: Stage) -> None:
    """By the number of all that failed the Job would wait ten minutes, from the first round on."""
    stage.start()
    stage.apply(resources={"nodes": 7})
    job = stage.wait_job()
    for made in (7, 14):
        pods = [pod for pod in stage.wait_pods(job, made) if pod["status"]["phase"] == "Pending"]
        for pod in pods:
            stage.run_pod(pod)
        for pod in pods:
            stage.end_pod(pod, 143)
    stage.wait_pods(job, 21)


def test_the_cause_is_reported_when_one_node_ends_all(stage: Stage) -> None:
    """The pod with a final exit code decides; the Job stops the other one."""
    stage.start()
    stage.apply(resources={"nodes": 2}, maxRetries=1)
    job = stage.wait_job()
    assert job["spec"]["backoffLimit"] == 2
    first, second = stage.wait_pods(job, 2)
    stage.run_pod(first)
    stage.run_pod(second, ip="127.82.0.2")
    stage.wait_condition("PodsReady", status="True")
    stage.end_pod(second, 65, failed(Reason.DATASET_INVALID, "line 17 has no field 'output': add it"))
    path = stage.path("pods", first["metadata"]["name"])
    eventually(lambda: "deletionTimestamp" in stage.api.get(path)["metadata"], "the other pod is told to stop")
    stage.wait_condition("Complete", status="Unknown", reason="DatasetInvalid")
    stage.end_pod(first, 143)
    verdict = stage.wait_condition("Failed", status="True", reason="DatasetInvalid")
    assert "line 17" in verdict["message"]


def test_a_run_without_a_claim_for_checkpoints_is_accepted_and_says_what_that_means(stage: Stage) -> None:
    """Its output goes to a bucket, and no claim is named."""
    stage.start()
    stage.apply(output={"uri": "s3://adapters/tone"})
    stage.wait_condition("Accepted", status="True")
    warned = stage.wait_condition("CheckpointSaved", status="False", reason="NoCheckpointClaim")
    assert "spec.checkpoint.volumeClaimName" in warned["message"]
