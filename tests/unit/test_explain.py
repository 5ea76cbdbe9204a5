"""What `lora-operator explain` says of what it was told, and of what it cannot be told."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from kubernetes.aio.client.configuration import Configuration
from tests.unit.builders import (
    CONFIG,
    NOW,
    condition_object,
    ended_pod,
    finished_job,
    make_event,
    make_finetune,
    make_job,
    make_job_object,
    make_pod,
    make_summary,
    make_workload,
    minutes_ago,
    running_pod,
    with_status,
)

from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.cache import Key
from lora_operator.cluster.login import LoginError
from lora_operator.decision.decide import decide
from lora_operator.running import explain_command
from lora_operator.running.explain import Document, describe, render
from lora_operator.running.explain_command import ExplainError, ReadOnlyApi, explain, parse_place
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import FineTune, Observed
from lora_operator.views.names import QUEUE_LABEL
from lora_operator.views.wording import instant
from lora_trainer.contract.reasons import Reason

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient

PLACE = Key("team-a", "support-tone")


def explained(finetune: FineTune, observed: Observed | None = None, config: OperatorConfig = CONFIG) -> Document:
    """The explanation of a run at `NOW`."""
    seen = dataclasses.replace(observed or Observed())
    return describe(finetune, seen, decide(finetune, seen, config, NOW), config=config, now=NOW)


def test_what_an_event_says_is_one_line_without_a_secret() -> None:
    """A kubelet quotes what a registry answered, and a terminal obeys control characters."""
    pod = make_pod()
    event = make_event(pod.uid, "Failed", "401 from https://me:hunter2@hub.example\n\x1b[2J", seen_at=minutes_ago(3))
    text = render(explained(make_finetune(), Observed(jobs=(make_job(),), pods=(pod,), events=(event,))))
    assert "Warning Failed: 401 from https://***@hub.example [2J" in text


def test_children_are_shown_with_their_ages_and_what_they_say() -> None:
    """Jobs, pods, workloads and Events, and the policy with what is used up of it."""
    unscheduled = condition_object("PodScheduled", "False", since=minutes_ago(5), reason="Unschedulable", message="0/1")
    pod = make_pod(node="", conditions=(unscheduled,))
    event = make_event(pod.uid, "FailedScheduling", "0/1 nodes are available", seen_at=minutes_ago(3))
    workload = make_workload(condition_object("QuotaReserved", since=minutes_ago(50), reason="QuotaReserved"))
    observed = Observed(jobs=(make_job(),), pods=(pod,), workloads=(workload,), events=(event,))
    document = explained(make_finetune(spec={"maxRetries": 5, "activeDeadlineSeconds": 7200}), observed)
    assert document["policy"] | {"maxRetries": 5, "activeDeadlineSeconds": 7200} == document["policy"]
    text = render(document)
    for line in (
        "maxRetries 5, activeDeadlineSeconds 7200, pendingTimeoutSeconds unlimited",
        "usedRetries 0, retries preempted=0 outOfMemory=0 nodeLost=0 error=0",
        "runSeconds 3480, secondsUntilDeadline 3720",
        "State: Unschedulable",
        "What to do: Add a node that fits",
        f"Job/{make_job().name}: train, attempt 1, 59m0s old, 0 active, 0 failed of 3",
        f"Pod/{pod.name}: train, 57m0s old, Pending, node none, trainer not started",
        "    PodScheduled=False Unschedulable for 5m0s",
        "    QuotaReserved=True QuotaReserved for 50m0s",
        f"Event 3m0s ago about Pod/{pod.name}: Warning FailedScheduling: 0/1 nodes are available",
    ):
        assert line in text


def test_what_is_used_up_includes_the_present_time_and_each_cause() -> None:
    """The status closes a period at its end; whoever asks now wants to know what is left now."""
    status = {
        "attempt": 1,
        "runSeconds": 600,
        "activeSince": instant(minutes_ago(10)),
        "activeUntil": instant(minutes_ago(20)),
        "retries": {"preempted": 2, "outOfMemory": 1},
    }
    job = make_job(status={"active": 1, "startTime": instant(minutes_ago(10))})
    finetune = make_finetune(spec={"activeDeadlineSeconds": 7200}, status=status)
    policy = explained(finetune, Observed(jobs=(job,)))["policy"]
    assert (policy["runSeconds"], policy["secondsUntilDeadline"]) == (1200, 6000)
    assert policy["retries"] == {"preempted": 2, "outOfMemory": 1, "nodeLost": 0, "error": 0}
    assert policy["usedRetries"] == 1
    assert "secondsUntilDeadline" not in explained(make_finetune(), Observed(jobs=(job,)))["policy"]


@pytest.mark.parametrize("job_uid", ["", "job-of-before"])
def test_a_pod_whose_job_is_gone_is_shown_as_an_orphan(job_uid: str) -> None:
    """Also while its owner reference still names that Job."""
    orphan = make_pod(job_uid=job_uid)
    assert explained(make_finetune(), Observed(pods=(orphan,)))["sees"]["pods"][0]["orphan"]
    assert ", orphan" in render(explained(make_finetune(), Observed(pods=(orphan,))))
    of_a_job = explained(make_finetune(), Observed(jobs=(make_job(),), pods=(make_pod(),)))
    assert not of_a_job["sees"]["pods"][0]["orphan"]


def test_planned_writes_are_shown_and_a_status_as_its_differences() -> None:
    """A field each, and a condition as one."""
    document = explained(make_finetune())
    kinds = [name.partition("/")[0] for name in document["plans"]["create"]]
    assert kinds == ["Job"]
    assert "attempt: nothing -> 1" in document["plans"]["status"]
    assert any(
        line.startswith("conditions.Accepted: nothing -> True Accepted (") for line in document["plans"]["status"]
    )
    assert "No operator has written a status yet" in document["notes"][0]
    assert "  create  Job/" in render(document)


def test_a_run_at_rest_has_nothing_to_be_written() -> None:
    """The status is the one that is stored."""
    observed = Observed(jobs=(make_job(),))
    plan = decide(make_finetune(), observed, CONFIG, NOW)
    document = explained(with_status(make_finetune(), plan.status), observed)
    assert document["plans"]["status"] == document["plans"]["create"] == document["notes"] == []
    assert "(this command writes nothing)\n  nothing\n" in render(document)


def test_an_ended_run_says_that_its_verdict_stands() -> None:
    """And what is cleaned up."""
    pod = ended_pod(65, make_summary(Reason.DATASET_INVALID, "line 3 is no JSON").to_message())
    observed = Observed(jobs=(finished_job("Failed", failed=1),), pods=(pod,))
    finetune = make_finetune(spec={"ttlSecondsAfterFinished": 60})
    ended = with_status(finetune, decide(finetune, observed, CONFIG, NOW).status)
    document = explained(ended, observed)
    assert document["decides"]["verdict"] == "failed"
    assert document["decides"]["why"] == (
        "The run has ended, and its verdict never changes: line 3 is no JSON; "
        "what is left of its attempt is cleaned up now"
    )
    assert document["plans"]["patch"]


def test_the_advice_of_the_status_is_repeated() -> None:
    """A run whose result goes to no claim, and that names none for checkpoints."""
    document = explained(make_finetune(spec={"output": {"uri": "s3://adapters/tone"}}), Observed(jobs=(make_job(),)))
    assert len(document["decides"]["advice"]) == 1
    assert "spec.checkpoint.volumeClaimName" in document["decides"]["advice"][0]
    said = "The result goes to s3://adapters/tone, and no claim is named"
    assert document["decides"]["advice"][0].startswith("Warning: A restart loses what the run has done: ")
    assert document["decides"]["advice"][0].endswith(f" ({said})")
    assert f"  {document['decides']['advice'][0]}\n" in render(document)


def test_advice_on_the_state_does_not_repeat_it() -> None:
    """What was seen is the very sentence that the state has, which stands above it."""
    silent = running_pod(conditions=(condition_object("Ready", "False", since=minutes_ago(6)),))
    document = explained(make_finetune(), Observed(jobs=(make_job(),), pods=(silent,)))
    assert document["decides"]["state"] == "NodeUnreachable"
    (line,) = [line for line in document["decides"]["advice"] if "Look at the node" in line]
    assert (line.startswith("Warning: "), line.endswith(" continues elsewhere")) == (True, True)


def test_a_namespace_that_the_operator_does_not_watch_is_named() -> None:
    """The most common reason for a run that nothing happens to."""
    document = explained(make_finetune(), config=dataclasses.replace(CONFIG, namespaces=("team-b",)))
    assert document["notes"][0].startswith("The operator with this configuration does not watch namespace team-a: add")


@pytest.mark.parametrize("text", ["tone", "team/", "/tone", "Team/tone", "a/b/c", "team/tone extra", ""])
def test_what_is_no_place_is_refused_with_an_example(text: str) -> None:
    """Before anything is asked."""
    with pytest.raises(ExplainError, match="is not NAMESPACE/NAME: give the namespace and the name, as in"):
        parse_place(text)


def test_a_place_is_a_namespace_and_a_name() -> None:
    """As kubectl get --all-namespaces shows them."""
    assert parse_place("team-a/support-tone") == PLACE


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ApiError(404, "NotFound", 'lorafinetunes.lora-operator.io "support-tone" not found'), "There is no LoRAFine"),
        (ApiError(404, "NotFound", "the server could not find the requested resource"), "The cluster does not know"),
        (ApiError(401, "Unauthorized", "Unauthorized"), "The API server does not accept these credentials"),
        (ApiError(403, "Forbidden", "pods is forbidden"), "You lack a right (pods is forbidden): ask for get and list"),
        (ApiError(500, "InternalError", "etcd"), "The API server refused to answer: 500 InternalError: etcd"),
        (UnreachableError("GET /x: refused"), "The API server does not answer (GET /x: refused): check"),
        (LoginError("There is no way: set KUBECONFIG"), "There is no way: set KUBECONFIG"),
    ],
)
async def test_every_failure_is_a_sentence(error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cluster answers, or does not."""

    async def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(explain_command, "load_configuration", fail)
    with pytest.raises(ExplainError) as caught:
        await explain(PLACE, CONFIG, "text")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("form", sorted(explain_command.FORMS))
async def test_what_a_tenant_wrote_is_no_instruction_for_a_terminal(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An administrator explains what anyone may have put into names, annotations and messages."""
    said = "日本 \x9b2J \x1b]52;c;cm0gLXJmIH4=\x07 \u202etxt"

    async def configuration() -> Configuration:
        return Configuration()

    async def document(*_: Any) -> Document:
        return {**explained(make_finetune()), "notes": [said, "plain\u202e"]}

    monkeypatch.setattr(explain_command, "load_configuration", configuration)
    monkeypatch.setattr(explain_command, "_read_and_describe", document)
    await explain(PLACE, CONFIG, form)
    printed = capsys.readouterr().out
    assert "]52;c;cm0gLXJmIH4=" in printed
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed)
    if form != "text":
        assert yaml.safe_load(printed)["notes"] == [said, "plain\u202e"]


class Shelf:
    """Answers of an API server by path; what is not there may not be read."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers

    async def request(self, method: str, path: str, **_: Any) -> Any:
        """The answer that lies there."""
        assert method == "GET"
        if path not in self.answers:
            raise ApiError(403, "Forbidden", f"{path.rpartition('/')[2]} is forbidden")
        return self.answers[path]

    async def read(self, path: str, _query: Mapping[str, str]) -> tuple[Any, int]:
        """The same."""
        return await self.request("GET", path), 1


async def test_what_may_not_be_read_of_queue_and_events_is_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They only explain; the rest is explained without them."""
    manifest = make_finetune(metadata={"labels": {QUEUE_LABEL: "gpus"}}).manifest
    kueue, job = "/apis/kueue.x-k8s.io", make_job_object(queue="gpus", spec={"suspend": True})
    shelf = Shelf(
        {
            "/apis/lora-operator.io/v1alpha1/namespaces/team-a/lorafinetunes/support-tone": manifest,
            "/apis/batch/v1/namespaces/team-a/jobs": {"items": [job]},
            f"/apis/batch/v1/namespaces/team-a/jobs/{job['metadata']['name']}": job,
            "/api/v1/namespaces/team-a/pods": {"items": []},
            kueue: {"versions": [{"version": "v1beta2"}]},
            f"{kueue}/v1beta2": {"resources": [{"name": "workloads"}]},
        }
    )

    async def configuration() -> Configuration:
        return Configuration()

    monkeypatch.setattr(explain_command, "load_configuration", configuration)
    monkeypatch.setattr(ReadOnlyApi, "request", shelf.request)
    monkeypatch.setattr(ReadOnlyApi, "read", shelf.read)
    await explain(PLACE, CONFIG, "text")
    stated = capsys.readouterr().out
    assert "State: Queued" in stated
    assert "Kueue's Workloads cannot be read, so what its queue says is missing: workloads is forbidden" in stated
    assert "The Events of the children cannot be read, so a reason may be missing: events is forbidden" in stated


class NoClient:
    """A client that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@pytest.mark.parametrize(
    ("method", "body"), [("POST", {}), ("PUT", {}), ("PATCH", {}), ("DELETE", None), ("GET", {"spec": {}})]
)
async def test_nothing_can_be_written_by_accident(method: str, body: Mapping[str, Any] | None) -> None:
    """The request never leaves the process."""
    with pytest.raises(ValueError, match=f"explain only reads, and this is {method} /api"):
        await ReadOnlyApi(cast("ApiClient", NoClient())).request(method, "/api", body=body)
