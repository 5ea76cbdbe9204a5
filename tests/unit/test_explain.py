"""`lora-operator explain`: what is seen of a run, and the plan."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from kubernetes.aio.client.configuration import Configuration
from tests.unit.builders import (
    CONFIG,
    NOW,
    ended_pod,
    finished_job,
    make_event,
    make_finetune,
    make_job,
    make_job_object,
    make_pod,
    make_summary,
    minutes_ago,
    running_pod,
    with_status,
)
from tests.unit.deciding import decide

from lora_operator import explain as module
from lora_operator.cluster.api import ApiError, UnreachableError
from lora_operator.cluster.login import LoginError
from lora_operator.cluster.store import Key
from lora_operator.explain import Document, ExplainError, ReadOnlyApi, describe, explain, parse_place
from lora_operator.model.names import QUEUE_LABEL
from lora_operator.model.objects import FineTune, Observed
from lora_trainer.spec.reasons import Reason

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient

PLACE = Key("team-a", "support-tone")


def explained(finetune: FineTune, observed: Observed) -> Document:
    """The explanation of a run at `NOW`."""
    return describe(finetune, observed, decide(finetune, observed, CONFIG, NOW))


def test_what_is_seen_is_shown_without_what_is_unset_and_without_secrets() -> None:
    """A kubelet quotes what a registry answered."""
    pod = make_pod()
    event = make_event(pod.uid, "Failed", "401 from https://me:hunter2@hub.example", seen_at=minutes_ago(3))
    seen = explained(make_finetune(), Observed(jobs=(make_job(),), pods=(pod,), events=(event,)))
    observed = seen["observed"]
    assert (observed["jobs"][0]["name"], observed["pods"][0]["phase"]) == (make_job().name, "Pending")
    assert observed["events"][0]["message"] == "401 from https://***@hub.example"
    assert observed["events"][0]["last_seen"] == "2026-03-01T11:57:00Z"
    assert not {"kueue", "workloads", "progress"} & set(observed)


def test_the_plan_is_shown_with_what_it_would_change_of_the_status() -> None:
    """Before the first turn all of it; of a run at rest nothing."""
    document = explained(make_finetune(), Observed())
    assert [made["kind"] for made in document["plan"]["create"]] == ["Job"]
    assert document["plan"]["status"]["attempt"] == 1
    assert document["notes"] == [module.UNTAKEN]
    observed = Observed(jobs=(make_job(),), pods=(running_pod(),))
    known = with_status(make_finetune(), decide(make_finetune(), observed, CONFIG, NOW).status)
    rests = explained(known, observed)
    assert not {"create", "patch", "status", "delete", "ask_progress"} & set(rests["plan"])
    assert rests["asks_for_progress"] == running_pod().name
    assert "notes" not in rests


def test_the_state_is_the_one_that_is_decided() -> None:
    """And of a run that has ended, the verdict."""
    pod = ended_pod(65, make_summary(Reason.DATASET_INVALID, "line 3 is no JSON").to_message())
    document = explained(make_finetune(), Observed(jobs=(finished_job("Failed", failed=1),), pods=(pod,)))
    assert (document["state"], document["message"]) == ("DatasetInvalid", "line 3 is no JSON")


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

    monkeypatch.setattr(module, "load_configuration", fail)
    with pytest.raises(ExplainError) as caught:
        await explain(PLACE, CONFIG)
    assert str(caught.value).startswith(sentence)


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
    """They only explain; the rest is explained without them. What a tenant wrote is no instruction for a terminal."""
    said = "日本 \x9b2J \x1b]52;c;cm0gLXJmIH4=\x07 \u202etxt"
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

    monkeypatch.setattr(module, "load_configuration", configuration)
    monkeypatch.setattr(ReadOnlyApi, "request", shelf.request)
    monkeypatch.setattr(ReadOnlyApi, "read", shelf.read)
    await explain(PLACE, dataclasses.replace(CONFIG, namespaces=("team-b",)), notes=[said])
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed)
    stated = yaml.safe_load(printed)
    assert stated["state"] == "Queued"
    assert stated["notes"][:4] == [
        said,
        "The operator with this configuration does not watch namespace team-a",
        "Kueue's Workloads cannot be read, so what its queue says is missing: workloads is forbidden",
        "The Events of the children cannot be read, so a reason may be missing: events is forbidden",
    ]


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
