"""How a run ended."""

import dataclasses

import pytest
from tests.unit.builders import (
    condition_object,
    ended_pod,
    finished_job,
    make_job,
    make_pod,
    make_summary,
    minutes_ago,
    running_pod,
)
from tests.unit.plans import judged

from lora_operator.decide.verdict import Evidence, Verdict, proven_success
from lora_operator.model.objects import JobView, PodView
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import FAILURES, Reason
from lora_trainer.spec.summary import Summary

SPEC = {"activeDeadlineSeconds": 60, "resources": {"memory": "16Gi"}}
TRACEBACK = """Traceback (most recent call last):
  File "/app/lora_trainer/cli.py", line 3, in <module>
    main()
RuntimeError: the token hf_abcdefghijklmnop was refused
"""


def verdict(job: JobView, *pods: PodView) -> Verdict:
    """The verdict on a Job that has ended."""
    found = judged(job, *pods, spec=SPEC)
    assert found is not None
    return found


def failed(*pods: PodView, reason: str = "PodFailurePolicy", message: str = "", count: int = 1) -> Verdict:
    """The verdict on a Job that has failed."""
    return verdict(finished_job("Failed", reason=reason, message=message, failed=count), *pods)


def test_there_is_no_verdict_while_the_job_goes_on() -> None:
    """Also where a pod has ended already, and where the Job is about to fail."""
    assert judged(make_job(), ended_pod(0, make_summary().to_message())) is None
    about_to = make_job(status={"conditions": [condition_object("FailureTarget")]})
    assert judged(about_to) is None
    assert judged(make_job(status={"conditions": [condition_object("Complete", "False")]})) is None


def test_a_summary_of_a_verified_adapter_is_success() -> None:
    """Its time is the Job's."""
    found = verdict(finished_job(), ended_pod(0, make_summary().to_message()))
    assert (found.succeeded, found.why.reason, found.why.since) == (True, Reason.SUCCEEDED, minutes_ago(10))
    assert found.summary == make_summary()


def test_a_verified_adapter_outweighs_what_the_job_says() -> None:
    """The deadline came between the pod's end and the Job's; the adapter is there and has been verified."""
    job = finished_job("Failed", reason="DeadlineExceeded", succeeded=1)
    assert verdict(job, ended_pod(0, make_summary().to_message())).succeeded


def test_a_summary_that_its_job_does_not_confirm_is_no_success() -> None:
    """Who may create pods can write a summary into one; the Job has not counted it."""
    assert not failed(ended_pod(0, make_summary().to_message()), reason="DeadlineExceeded").succeeded
    proven = ended_pod(0, make_summary().to_message())
    stranger = ended_pod(0, make_summary().to_message(), job_uid="somebody-elses")
    assert proven_success([proven], Evidence(jobs=(finished_job(),))) is not None
    assert proven_success([stranger], Evidence(jobs=(finished_job(),))) is None
    assert proven_success([proven], Evidence(jobs=(make_job(),))) is None
    assert proven_success([proven], Evidence(former=(finished_job(),))) is not None, "it had counted it"
    assert proven_success([proven], Evidence(former=(finished_job("Failed"),))) is None
    gone = dataclasses.replace(make_job(), deleting=True)
    for evidence in (Evidence(former=(make_job(),)), Evidence(jobs=(gone,))):
        assert proven_success([proven], evidence) is None, (
            "a Job adopts any pod of its labels, and is deleted after that"
        )


def test_an_image_other_than_the_rendered_one_counts_unless_a_setting_says_otherwise() -> None:
    """Admission may rewrite images."""
    pod = ended_pod(0, make_summary().to_message())
    assert proven_success([pod], Evidence(jobs=(finished_job(),), image="")) is not None
    assert proven_success([pod], Evidence(jobs=(finished_job(),), image="registry.example/other:1")) is None
    assert proven_success([pod], Evidence(jobs=(finished_job(),), image=pod.image)) is not None


@pytest.mark.parametrize("summary", [make_summary(artifact=None), make_summary(results=None)])
def test_a_summary_without_its_proof_is_no_success(summary: Summary) -> None:
    """Reason Succeeded alone is a word."""
    found = verdict(finished_job(), ended_pod(0, summary.to_message()))
    assert (found.succeeded, found.why.reason) == (False, Reason.RESULT_UNKNOWN)


def test_pods_without_a_summary_prove_nothing() -> None:
    """Neither one that runs nor one that has ended well."""
    assert proven_success([running_pod(), ended_pod(0)], Evidence(jobs=(finished_job(),))) is None


def test_a_complete_job_whose_trainer_reports_a_failure_has_failed() -> None:
    """With the trainer's own reason."""
    message = make_summary(Reason.VERIFICATION_FAILED, "The loss differs by 0.2").to_message()
    found = verdict(finished_job(), ended_pod(0, message))
    assert (found.succeeded, found.why.reason) == (False, Reason.VERIFICATION_FAILED)


def test_the_trainers_own_summary_tells_the_reason_of_a_failure() -> None:
    """It knows more than an exit code."""
    message = make_summary(Reason.DATASET_NOT_FOUND, "No file chats.jsonl on the claim data").to_message()
    found = failed(ended_pod(66, message))
    assert found.why.reason is Reason.DATASET_NOT_FOUND
    assert found.why.message == "No file chats.jsonl on the claim data"


CODES = {
    ExitCode.CONFIG_INVALID: Reason.CONFIG_INVALID,
    ExitCode.DATASET_INVALID: Reason.DATASET_INVALID,
    ExitCode.NOT_FOUND: Reason.MODEL_NOT_FOUND,
    ExitCode.NON_FINITE_LOSS: Reason.NON_FINITE_LOSS,
    ExitCode.CUDA_OUT_OF_MEMORY: Reason.CUDA_OUT_OF_MEMORY,
    ExitCode.GPU_FAULT: Reason.GPU_FAULT,
    ExitCode.VERIFICATION_FAILED: Reason.VERIFICATION_FAILED,
    ExitCode.STORAGE: Reason.STORAGE_FULL,
    ExitCode.ACCESS_DENIED: Reason.MODEL_ACCESS_DENIED,
    ExitCode.CHECKPOINT_INVALID: Reason.CHECKPOINT_INVALID,
    ExitCode.KERNEL_OUT_OF_MEMORY: Reason.INTERNAL_ERROR,
    99: Reason.INTERNAL_ERROR,
}


@pytest.mark.parametrize("code", CODES)
def test_without_a_summary_the_exit_code_tells_the_reason(code: int) -> None:
    """And the last line of the log, which is not a stack trace and holds no token."""
    found = failed(ended_pod(code, TRACEBACK))
    assert found.why.reason is CODES[code]
    assert "it last said: RuntimeError: the token hf_*** was refused" in found.why.message
    assert "Traceback" not in found.why.message


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in FAILURES])
def test_a_reason_that_is_no_failure_is_none_whoever_reports_it(reason: Reason) -> None:
    """As of a preflight's report that a training pod leaves: a run does not fail since its preflight has passed."""
    said = make_summary(reason, "all is well").to_message()
    if reason is not Reason.SUCCEEDED:
        found = verdict(finished_job(), ended_pod(0, said))
        assert (found.succeeded, found.why.reason) == (False, Reason.RESULT_UNKNOWN)
    assert failed(ended_pod(1, said)).why.reason is Reason.INTERNAL_ERROR


def test_a_kernel_kill_for_memory_names_the_limit() -> None:
    """Whatever the exit code is."""
    found = failed(ended_pod(1, reason="OOMKilled"), reason="BackoffLimitExceeded")
    assert found.why.reason is Reason.OOM_KILLED
    assert "16Gi" in found.why.message
    assert "spec.resources.memory" in found.why.message


def test_a_container_that_its_node_lost_is_not_called_out_of_memory() -> None:
    """The kubelet makes up the exit code 137 for a container that it finds no more."""
    stated = "The container could not be located when the pod was terminated"
    found = failed(ended_pod(137, stated, reason="ContainerStatusUnknown"), reason="BackoffLimitExceeded")
    assert found.why.reason is Reason.NODE_LOST
    assert stated in found.why.message
    assert "memory" not in found.why.message


def test_a_trainer_that_was_killed_is_not_called_out_of_memory_unless_its_node_says_so() -> None:
    """A liveness probe ends with the same signal, and so does a pod above a limit for disk."""
    killed = failed(ended_pod(137), reason="BackoffLimitExceeded")
    assert killed.why.reason is Reason.BACKOFF_LIMIT_EXCEEDED
    assert "killed (SIGKILL)" in killed.why.message
    assert "liveness probe" in killed.why.message
    full = ("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi")
    stopped = make_summary(Reason.EVICTED, "Stopped at step 7").to_message()
    for code, message in ((137, ""), (143, stopped)):
        found = failed(ended_pod(code, message, evicted=full), reason="BackoffLimitExceeded")
        assert full[1] in found.why.message
        assert "main memory" not in found.why.message


def test_a_deleted_pod_that_is_killed_is_not_called_out_of_memory() -> None:
    """It was told to stop, and did not within its grace period."""
    found = failed(ended_pod(137, "step 3/40", deleting=True), reason="BackoffLimitExceeded")
    assert found.why.reason is Reason.BACKOFF_LIMIT_EXCEEDED
    assert "was deleted and killed" in found.why.message
    assert "memory" not in found.why.message
    starved = failed(ended_pod(137, reason="OOMKilled", deleting=True), reason="BackoffLimitExceeded")
    assert starved.why.reason is Reason.OOM_KILLED


def test_a_trainer_that_fails_after_it_has_published_has_succeeded() -> None:
    """It writes that summary only once the verified adapter lies in its place: an odd end takes nothing away."""
    job = finished_job("Failed", reason="BackoffLimitExceeded", failed=1, succeeded=1)
    assert verdict(job, ended_pod(1, make_summary().to_message())).succeeded


def test_a_success_without_an_artifact_in_the_summary_of_a_failed_trainer_is_not_believed() -> None:
    """Exit code and summary contradict each other, and there is no proof."""
    found = failed(ended_pod(1, make_summary(artifact=None).to_message()), reason="BackoffLimitExceeded")
    assert (found.succeeded, found.why.reason) == (False, Reason.BACKOFF_LIMIT_EXCEEDED)


@pytest.mark.parametrize("code", [1, 75, 143])
def test_retries_that_never_helped_end_as_such_with_the_last_error(code: int) -> None:
    """Where the last failure has no more telling reason."""
    pods = [ended_pod(code, f"error {n}", name=f"pod-{n}", created_at=minutes_ago(50 - n)) for n in range(4)]
    found = failed(*pods, reason="BackoffLimitExceeded", count=4)
    assert found.why.reason is Reason.BACKOFF_LIMIT_EXCEEDED
    assert "error 3" in found.why.message
    assert found.why.message.endswith("(the last of 4 failures, maxRetries is 3)")


def test_a_single_failure_without_a_retry_tells_why_it_is_not_tried_again() -> None:
    """The limit that ended the run is in the sentence."""
    found = failed(ended_pod(75, "ConnectionError: reset"), reason="BackoffLimitExceeded")
    assert found.why.message.endswith("ConnectionError: reset (maxRetries is 3)")
    final = failed(ended_pod(65, "line 3"), reason="PodFailurePolicy")
    assert "maxRetries" not in final.why.message


def test_retries_that_end_with_a_telling_failure_end_with_that() -> None:
    """A GPU that is never there is a GPU fault."""
    found = failed(ended_pod(72, "no GPU"), reason="BackoffLimitExceeded")
    assert found.why.reason is Reason.GPU_FAULT


def test_a_gpu_that_does_not_suit_the_image_is_a_gpu_fault_that_is_final() -> None:
    """By the exit code of a configuration that cannot be honoured, and the reason of the summary."""
    said = "the GPU Tesla V100 has compute capability 7.0, and the trainer's image needs 7.5 or more: choose newer GPUs"
    pod = ended_pod(64, make_summary(Reason.GPU_FAULT, said).to_message())
    found = failed(pod, reason="PodFailurePolicy")
    assert (found.why.reason, found.why.message) == (Reason.GPU_FAULT, said)


def test_a_deadline_tells_the_seconds_and_what_came_before() -> None:
    """The Job deletes the pod that runs, so a success may have gone unseen, and another look is worth it."""
    job = finished_job("Failed", reason="DeadlineExceeded", spec={"activeDeadlineSeconds": 60})
    found = verdict(job)
    assert found.why.reason is Reason.DEADLINE_EXCEEDED
    assert "(60 s)" in found.why.message
    assert "had failed before" not in found.why.message
    assert "had failed before with GPUFault" in verdict(job, ended_pod(72)).why.message


def test_the_pod_that_a_deadline_stops_is_not_reported_as_a_failure_before_it() -> None:
    """The Job deletes it, and it ends as one that was told to stop."""
    job = finished_job("Failed", reason="DeadlineExceeded", spec={"activeDeadlineSeconds": 60})
    stated = make_summary(Reason.EVICTED, "the run was asked to stop before its end").to_message()
    stopped = ended_pod(143, stated, name="b", created_at=minutes_ago(20), deleting=True)
    assert "had failed before" not in verdict(job, stopped).why.message
    assert "had failed before with GPUFault" in verdict(job, stopped, ended_pod(72, name="a")).why.message


def test_the_exit_code_in_the_jobs_message_outlives_the_pod() -> None:
    """As the Job controller words it with a pod failure policy."""
    message = "Container trainer for pod team-a/x-0 failed with exit code 65 matching FailJob rule at index 1"
    found = failed(message=message)
    assert found.why.reason is Reason.DATASET_INVALID


def test_a_failure_that_no_pod_explains_is_as_the_job_says() -> None:
    """It says what the Job says, and what to do."""
    found = failed(reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit")
    assert found.why.reason is Reason.BACKOFF_LIMIT_EXCEEDED
    assert "Job has reached the specified backoff limit" in found.why.message
    assert "without a message" in failed(reason="Odd").why.message


NODE_FAILURES = [
    ("Evicted", "The node was low on resource: memory.", Reason.BACKOFF_LIMIT_EXCEEDED, "low on resource: memory"),
    ("NodeLost", "Node node-1 which was running pod x is unresponsive", Reason.NODE_LOST, "unresponsive"),
    ("UnexpectedAdmissionError", "Allocate failed: no GPU", Reason.BACKOFF_LIMIT_EXCEEDED, "Allocate failed: no GPU"),
    ("", "", Reason.BACKOFF_LIMIT_EXCEEDED, "the node did not say why"),
]


@pytest.mark.parametrize(("why", "message", "reason", "words"), NODE_FAILURES)
def test_a_pod_that_its_node_failed_tells_the_nodes_reason(why: str, message: str, reason: Reason, words: str) -> None:
    """There is no exit code of a trainer."""
    found = failed(make_pod(phase="Failed", reason=why, message=message), reason="BackoffLimitExceeded")
    assert found.why.reason is reason
    assert words in found.why.message


def test_an_evicted_trainer_that_says_why_it_stopped_is_still_evicted() -> None:
    """It was told to stop, and its exit code says so."""
    disruption = condition_object("DisruptionTarget", message="Eviction API: evicting")
    summary = make_summary(Reason.EVICTED, "Stopped at step 7").to_message()
    found = failed(ended_pod(143, summary, conditions=(disruption,)), reason="BackoffLimitExceeded")
    assert "Eviction API: evicting" in found.why.message
    silent = failed(ended_pod(137, conditions=(condition_object("DisruptionTarget"),)), reason="BackoffLimitExceeded")
    assert silent.why.message.startswith("The cluster took pod")


def test_a_trainer_that_failed_by_itself_before_it_was_evicted_tells_its_own_reason() -> None:
    """A disruption does not hide a bad data set."""
    message = make_summary(Reason.DATASET_INVALID, "line 3 is no JSON").to_message()
    found = failed(ended_pod(65, message, conditions=(condition_object("DisruptionTarget"),)))
    assert found.why.reason is Reason.DATASET_INVALID
