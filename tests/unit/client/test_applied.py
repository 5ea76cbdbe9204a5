"""What `run`, `suspend` and `resume` say of a run that exists, waits, or has ended before."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.client.resources import condition, finished, resource, training

from lora_client.__main__ import main
from lora_client.cluster.connection import ApiError, Cluster
from lora_client.errors import ClientError
from lora_client.interface import LoRAClient
from lora_client.views.refusals import Refusal

Object = dict[str, Any]
FAILED = {
    "conditions": [
        condition(kind, holds, "DatasetInvalid", "line 1: bad")
        for kind, holds in (("Complete", "False"), ("Failed", "True"))
    ],
    "completionTime": "2026-11-27T12:30:00Z",
}
ANEW = (
    "and nothing was started: lora clone tone -n team-a starts it again, or kubectl delete lft tone -n team-a frees "
    "its name\n"
)


class Stored(Cluster):
    """A run, or none, to which patches are applied."""

    def __init__(self, run: Object | None) -> None:
        self.namespace = "team-a"
        self.run = run
        self.patches: list[Object] = []

    def __exit__(self, *_: object) -> None:
        pass

    def get(self, plural: str, name: str) -> Object:
        if self.run is None:
            raise ApiError(Refusal.of(404, {"message": "not found"}, b"", "team-a"))
        return copy.deepcopy(self.run)

    def request(self, method: str, path: str, *, body: Any = None, **_: object) -> Object:
        if method != "PATCH":
            return {}
        self.patches.append(body)
        self.run = self.run or {**resource(), "spec": {}}
        self.run["spec"] |= body.get("spec", {})
        return copy.deepcopy(self.run)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The manifest of such a run."""
    run = resource()
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**run, "metadata": {"name": "tone"}, "status": {}}))
    return str(path)


Lora = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lora:
    """The command, asking a cluster: its exit status and what it printed."""
    monkeypatch.setattr("lora_client.verbs.watch.follow", pytest.fail)

    def run(cluster: Cluster, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("lora_client.commands.connect", lambda *_: cluster)
        return main(arguments), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("before", "want"),
    [
        (None, "created"),
        (resource(status=training()), "unchanged"),
        (resource(status=training(), suspend=True, lora={"rank": 8}), "changed"),
    ],
)
def test_what_became_of_a_manifest_is_said_as_kubectl_says_it(
    before: Object | None, want: str, file: str, lora: Lora
) -> None:
    """So that nobody takes a run that goes on for a new one."""
    printed = lora(Stored(before), "run", "-f", file, "--no-watch")
    assert printed == (0, f"tone is {want} in namespace team-a\n", "")


@pytest.mark.parametrize(
    ("before", "want"),
    [
        (None, "tone is good: lora run -f {} starts it"),
        (
            resource(status=finished()),
            "tone is good, but has ended (Succeeded): lora clone tone starts it again, lora run -f {} does not",
        ),
        (
            resource(status=training()),
            "tone is good, and exists already (Training): lora run -f {} applies what differs and watches it",
        ),
    ],
)
def test_validate_says_what_run_would_do(before: Object | None, want: str, file: str, lora: Lora) -> None:
    """Which starts no run that exists."""
    assert lora(Stored(before), "validate", "-f", file) == (0, f"{want.format(file)}\n", "")


@pytest.mark.parametrize(("status", "code"), [(FAILED, 1), (finished(), 0)])
@pytest.mark.parametrize(
    "how", [["-o", "text"], ["-o", "text", "--no-watch"], ["-o", "json"], ["-o", "name", "--no-watch"]]
)
def test_an_end_of_days_ago_is_not_reported_as_a_new_one(
    status: Object, code: int, how: list[str], lora: Lora, file: str
) -> None:
    """Nothing is started, and the sentence says what to do; the exit status is the run's."""
    ended, out, err = lora(Stored(resource(status=status)), "run", "-f", file, *how)
    assert ended == code
    assert err.startswith("tone ended ")
    assert err.endswith(f" ({'DatasetInvalid' if code else 'Succeeded'}), {ANEW}")
    assert (" ago (" in err) is ("completionTime" in status)
    if "text" in how:
        assert out == "tone is unchanged in namespace team-a\n"
    elif "name" in how:
        assert out == "lorafinetune.lora-operator.io/tone\n"
    else:
        assert json.loads(out)["metadata"]["name"] == "tone"


def test_in_python_a_failure_of_before_is_raised_and_a_success_returned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same sentence."""
    spec: Any = resource()["spec"]
    monkeypatch.setattr("lora_client.runs.connect", lambda *_: Stored(resource(status=FAILED)))
    with pytest.raises(ClientError, match=r"^tone ended .*, and nothing was started: lora clone tone -n team-a"):
        LoRAClient().run(spec, name="tone")
    monkeypatch.setattr("lora_client.runs.connect", lambda *_: Stored(resource(status=finished())))
    assert LoRAClient().run(spec, name="tone").state == "Succeeded"
    assert capsys.readouterr().err == f"tone ended (Succeeded), {ANEW}"


@pytest.mark.parametrize(
    ("verb", "run", "want", "patched"),
    [
        ("suspend", resource(status=training()), "tone is being suspended: ", True),
        ("resume", resource(suspend=True), "tone is resumed: lora watch tone\n", True),
        ("resume", resource(status=training()), "tone is not suspended: lora watch tone\n", True),
        (
            "suspend",
            resource(status=FAILED),
            "tone has ended (DatasetInvalid): there is nothing to suspend; lora clone tone starts it again\n",
            False,
        ),
        (
            "resume",
            resource(status=finished()),
            "tone has ended (Succeeded): there is nothing to resume; lora clone tone starts it again\n",
            False,
        ),
    ],
)
def test_what_cannot_be_suspended_or_resumed_is_left_alone(
    verb: str, run: Object, want: str, patched: bool, lora: Lora
) -> None:
    """And not said to be."""
    cluster = Stored(run)
    code, out, _ = lora(cluster, verb, "tone")
    assert code == 0
    assert out.startswith(want)
    assert bool(cluster.patches) is patched
