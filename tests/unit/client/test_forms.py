"""What verbs print in each form of `-o`, by a cluster of one run."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from tests.unit.client.resources import condition, finished, resource

from lora_client.cluster.connection import Cluster
from lora_client.errors import ClientError
from lora_client.output import Form
from lora_client.runs import ClusterRun
from lora_client.verbs.changing import clone
from lora_client.verbs.logs import logs
from lora_client.verbs.serve import serve

Object = dict[str, Any]
NAMED = "lorafinetune.lora-operator.io/tone-2\n"


class OneRun(Cluster):
    """Of which every manifest is good; `pods` are those of the run."""

    def __init__(self, *pods: Object) -> None:
        self.namespace = "team-a"
        self._pods = pods
        self.status = finished()

    def get(self, plural: str, name: str) -> Object:
        return resource(name, status=self.status)

    def items(self, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False) -> list[Object]:
        return list(self._pods) if plural == "pods" else []

    def request(self, method: str, path: str, **_: object) -> Object:
        assert method == "POST"
        return {}


@pytest.mark.parametrize(
    ("kind", "want"),
    [("vllm", "deployment.apps/tone\nservice/tone\n"), ("kserve", "inferenceservice.serving.kserve.io/tone\n")],
)
def test_what_serves_is_named_as_kubectl_names_it(kind: str, want: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By `-o name`."""
    serve(OneRun(), "tone", kind, Form.NAME)
    assert capsys.readouterr().out == want


@pytest.mark.parametrize("form", Form)
def test_a_clone_that_is_only_tried_is_printed_in_the_form(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    """As YAML where none is asked for."""
    clone(OneRun(), "tone", None, [], form, dry=True)
    out = capsys.readouterr().out
    assert (out == NAMED) is (form is Form.NAME)
    assert form is Form.NAME or yaml.safe_load(out)["metadata"]["name"] == "tone-2"
    assert out.startswith("{") is (form is Form.JSON)


def test_a_log_is_named_by_its_pod(capsys: pytest.CaptureFixture[str]) -> None:
    """The pod is not read for that; where it is gone, neither is the log that was kept."""
    owner = {"kind": "Job", "name": "tone-abcde-1", "uid": "j", "controller": True}
    pod = {
        "metadata": {
            "name": "tone-abcde-1-0-x",
            "creationTimestamp": "2026-11-27T12:00:00Z",
            "ownerReferences": [owner],
        }
    }
    which: dict[str, Any] = {"attempt": None, "stage": "train", "index": 0, "follow": False, "tail": None}
    logs(OneRun(pod), "tone", Form.NAME, **which)
    assert capsys.readouterr().out == "pod/tone-abcde-1-0-x\n"
    with pytest.raises(ClientError, match="tone has no pod"):
        logs(OneRun(), "tone", Form.NAME, **which)


@pytest.mark.parametrize(
    ("tail", "want"), [(None, "one\ntwo\nthree\n"), (2, "two\nthree\n"), (0, ""), (9, "one\ntwo\nthree\n")]
)
def test_of_a_log_that_was_kept_as_many_lines_are_printed(
    tail: int | None, want: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a pod's; a pod that does not lead has none."""
    monkeypatch.setattr("lora_client.verbs.logs.read_file", lambda *_: b"one\ntwo\nthree\n")
    which: dict[str, Any] = {"attempt": None, "stage": "train", "follow": False, "tail": tail}
    logs(OneRun(), "tone", Form.TEXT, index=0, **which)
    assert capfdbinary.readouterr().out.decode() == want
    with pytest.raises(ClientError, match="tone has no pod"):
        logs(OneRun(), "tone", Form.TEXT, index=1, **which)


def test_the_log_of_a_run_as_an_object_is_the_kept_one_where_its_pods_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an empty text, which says that the training wrote nothing."""
    monkeypatch.setattr("lora_client.verbs.logs.read_file", lambda *_: b"one\n")
    assert ClusterRun(OneRun(), resource(status=finished())).logs() == "one\n"
    failed = OneRun()
    failed.status = {"conditions": [condition("Failed", "True", "LossDiverged", "up")], "attempt": 1}
    with pytest.raises(ClientError, match="tone has no pod"):
        ClusterRun(failed, resource()).logs()
    begun = OneRun()
    begun.status = {}
    assert ClusterRun(begun, resource()).logs() == ""
