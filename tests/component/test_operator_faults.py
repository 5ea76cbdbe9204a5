"""What must survive what: the operator killed, the API server killed, objects in the way, quotas, missing rights."""

import base64
import contextlib
import http.client
import itertools
import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.component.documents import succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage, now
from tests.faults.hostile_pods import answer, played_pods, progress
from tests.faults.moments import Kept
from tests.faults.one_run import LOOKS, Run, begin
from tests.faults.outage import kill_api_server, wait_api_server
from tests.faults.seen import Sees, kept, remember, saw
from tests.ports import free_address

from localcluster import settings
from lora_operator.controller.checks import RIGHTS
from lora_operator.model.names import child_labels, child_name
from lora_trainer.spec.reasons import Reason


def test_a_killed_operator_finds_its_runs_again_and_reads_the_verdict_that_it_missed(stage: Stage) -> None:
    """SIGKILL while pods run; one ends meanwhile; the next operator makes no second Job and knows the end."""
    first = stage.start()
    run, other = begin(stage, "tone"), begin(stage, "other")
    pod = run.running_pod()
    other.running_pod()
    for each in (run, other):
        each.wait_told()
    both, before = remember(run, other), remember(other)
    first.kill()
    stage.end_pod(pod, 0, succeeded())
    saw(Sees(nothing=True), since=both)
    second = stage.start()
    saw(Sees(conditions={"Complete": ("True", Reason.SUCCEEDED)}), run)
    other.be_looked_at()
    saw(Sees(nothing=True), since=before)
    kept(Kept.PODS, before)
    now = kept(Kept.ONE_JOB, both)
    assert [j["metadata"]["uid"] for j in now.all_jobs()] == [j["metadata"]["uid"] for j in both.all_jobs()]
    ended = remember(run)
    second.kill()
    third = stage.start()
    eventually(lambda: third.metric(LOOKS) >= 2, "it has looked at both")
    kept(Kept.VERDICT, ended)
    assert third.metric('lorafinetune_finished_total{result="succeeded"}') == 0.0
    assert third.metric('lora_operator_api_requests_total{code="200",verb="update"}') == 1.0, "that of its Lease"


def test_a_crash_between_job_and_status_makes_no_second_job(stage: Stage) -> None:
    """The Job exists and the status knows nothing of it: it is adopted as attempt 1."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    stage.wait_condition("Accepted", status="True")
    stage.operators[-1].kill()
    _forget_status(stage)
    stage.start()
    stage.wait_condition("Accepted", status="True")
    assert [j["metadata"]["uid"] for j in stage.objects("jobs")] == [job["metadata"]["uid"]]
    assert stage.finetune()["status"]["attempt"] == 1
    kept(Kept.ONE_JOB, remember(Run(stage=stage, name="tone")))


def test_somebody_elses_job_by_that_name_is_left_alone(stage: Stage) -> None:
    """NameConflict, no change to the other's object; once it is out of the way the run begins."""
    uid = stage.apply()["metadata"]["uid"]
    name = child_name("tone", uid, 1)
    stage.api.post(stage.path("jobs"), _foreign_job(name))
    run, path = Run(stage=stage, name="tone"), stage.path("jobs", name)
    before = remember(run, others=(path,))
    stage.start(resyncIntervalSeconds=1)
    saw(
        Sees(
            conditions={"Accepted": ("False", Reason.NAME_CONFLICT)},
            says=(name,),
            event=("Warning", Reason.NAME_CONFLICT),
        ),
        run,
    )
    run.be_looked_at()
    kept(Kept.OTHERS_OBJECT, before)
    stage.api.delete(path + "?propagationPolicy=Background")
    kept(Kept.BEGINS, remember(run))
    assert run.job()["metadata"]["ownerReferences"][0]["uid"] == uid


def test_a_missing_right_ends_the_start_with_its_name(stage: Stage) -> None:
    """One sentence with the verb, the kind, the place and the remedy, and no stack trace."""
    rights = tuple(right for right in RIGHTS if str(right) not in ("create jobs.batch", "list events"))
    operator = stage.start(rights=rights, wait=False)
    assert operator.end_by_itself() == 1
    run = begin(stage, "tone")
    saw(
        Sees(
            log=(
                f"may not create jobs.batch, list events in namespace {stage.namespace}",
                "rbac.create",
            )
        ),
        run,
    )
    assert "Traceback" not in operator.text()


def test_credentials_that_are_accepted_no_more_end_the_process(stage: Stage) -> None:
    """The service account goes away under the operator: exit status 1 and a sentence; a restart reads new ones."""
    operator = stage.start()
    for account in stage.objects("serviceaccounts"):
        if account["metadata"]["name"].startswith("operator-"):
            stage.api.delete(stage.path("serviceaccounts", account["metadata"]["name"]))
    for number in itertools.count():
        stage.apply(f"tone-{number}")
        # The API server remembers a good token for some seconds.
        job = partial(_ended_or_jobs, stage, operator, number + 1)
        if eventually(job, "the operator makes the Job or ends") == "ended":
            break
    assert operator.end_by_itself() == 1
    assert "no longer accepts the credentials" in operator.text()


def test_an_api_server_that_dies_and_returns_is_taken_up_again(stage: Stage) -> None:
    """SIGKILL of the API server; afterwards a new resource gets its Job from the same operator process."""
    operator = stage.start()
    stage.apply("before")
    stage.wait_job()
    kill_api_server(stage)
    wait_api_server(stage)
    stage.apply("after")
    eventually(lambda: len(stage.objects("jobs")) == 2, "both have a Job")
    stage.wait_condition("Accepted", status="True", name="after")
    assert operator.process.poll() is None


def test_a_deletion_that_no_watch_reports_is_found_by_the_resync(stage: Stage) -> None:
    """No event of a Job or a pod comes through any more, and no watch begins anew with a list."""
    proxy = stage.proxy()
    operator = stage.start(proxy=proxy, resyncIntervalSeconds=2)
    run = begin(stage, "tone")
    job = run.job()
    run.wait("Accepted", "True")
    run.pod()
    proxy.lose(lambda call, _: call.resource in ("jobs", "pods"))
    stage.api.delete(stage.path("jobs", job["metadata"]["name"]) + "?propagationPolicy=Background")
    run.job(2)
    assert "is listed again" not in operator.text()
    saw(Sees(says=(job["metadata"]["name"],), event=("Warning", Reason.JOB_RECREATED)), run)
    kept(Kept.ONE_JOB, remember(run))


def test_a_job_that_vanishes_while_the_api_server_is_dead_is_made_again(stage: Stage) -> None:
    """It goes from etcd: the restarted server knows nothing of the watches before, and they begin with a list."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    stage.wait_condition("Accepted", status="True")
    for pod in stage.wait_pods(job, 1):
        stage.api.patch(stage.path("pods", pod["metadata"]["name"]), {"metadata": {"finalizers": None}})
    kill_api_server(stage)
    _delete_from_etcd(stage, f"/registry/jobs/{stage.namespace}/{job['metadata']['name']}")
    wait_api_server(stage)
    run = Run(stage=stage, name="tone")
    run.job(2)
    saw(Sees(says=(job["metadata"]["name"],), event=("Warning", Reason.JOB_RECREATED)), run)
    kept(Kept.ONE_JOB, remember(run))


def test_another_writer_at_the_same_object_loses_nothing_and_stops_nothing(stage: Stage) -> None:
    """Labels flip and a condition of somebody else comes while the run goes on: 409s are decided anew."""
    operator = stage.start()
    stage.apply()
    pod = stage.wait_pod(stage.wait_job())
    path = stage.path("lorafinetunes", "tone")
    theirs = {"type": "Audited", "status": "True", "reason": "Seen", "message": "", "lastTransitionTime": now()}
    conditions = stage.finetune()["status"]["conditions"]
    stage.api.patch(f"{path}/status", {"status": {"conditions": [*conditions, theirs]}})
    steps, address = itertools.count(5), free_address()
    run = Run(stage=stage, name="tone")
    run.wait_event("VolumeNotReady")
    stage.api.patch(path, {"metadata": {"labels": {"flip": "0"}, "annotations": {"audit": "on"}}})
    before = remember(run)
    with _flipping(stage, path), played_pods() as pods:

        def conflicts() -> float:
            pods.play(address, partial(answer, body=progress(step=next(steps), total_steps=10**6)))
            return remember(run).metric('lora_operator_api_requests_total{code="409"')

        conflicts()
        stage.run_pod(pod, ip=address)
        run.wait_state("Training")
        training, enough = remember(run), conflicts() + 3
        eventually(lambda: conflicts() >= enough, "writes of its progress are refused")
        saw(
            Sees(metric='lora_operator_reconcile_total{result="error"}', metric_does="does not count", nothing=True),
            since=training,
        )
        kept(Kept.ENDS_WELL, before)
    kept(Kept.OTHERS_MARKS, before)
    kept(Kept.OTHERS_CONDITIONS, before)
    kept(Kept.ONE_JOB, before)
    assert operator.metric('lora_operator_reconcile_total{result="error"}') == 0.0
    assert remember(run).warnings == before.warnings


@contextlib.contextmanager
def _flipping(stage: Stage, path: str) -> Iterator[None]:
    """Somebody changes a label of an object fifty times a second."""
    ended = threading.Event()

    def flip() -> None:
        for number in itertools.count():
            if ended.wait(0.02):
                return
            stage.api.patch(path, {"metadata": {"labels": {"flip": str(number)}}})

    flipping = threading.Thread(target=flip)
    flipping.start()
    try:
        yield
    finally:
        ended.set()
        flipping.join()


def test_an_operator_at_rest_writes_nothing(stage: Stage) -> None:
    """Lists, and the Events for which a pending run waits, are read again and again: nothing follows from them."""
    operator = stage.start(resyncIntervalSeconds=1)
    stage.apply("pending")
    stage.apply("finished")
    pods = eventually(lambda: _pods_of_both(stage), "two pods")
    stage.end_pod(pods["finished"], 0, succeeded())
    stage.wait_pod_state(pods["pending"], "ImagePullBackOff", "Back-off pulling image")
    stage.wait_condition("Complete", status="True", name="finished")
    stage.wait_condition("PodsReady", reason="ImagePullBackOff", name="pending")
    stage.wait_event("Warning", "ImagePullBackOff")
    stage.wait_event("Normal", "Succeeded")
    # What is not urgent waits half a second before it is written.
    eventually(lambda: _writes_of_twenty_reads(operator) == 0, "it comes to rest")
    assert _writes_of_twenty_reads(operator) == 0


def test_sigterm_ends_the_operator_well(stage: Stage) -> None:
    """Exit status 0, and the run goes on without it."""
    operator = stage.start()
    stage.apply()
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.wait_condition("PodsReady", status="True")
    assert operator.stop() == 0
    assert stage.api.get(stage.path("pods", pod["metadata"]["name"]))["status"]["phase"] == "Running"
    assert "Traceback" not in operator.text()


def test_jobs_and_pods_are_asked_for_by_label(stage: Stage) -> None:
    """The selector is in the URL of the watch, so the API server sends nothing that is not ours."""
    operator = stage.start()
    selector = "labelSelector=app.kubernetes.io/managed-by%3Dlora-operator"
    for plural in ("jobs", "pods"):
        # It is ready with its lists, which the watches follow.
        watches = eventually(partial(_watches, operator, plural), f"{plural} are watched")
        assert all(selector in line for line in watches)


def _writes_of_twenty_reads(operator: OperatorProcess) -> float:
    writes, read = operator.writes(), operator.requests()
    eventually(lambda: operator.requests() - operator.writes() >= read - writes + 20, "twenty more reads")
    return operator.writes() - writes


def _watches(operator: OperatorProcess, plural: str) -> list[str]:
    lines = operator.text().splitlines()
    return [line for line in lines if f"/{plural}?" in line and "watching" in line]


def _forget_status(stage: Stage) -> None:
    """As if the operator had died before it wrote one."""
    empty = dict.fromkeys(stage.finetune()["status"])
    stage.api.patch(stage.path("lorafinetunes", "tone", "status"), {"status": {**empty, "conditions": []}})


def _foreign_job(name: str) -> dict[str, Any]:
    container = {"name": "main", "image": "registry.example/other:1"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    labels = child_labels("somebody", "somebody", 1)
    return {"metadata": {"name": name, "labels": labels}, "spec": {"suspend": True, "template": template}}


def _ended_or_jobs(stage: Stage, operator: OperatorProcess, count: int) -> str:
    if operator.process.poll() is not None:
        return "ended"
    return "made" if len(stage.objects("jobs")) == count else ""


def _pods_of_both(stage: Stage) -> dict[str, Any] | None:
    pods = {pod["metadata"]["labels"]["lora-operator.io/name"]: pod for pod in stage.objects("pods")}
    return pods if len(pods) == 2 else None


def _delete_from_etcd(stage: Stage, key: str) -> None:
    """Through etcd's own HTTP gateway."""
    places = settings.places(stage.cluster.name or "")
    _, port, _ = json.loads((places.state / "ports.json").read_text())
    body = json.dumps({"key": base64.b64encode(key.encode()).decode()}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v3/kv/deleterange", body)
        assert json.loads(connection.getresponse().read())["deleted"] == "1"
