"""A helper pod is gone afterwards, whenever the command ends and whatever the network does."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
from tests.unit.client.resources import finished, resource

from lora_client.cluster import helper as module
from lora_client.cluster.connection import ApiError, Cluster, UnreachableError
from lora_client.cluster.helper import helper
from lora_client.errors import ClientError
from lora_client.views.helper_pod import Need
from lora_client.views.refusals import Refusal

Object = dict[str, Any]
Fault = Callable[[str], None]


class Server(Cluster):
    """Pods by name; `fault` runs before the answer: after a pod is made, and before it is deleted."""

    def __init__(
        self,
        fault: Fault,
        jobs: list[Object] | None = None,
        status: Object | None = None,
        *,
        others: Sequence[Object] = (),
        modes: Sequence[str] = (),
        events: Sequence[Object] = (),
    ) -> None:
        self.others, self.modes, self.events = others, modes, events
        self.namespace = "team-a"
        self.pods: dict[str, Object] = {}
        self.fault = fault
        self.jobs = jobs or []
        self.status = status or {"phase": "Running"}

    def items(
        self, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False, version: str = ""
    ) -> list[Object]:
        if plural == "events":
            assert query == {"fieldSelector": f"involvedObject.name={next(iter(self.pods))}"}
            return list(self.events)
        # By its label a client looks for its own pods, which are none of the others.
        return self.jobs if plural == "jobs" else [] if query else list(self.others)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        name = path.rpartition("/")[2]
        if "persistentvolumeclaims" in path:
            return {"metadata": {"name": name}, "spec": {"accessModes": list(self.modes)}}
        if method == "POST":
            assert isinstance(body, dict)
            name = body["metadata"].get("name") or body["metadata"]["generateName"] + "abcde"
            metadata = {**body["metadata"], "name": name, "uid": "u"}
            self.pods[name] = {**body, "metadata": metadata, "status": self.status}
        self.fault(method)
        if name not in self.pods:
            raise ApiError(Refusal(code=404, reason="NotFound", message="x", name=name, kind="pods"))
        return self.pods.pop(name) if method == "DELETE" else self.pods[name]


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only waiting moves: its time in seconds."""
    now = [0.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(module, "time", Clock)
    return now


def raise_once(wanted: str, error: BaseException, times: int = 1) -> Fault:
    """So often, at requests of this method."""
    left = [times]

    def fault(method: str) -> None:
        if method == wanted and left[0]:
            left[0] -= 1
            raise error

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        raise_once("POST", KeyboardInterrupt()),
        raise_once("POST", SystemExit(143)),
        raise_once("POST", UnreachableError("no answer")),
        raise_once("GET", KeyboardInterrupt()),
        raise_once("DELETE", UnreachableError("no answer"), times=3),
    ],
)
def test_no_pod_is_left(fault: Fault) -> None:
    """Whenever the command is interrupted, and while the network comes back soon."""
    server = Server(fault)
    with (
        suppress(KeyboardInterrupt, SystemExit, ClientError),
        helper(server, resource(status=finished()), Need(verb="pull")),
    ):
        assert server.pods
    assert not server.pods


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), ClientError("the adapter cannot be read")])
def test_no_pod_is_left_of_a_command_that_ends_while_the_pod_runs(end: BaseException) -> None:
    """As Ctrl-C ends a conversation, and the end is the caller's to see."""
    server = Server(nothing)

    def command() -> None:
        with helper(server, resource(status=finished()), Need(verb="ask")):
            assert server.pods
            raise end

    with pytest.raises(type(end)):
        command()
    assert not server.pods


def user_of_the_claim(
    phase: str = "Running", *, claim: str = "adapters", name: str = "next-abcde-1-0", node: str = "node-a"
) -> Object:
    """Another pod, on a node, with the adapter's claim."""
    volumes = [{"persistentVolumeClaim": {"claimName": claim}}]
    return {
        "metadata": {"name": name},
        "spec": {"nodeName": node, "volumes": volumes},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("mode", "phase", "node"),
    [
        ("ReadWriteOnce", "Running", "node-a"),
        ("ReadWriteOnce", "Succeeded", ""),
        ("ReadWriteMany", "Running", ""),
        ("ReadWriteOncePod", "Succeeded", ""),
    ],
)
def test_a_claim_that_one_node_uses_is_read_there_and_reported(
    mode: str, phase: str, node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod that has ended uses none, and a claim for many nodes is read on any."""
    server = Server(nothing, others=[user_of_the_claim(phase)], modes=[mode])
    with helper(server, resource(status=finished()), Need(verb="pull")) as name:
        affinity = server.pods[name]["spec"].get("affinity", {})
    assert (f"'values': ['{node}']" in str(affinity)) is bool(node)
    sentence = (
        "The claim adapters (ReadWriteOnce) is in use by pod next-abcde-1-0 on node node-a: only there it can be read\n"
    )
    assert capsys.readouterr().err == (sentence if node else "")


def test_a_claim_of_one_pod_alone_is_refused_while_that_runs() -> None:
    """No second one would ever start."""
    server = Server(nothing, others=[user_of_the_claim()], modes=["ReadWriteOncePod"])
    with (
        pytest.raises(ClientError, match=r"claim adapters \(ReadWriteOncePod\) is in use by pod next-abcde-1-0: try"),
        helper(server, resource(status=finished()), Need(verb="pull")),
    ):
        pass
    assert not server.pods


ON_A_CLAIM: Object = {"model": {"uri": "pvc://models/llama"}}
ASK = Need(verb="ask", model=True)


def test_a_claim_of_the_model_leads_an_asking_pod_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """On another node it would be created without end."""
    server = Server(nothing, others=[user_of_the_claim(claim="models")], modes=["ReadWriteOnce"])
    with helper(server, resource(status=finished(), **ON_A_CLAIM), ASK) as name:
        assert "'values': ['node-a']" in str(server.pods[name]["spec"]["affinity"])
    assert "The claim models (ReadWriteOnce) is in use by pod next-abcde-1-0 on node node-a" in capsys.readouterr().err


def test_claims_that_two_nodes_have_are_refused() -> None:
    """No node can mount both."""
    others = [user_of_the_claim(), user_of_the_claim(claim="models", name="b", node="node-b")]
    server = Server(nothing, others=others, modes=["ReadWriteOnce"])
    want = (
        r"claim adapters by pod next-abcde-1-0 on node node-a, claim models by pod b on node node-b\), and a pod needs"
    )
    with pytest.raises(ClientError, match=want), helper(server, resource(status=finished(), **ON_A_CLAIM), ASK):
        pass
    assert not server.pods


def test_a_volume_that_is_not_mounted_is_named_while_the_pod_waits_and_in_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the last Event about it: the pod's own status says ContainerCreating alone."""
    events = [
        {"reason": "FailedAttachVolume", "message": "Multi-Attach error", "lastTimestamp": "2026-11-27T12:00:02Z"},
        {"reason": "FailedMount", "message": "timed out", "lastTimestamp": "2026-11-27T12:00:01Z"},
        {"reason": "Scheduled", "message": "assigned", "lastTimestamp": "2026-11-27T12:00:03Z"},
    ]
    waiting = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    server = Server(nothing, [JOB], {"phase": "Pending", "containerStatuses": [waiting]}, events=events)
    with pytest.raises(ClientError) as error, helper(server, resource(status=finished()), ASK, start_s=30.0):
        pass
    assert "(FailedAttachVolume Multi-Attach error): ask the" in str(error.value)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": FailedAttachVolume Multi-Attach error")


@pytest.mark.parametrize(
    ("uri", "jobs", "want"),
    [
        ("hf://acme/model", [], "huggingface.co, with the credentials of Secret hf-token; in that case, lora pull"),
        ("s3://models/llama", [], "chart sets config.s3Endpoint and config.caBundleConfigMap: without them the model"),
        ("pvc://models/llama", [], ""),
        ("hf://acme/model", ["there"], ""),
    ],
)
def test_it_is_said_where_a_model_is_fetched_once_the_job_is_gone(
    uri: str, jobs: list[str], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mirror and its certificates are named there alone."""
    run = resource(status=finished(), model={"uri": uri, "secretRef": {"name": "hf-token"}})
    with helper(Server(nothing, [JOB for _ in jobs]), run, ASK):
        pass
    said = capsys.readouterr().err
    assert want in said
    assert bool(said) is bool(want)


def test_a_pod_that_cannot_be_deleted_is_named_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """After some tries; what the command did is not lost for that."""
    server = Server(raise_once("DELETE", UnreachableError("no answer"), times=1000))
    with helper(server, resource(status=finished()), Need(verb="pull")) as name:
        pass
    assert capsys.readouterr().err.splitlines() == [
        f"Pod {name} could not be deleted (no answer): kubectl delete pod {name} -n team-a"
    ]


def test_a_pod_that_was_refused_is_not_deleted() -> None:
    """Another of its name would be."""
    asked: list[str] = []
    refusal = ApiError(Refusal(code=409, reason="AlreadyExists", message="x"))

    def fault(method: str) -> None:
        asked.append(method)
        if method == "POST":
            raise refusal

    with pytest.raises(ApiError), helper(Server(fault), resource(status=finished()), Need(verb="pull")):
        pass
    assert asked == ["POST"]


def unavailable() -> ApiError:
    """As a load balancer answers while the API server is exchanged."""
    return ApiError(Refusal(code=503, reason="ServiceUnavailable", message="x"))


@pytest.mark.parametrize("error", [UnreachableError("no answer"), unavailable()], ids=["none", "503"])
def test_a_pod_that_waits_is_not_given_up_for_one_lost_answer(
    error: ClientError, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have waited for its GPU for minutes."""
    server = Server(raise_once("GET", error, times=3))
    with helper(server, resource(status=finished()), Need(verb="ask")) as name:
        assert server.pods
    assert capsys.readouterr().err.splitlines() == [f"Waiting for pod {name}: {error}"]


def test_a_server_that_stays_away_ends_the_wait(now: list[float]) -> None:
    """After a minute, long before the time that a pod has to start."""
    server = Server(raise_once("GET", UnreachableError("no answer"), times=1000))
    with (
        pytest.raises(UnreachableError, match="no answer"),
        helper(server, resource(status=finished()), Need(verb="ask")),
    ):
        pass
    assert 60 <= now[0] < 110


def test_a_right_that_is_lacking_ends_the_wait_at_once() -> None:
    """Only what may pass is waited for."""
    refusal = ApiError(Refusal(code=403, reason="Forbidden", message="x"))
    with (
        pytest.raises(ApiError),
        helper(Server(raise_once("GET", refusal)), resource(status=finished()), Need(verb="ask")),
    ):
        pass


def nothing(_: str) -> None:
    """No fault."""


JOB: Object = {"metadata": {"name": "tone-abcde-1"}, "spec": {"template": {"spec": {"containers": []}}}}
SCC = (
    'pods "tone-pull-1" is forbidden: unable to validate against any security context constraint: [provider '
    '"restricted-v2": Forbidden: .containers[0].runAsUser: Invalid value: 10001: must be in the ranges]'
)


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
@pytest.mark.parametrize("jobs", [[], [JOB]], ids=["gone", "there"])
def test_an_image_whose_login_went_with_the_job_is_reached_by_the_service_account(
    reason: str, jobs: list[Object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Said at once, and in the end; where the Job is there, its pull secrets were taken and do not help."""
    waiting = {"state": {"waiting": {"reason": reason, "message": "401 Unauthorized"}}}
    server = Server(nothing, jobs, {"phase": "Pending", "containerStatuses": [waiting]})
    with (
        pytest.raises(ClientError) as error,
        helper(server, resource(status=finished()), Need(verb="pull"), start_s=3.0),
    ):
        pass
    command = 'kubectl patch serviceaccount default -n team-a -p \'{"imagePullSecrets":[{"name":"SECRET"}]}\''
    (note,) = capsys.readouterr().err.splitlines()
    assert "401 Unauthorized" in note
    assert note.endswith(command) == str(error.value).endswith(command) == (not jobs)
    assert str(error.value).endswith("ask the cluster's administrator") == bool(jobs)


def test_an_image_that_is_gone_is_not_blamed_on_a_login() -> None:
    """An upgrade may have taken it out of the registry, and no login brings it back."""
    waiting = {"state": {"waiting": {"reason": "ErrImagePull", "message": "rpc error: code = NotFound: not found"}}}
    server = Server(nothing, [], {"phase": "Pending", "containerStatuses": [waiting]})
    with (
        pytest.raises(ClientError, match="not found") as error,
        helper(server, resource(status=finished()), Need(verb="pull"), start_s=1.0),
    ):
        pass
    assert str(error.value).endswith("ask the cluster's administrator")


@pytest.mark.parametrize(
    ("jobs", "message", "want"),
    [([], SCC, True), ([JOB], SCC, False), ([], 'pods "x" is forbidden: exceeded quota: team', False)],
    ids=["gone", "there", "quota"],
)
def test_a_user_that_the_platform_refuses_is_the_jobs_where_that_is_kept(
    jobs: list[Object], message: str, want: bool
) -> None:
    """As OpenShift refuses all but those that it assigns."""
    refusal = ApiError(Refusal(code=403, reason="Forbidden", message=message, kind="pods"))
    server = Server(raise_once("POST", refusal), jobs)
    with pytest.raises(ClientError) as error, helper(server, resource(status=finished()), Need(verb="pull")):
        pass
    assert str(error.value).startswith(str(refusal))
    assert ("leave ttlSecondsAfterFinished unset" in str(error.value)) is want
