"""What verbs print in each form of `-o`, and what a run does as an object, by a cluster of one run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.client.resources import condition, finished, resource

import lora_client
from lora_client.__main__ import main
from lora_client.cluster.connection import ApiError, Cluster
from lora_client.errors import ClientError
from lora_client.interface import LoRAClient
from lora_client.output import Form
from lora_client.runs import ClusterRun
from lora_client.verbs.changing import clone
from lora_client.verbs.explaining import explanation
from lora_client.verbs.logs import logs
from lora_client.verbs.pull import pull
from lora_client.verbs.serve import serve
from lora_client.views.refusals import Refusal

Object = dict[str, Any]
NAMED = "lorafinetune.lora-operator.io/tone-2\n"


class OneRun(Cluster):
    """Of which every manifest is good; `pods` are those of the run."""

    def __init__(self, *pods: Object) -> None:
        self.namespace = "team-a"
        self._pods = pods
        self.status = finished()
        self.least_pause_s = 0.0
        self.changed: list[str] = []

    def __exit__(self, *_: object) -> None:
        pass

    def get(self, plural: str, name: str) -> Object:
        return resource(name, status=self.status)

    def may_exist(self, plural: str, name: str) -> bool:
        return True

    def items(
        self, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False, version: str = ""
    ) -> list[Object]:
        return list(self._pods) if plural == "pods" else []

    def request(self, method: str, path: str, **_: object) -> Object:
        assert method in ("POST", "PATCH")
        if method == "POST":
            return {}
        self.changed.append(path)
        return resource(path.rpartition("/")[2], status=self.status)


POD = {
    "metadata": {
        "name": "tone-abcde-1-0-x",
        "creationTimestamp": "2026-11-27T12:00:00Z",
        "ownerReferences": [{"kind": "Job", "name": "tone-abcde-1", "uid": "j", "controller": True}],
    }
}


@pytest.mark.parametrize(
    ("kind", "want"),
    [("vllm", "deployment.apps/tone\nservice/tone\n"), ("kserve", "inferenceservice.serving.kserve.io/tone\n")],
)
def test_what_serves_is_named_as_kubectl_names_it(kind: str, want: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By `-o name`."""
    serve(OneRun(), "tone", kind, Form.NAME)
    assert capsys.readouterr() == (want, "")
    serve(OneRun(), "tone", kind, Form.TEXT)
    said = capsys.readouterr().err
    assert "--max-model-len=auto takes" in said
    assert ("kubectl port-forward -n team-a service/tone 8000:80" in said) is (kind == "vllm")


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
    which: dict[str, Any] = {"attempt": None, "stage": "train", "index": 0, "follow": False, "tail": None}
    logs(OneRun(POD), "tone", Form.NAME, **which)
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


@pytest.mark.parametrize(("code", "want"), [(400, ""), (403, None)])
def test_the_log_of_a_pod_that_has_not_begun_is_empty(
    code: int, want: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server refuses it with 400 while a container is created; whatever else it refuses is an error."""

    def refused(*_: object, **__: object) -> Iterator[bytes]:
        yield from ()
        raise ApiError(Refusal.of(code, {"message": "ContainerCreating"}, b"", "team-a"))

    monkeypatch.setattr(OneRun, "lines", refused)
    begun = OneRun(POD)
    if want is None:
        with pytest.raises(ClientError, match="ContainerCreating"):
            ClusterRun(begun, resource()).logs()
    else:
        assert ClusterRun(begun, resource()).logs() == want


def in_namespace(name: str) -> Any:
    """A manifest that names its namespace, or none."""
    manifest = resource(suspend=False)
    return {**manifest, "metadata": {"name": "tone", **({"namespace": name} if name else {})}}


def test_a_run_stays_in_its_namespace_whatever_is_started_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client without a namespace of its own, which is then in the context's."""
    cluster = OneRun()
    monkeypatch.setattr("lora_client.runs.connect", lambda *_: cluster)
    client = LoRAClient()
    runs = [client.run(in_namespace(name)) for name in ("team-b", "", "team-c")]
    assert client.validate(in_namespace("team-d")) == ()
    cluster.changed.clear()
    for run in runs:
        run.suspend()
    places = [path.split("/")[5] for path in cluster.changed]
    assert places == ["team-b", "team-a", "team-c"]
    assert repr(client.get("tone")).startswith("<Run team-a/tone")


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("form", Form)
def test_a_run_that_is_followed_is_one_document(
    form: Form, follow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is in the end; as text also where it begins."""
    cluster = OneRun()
    cluster.status = {}
    monkeypatch.setattr("lora_client.commands.connect", lambda *_: cluster)
    monkeypatch.setattr("lora_client.verbs.watch.follow", lambda *_: iter([resource(status=finished())]))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(in_namespace("team-a")))
    assert main(["run", "-f", str(file), "-o", form, "--watch" if follow else "--no-watch"]) == 0
    out = capsys.readouterr().out
    if form is Form.TEXT:
        assert out.startswith("tone is unchanged in namespace team-a\n")
    elif form is Form.NAME:
        assert out == "lorafinetune.lora-operator.io/tone\n"
    else:
        printed = json.loads(out) if form is Form.JSON else yaml.safe_load(out)
        assert printed["metadata"]["name"] == "tone"
        assert out.count("LoRAFineTune") == 1


class OldKueue(OneRun):
    """Serves the Workloads of a Job in these versions."""

    def __init__(self, *versions: str) -> None:
        super().__init__()
        self._versions = versions

    items = Cluster.items

    def request(self, method: str, path: str, **__: object) -> Object:
        owner = {"kind": "Job", "name": "tone-abcde-1", "uid": "j", "controller": True}
        run = {**owner, "kind": "LoRAFineTune", "uid": resource()["metadata"]["uid"]}
        *_, version, _, _, kind = path.split("/")
        if kind == "jobs":
            return {"items": [{"metadata": {"name": "tone-abcde-1", "uid": "j", "ownerReferences": [run]}}]}
        if kind == "workloads":
            if version not in self._versions:
                raise ApiError(Refusal.of(404, {"message": "not found"}, b"", "team-a"))
            return {"items": [{"metadata": {"name": f"of-{version}", "ownerReferences": [owner]}}]}
        return {"items": []}


@pytest.mark.parametrize(
    ("versions", "want"),
    [
        (("v1beta2",), ["of-v1beta2"]),
        (("v1beta1",), ["of-v1beta1"]),
        (("v1beta2", "v1beta1"), ["of-v1beta2"]),
        ((), []),
    ],
)
def test_what_a_queue_says_is_read_in_the_version_that_kueue_serves(versions: tuple[str, ...], want: list[str]) -> None:
    """As the operator reads it."""
    found = explanation(OldKueue(*versions), resource())
    assert [workload["name"] for workload in found["observed"].get("workloads", ())] == want


def test_a_pull_from_python_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output is the program's own; the command says where the adapter is."""
    monkeypatch.setattr("lora_client.verbs.pull._files", lambda *_, **__: nullcontext())
    monkeypatch.setattr("lora_client.verbs.pull.fetch", lambda *_: None)
    run = ClusterRun(OneRun(), resource(status=finished()))
    assert run.pull(tmp_path / "a") == tmp_path / "a"
    assert capsys.readouterr().out == ""
    pull(OneRun(), "tone", str(tmp_path / "b"), Form.TEXT)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'b'}: the adapter of tone")


def test_the_package_has_what_its_docstring_names() -> None:
    """Failures are caught by their type, and the types are there for a user's mypy."""
    assert lora_client.ClientError is ClientError
    assert (Path(lora_client.__file__).parent / "py.typed").exists()
