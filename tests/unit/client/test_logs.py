"""Which of a run's pods `lora logs` reads: by attempt, stage and index, and of several such pods the newest."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.unit.builders import make_pod_object, minutes_ago
from tests.unit.client.resources import condition, finished, resource, training

from lora_client.__main__ import main
from lora_client.cluster.connection import Cluster
from lora_client.cluster.run_pods import pods_of
from lora_client.errors import ClientError
from lora_client.output import Form
from lora_client.verbs.logs import log_so_far, logs
from lora_operator.model.names import PREFLIGHT, UID_LABEL
from lora_trainer.spec.names import run_suffix
from lora_trainer.storage.manifest import LOG
from lora_trainer.storage.run_folders import FOLDER

Object = dict[str, Any]
PODS = (
    make_pod_object(name="second-follower", attempt=2, index=1, created_at=minutes_ago(20)),
    make_pod_object(name="second-lost", attempt=2, created_at=minutes_ago(30)),
    make_pod_object(name="first-follower", attempt=1, index=1, created_at=minutes_ago(50)),
    make_pod_object(name="first", attempt=1, created_at=minutes_ago(50)),
    make_pod_object(name="third-check", attempt=3, stage=PREFLIGHT, created_at=minutes_ago(5)),
    make_pod_object(name="second", attempt=2, created_at=minutes_ago(20)),
    make_pod_object(name="first-check", attempt=1, stage=PREFLIGHT, created_at=minutes_ago(55)),
)
"""Of three attempts, as the API server may list them: the second has lost a pod, the third has not begun to train."""


class Pods(Cluster):
    """A run with these pods, whose logs are their names."""

    def __init__(self, *pods: Object, status: Object) -> None:
        self.namespace = "team-a"
        self._pods = pods
        self._run = resource(status=status)
        self.queries: list[Mapping[str, str]] = []

    def get(self, plural: str, name: str) -> Object:
        return self._run

    def items(
        self, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False, version: str = ""
    ) -> list[Object]:
        assert (plural, query) == ("pods", {"labelSelector": f"{UID_LABEL}={self._run['metadata']['uid']}"})
        return list(self._pods)

    def lines(self, path: str, query: Mapping[str, str], *, silence_s: float | None = None) -> Iterator[bytes]:
        self.queries.append(query)
        yield f"{path.removeprefix('/api/v1/namespaces/team-a/pods/').removesuffix('/log')}\n".encode()


def asked(**changes: Any) -> dict[str, Any]:
    """The options of the command, these ones given."""
    return {"attempt": None, "stage": None, "index": 0, "follow": False, "tail": None, **changes}


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, "second"),
        ({"attempt": 1}, "first"),
        ({"stage": "train"}, "second"),
        ({"attempt": 2}, "second"),
        ({"index": 1}, "second-follower"),
        ({"attempt": 1, "index": 1}, "first-follower"),
        ({"stage": PREFLIGHT}, "third-check"),
        ({"stage": PREFLIGHT, "attempt": 1}, "first-check"),
    ],
)
def test_the_log_is_that_of_the_pod_that_is_meant(
    options: dict[str, Any], want: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Without an attempt that of the last one that came to the stage; never that of another run's pod."""
    cluster = Pods(*PODS, status=training())
    logs(cluster, "tone", Form.TEXT, **asked(**options))
    logs(cluster, "tone", Form.NAME, **asked(**options))
    assert capfdbinary.readouterr().out.decode() == f"{want}\npod/{want}\n"
    assert cluster.queries == [{"container": "trainer"}]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"attempt": 3, "stage": "train"}, "tone has no pod of attempt 3 of stage train: attempts with a pod are 1, 2"),
        (
            {"attempt": 2, "stage": PREFLIGHT},
            "tone has no pod of attempt 2 of stage preflight: attempts with a pod are 1",
        ),
        ({"attempt": 1, "index": 7}, "tone has no pod with index 7 in attempt 1: omit --index for the leader"),
        ({"index": 7}, "tone has no pod with index 7 in attempt 2: omit --index for the leader"),
    ],
)
def test_a_pod_that_is_not_there_is_not_replaced_by_another(options: dict[str, Any], want: str) -> None:
    """What there is instead is named."""
    with pytest.raises(ClientError, match=f"^{want}"):
        logs(Pods(*PODS, status=training()), "tone", Form.TEXT, **asked(**options))


def test_pods_stand_with_the_newest_attempt_and_its_leader_first() -> None:
    """Whatever the order of the list."""
    ours = pods_of(Pods(*PODS, status=training()), resource())
    assert [pod.name for pod in ours] == [
        "third-check",
        "second",
        "second-follower",
        "second-lost",
        "first",
        "first-follower",
        "first-check",
    ]


def test_options_of_a_log_reach_the_server(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Which cuts it, and keeps the answer open."""
    cluster = Pods(*PODS, status=training())
    logs(cluster, "tone", Form.TEXT, **asked(follow=True, tail=3))
    assert capfdbinary.readouterr().out == b"second\n"
    assert cluster.queries == [{"container": "trainer", "follow": "true", "tailLines": "3"}]


@pytest.mark.parametrize(
    ("pods", "options", "want"),
    [
        ((), {}, "kept"),
        (PODS, {}, "second"),
        (PODS[-1:], {}, "kept"),
        ((), {"attempt": 1}, None),
        ((), {"stage": PREFLIGHT}, None),
        (PODS[-1:], {"attempt": 1, "stage": "train"}, None),
    ],
)
def test_the_log_that_was_kept_stands_for_the_last_attempt_of_the_training_alone(
    pods: tuple[Object, ...],
    options: dict[str, Any],
    want: str | None,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pod that is left has the same, without another pod that reads the claim."""
    monkeypatch.setattr("lora_client.verbs.logs.read_file", lambda _, run, name: b"kept\n")
    cluster = Pods(*pods, status=finished())
    if want is None:
        with pytest.raises(ClientError, match="tone has no pod"):
            logs(cluster, "tone", Form.TEXT, **asked(**options))
        return
    logs(cluster, "tone", Form.TEXT, **asked(**options))
    out, err = capfdbinary.readouterr()
    assert out.decode() == f"{want}\n"
    assert (b"this is train.log from beside its adapter" in err) is (want == "kept")


def test_a_run_that_has_not_ended_has_no_kept_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log there is not whole, whatever its status says."""
    monkeypatch.setattr("lora_client.verbs.logs.read_file", lambda *_: b"kept\n")
    with pytest.raises(ClientError, match=r"^tone has no pod \("):
        logs(Pods(status={**training(), "artifact": finished()["artifact"]}), "tone", Form.TEXT, **asked())


CHECKING = {"conditions": [condition("Complete", "Unknown", "Preflight", "Checks model and data")], "attempt": 1}
REFUSED = {
    "conditions": [
        condition("Complete", "False", "DatasetInvalid", "bad"),
        condition("Failed", "True", "DatasetInvalid"),
    ],
    "attempt": 1,
}


@pytest.mark.parametrize(
    ("status", "pods", "options", "want"),
    [
        (CHECKING, PODS[-1:], {}, "first-check"),
        (REFUSED, PODS[-1:], {}, "first-check"),
        (training(), PODS, {"attempt": 3}, "third-check"),
        (training(), (PODS[-1], PODS[4]), {}, "third-check"),
    ],
)
def test_before_the_training_has_a_pod_the_log_is_the_preflights(
    status: Object, pods: tuple[Object, ...], options: Object, want: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Where a newcomer's first failure is; it is said to be that."""
    cluster = Pods(*pods, status=status)
    logs(cluster, "tone", Form.TEXT, **asked(**options))
    out, err = capfdbinary.readouterr()
    assert out.decode() == f"{want}\n"
    assert err == b"This is the log of the preflight: the training of tone has no pod\n"
    with pytest.raises(ClientError, match="tone has no pod"):
        logs(cluster, "tone", Form.TEXT, **asked(index=1, **options))
    with pytest.raises(ClientError, match="tone has no pod"):
        logs(cluster, "tone", Form.TEXT, **asked(stage="train", **options))


def test_an_unknown_stage_is_refused() -> None:
    """Before a cluster is asked."""
    with pytest.raises(ClientError, match=r"^--stage is training: must be train or preflight$"):
        logs(Pods(status=training()), "tone", Form.TEXT, **asked(stage="training"))


@pytest.mark.parametrize("letter", ["-f", "-F", "--follow"])
def test_a_log_is_followed_as_with_kubectl(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose letter is in everybody's fingers."""
    cluster = Pods(*PODS, status=training())
    monkeypatch.setattr(Pods, "__exit__", lambda *_: None)
    monkeypatch.setattr("lora_client.commands.connect", lambda *_: cluster)
    assert main(["logs", "tone", letter]) == 0
    assert cluster.queries == [{"container": "trainer", "follow": "true"}]


def kept_at(address: str) -> Object:
    """The status of a run whose result is there."""
    status = finished()
    status["artifact"]["uri"] = address
    return status


def test_a_log_that_no_pod_can_read_names_the_command_that_fetches_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of announcing it."""
    cluster = Pods(status=kept_at("s3://bucket/tone"))
    for read in (lambda: logs(cluster, "tone", Form.TEXT, **asked()), lambda: log_so_far(cluster, cluster.get("", ""))):
        with pytest.raises(ClientError) as error:
            read()
        assert str(error.value) == (
            "The pods of tone are gone, and train.log is beside its adapter: aws s3 cp --recursive s3://bucket/tone "
            "./adapter copies it"
        )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("status", "options", "want"),
    [
        (
            {**REFUSED, "resolved": {"pod": {"checkpointClaim": "adapters"}}},
            {},
            (
                "tone has no pod (its pods are deleted): if it had saved a checkpoint, its log is "
                f"{FOLDER}/tone-SUFFIX/{LOG} on the claim adapters"
            ),
        ),
        (REFUSED, {}, "tone has no pod (its pods are deleted): lora status tone says how it ended"),
        (
            finished(),
            {"attempt": 1},
            "tone has no pod (its pods are deleted): lora logs tone prints the log beside its adapter",
        ),
    ],
)
def test_a_run_without_pods_says_where_its_log_is(status: Object, options: Object, want: str) -> None:
    """Which explain does not."""
    with pytest.raises(ClientError) as error:
        logs(Pods(status=status), "tone", Form.TEXT, **asked(**options))
    assert str(error.value) == want.replace("SUFFIX", run_suffix(resource()["metadata"]["uid"]))
