"""Many namespaces, few rights: what is missing is named and holds up nobody else, and a namespace that ends may end."""

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.component.documents import succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.moments import Kept, Moment
from tests.faults.one_run import Run, begin
from tests.faults.seen import Sees, kept, remember, saw

from localcluster.api import ApiError
from lora_operator.controller.checks import RIGHTS, Right, rights_used
from lora_trainer.spec.reasons import Reason

USED = rights_used(kueue=False)
GONE_S = 300.0
# Four runs, each tried once a second, for as long as a busy namespace controller may take from the role to the runs.
MOST_REFUSALS = 60
# The namespace controller comes back when half of its pods' grace is over.
SOON: dict[str, Any] = {"terminationGraceSeconds": 1}


@contextmanager
def namespaces(stage: Stage, count: int) -> Iterator[list[Stage]]:
    """More namespaces, each as a stage with the same operators."""
    names = [f"{stage.namespace}-{uuid.uuid4().hex[:6]}" for _ in range(count)]
    for name in names:
        stage.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield [dataclasses.replace(stage, namespace=name) for name in names]
    finally:
        stage.end()
        for name in names:
            with contextlib.suppress(ApiError):
                stage.api.delete(f"/api/v1/namespaces/{name}")


def without(*names: str) -> tuple[Right, ...]:
    """All rights but these."""
    left = tuple(right for right in RIGHTS if str(right) not in names)
    assert len(left) == len(RIGHTS) - len(names)
    return left


def test_each_right_that_is_missing_in_a_namespace_is_named_at_the_start_and_stops_no_other(stage: Stage) -> None:
    """One namespace lacks one right each: the log names them all, and where the operator is blind the metric shows."""
    with namespaces(stage, len(USED)) as places:
        lacks = dict(zip((place.namespace for place in places), USED, strict=True))
        operator = stage.start(elsewhere={name: without(str(right)) for name, right in lacks.items()})
        run = begin(stage, "others")
        shown = {s for s in operator.metrics() if s.startswith("lora_operator_left_out_namespace")}
        blind = {
            name
            for name, right in lacks.items()
            if right.verb in ("list", "watch") and right.resource.plural in ("lorafinetunes", "jobs", "pods")
        }
        assert shown == {f'lora_operator_left_out_namespace{{namespace="{name}"}}' for name in blind}
        assert len(blind) == 6
        for name, right in lacks.items():
            metric = f'lora_operator_left_out_namespace{{namespace="{name}"}}' if name in blind else ""
            saw(Sees(log=(f"may not {right} in namespace {name}:",), metric=metric), since=_nothing(run))
        run.wait("Accepted", "True")
        # What is missing there stands in the way of nothing that this run needs.
        other = next(place for place in places if str(lacks[place.namespace]) == "create services")
        begin(other, "others").wait("Accepted", "True")


def test_a_right_that_is_withdrawn_is_in_the_condition_and_the_run_begins_when_it_is_back(stage: Stage) -> None:
    """The sentence names verb and kind; the other namespace does not notice."""
    with namespaces(stage, 1) as (other,):
        operator = stage.start(elsewhere={other.namespace: RIGHTS})
        stage.grant(operator, without("create jobs.batch"), other.namespace)
        eventually(lambda: not may_create_jobs(other, operator), "the right is gone")
        run = begin(other, "refused")
        saw(
            Sees(
                conditions={"Accepted": ("False", Reason.FORBIDDEN)},
                says=('cannot create resource "jobs"', "ServiceAccount"),
                event=("Warning", Reason.FORBIDDEN),
            ),
            run,
        )
        begin(stage, "others").wait("Accepted", "True")
        assert run.jobs == []
        refused = remember(run)
        stage.grant(operator, RIGHTS, other.namespace)
        kept(Kept.BEGINS, refused)


def test_a_listed_namespace_that_does_not_exist_yet_is_taken_up_when_it_does(stage: Stage) -> None:
    """The others are served meanwhile; then the process ends for a restart, which looks after both."""
    name = f"{stage.namespace}-later"
    operator = stage.start(namespaces=[stage.namespace, name], resyncIntervalSeconds=0.5)
    assert f"in namespace {name}: grant" in operator.text()
    stage.apply()
    stage.wait_condition("Accepted", status="True")
    later = dataclasses.replace(stage, namespace=name)
    stage.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        stage.grant(operator, RIGHTS, name)
        assert operator.end_by_itself() == 1
        assert f"Namespace {name} can be watched now" in operator.text()
        stage.start(elsewhere={name: RIGHTS})
        later.apply()
        later.wait_condition("Accepted", status="True")
    finally:
        stage.end()
        stage.api.delete(f"/api/v1/namespaces/{name}")


def test_namespaces_end_with_runs_in_every_state_whether_an_operator_looks_on_or_not(stage: Stage) -> None:
    """One operator keeps its rights, one loses its Role with the namespace, one is dead: nothing is held up.

    What is waiting, running, suspended and finished goes, no operator insists, and a namespace of the same name begins
    anew.
    """
    with namespaces(stage, 3) as (kept, lost, alone):
        keeps = stage.start(elsewhere={"": RIGHTS}, namespaces=[kept.namespace], leaseName="keeps", **SOON)
        loses = stage.start(elsewhere={lost.namespace: RIGHTS}, leaseName="loses", **SOON)
        dies = stage.start(elsewhere={"": RIGHTS}, namespaces=[alone.namespace], leaseName="dies", **SOON)
        for place in (kept, lost, alone):
            runs_in_every_state(place)
        dies.kill()
        end_namespaces(kept, lost, alone)
        for operator in (keeps, loses):
            assert_quiet(operator)
        stage.api.post("/api/v1/namespaces", {"metadata": {"name": kept.namespace}})
        kept.apply("running")
        kept.wait_condition("Accepted", status="True", name="running")
        assert kept.finetune("running")["status"]["attempt"] == 1
        stage.apply()
        stage.wait_condition("Accepted", status="True")


def _nothing(run: Run) -> Moment:
    """A moment at which the operator had counted nothing."""
    return dataclasses.replace(remember(run), metrics={})


def runs_in_every_state(place: Stage) -> None:
    """One run waits, one trains, one is suspended and one is done."""
    for name in ("waiting", "running", "finished"):
        place.apply(name)
    place.apply("suspended", suspend=True)
    for name in ("waiting", "running", "finished"):
        place.wait_condition("Accepted", status="True", name=name)
    pods = eventually(lambda: pods_by_run(place) if len(pods_by_run(place)) == 3 else None, "three pods")
    place.run_pod(pods["running"])
    place.end_pod(pods["finished"], 0, succeeded())
    place.wait_condition("PodsReady", status="True", name="running")
    place.wait_condition("Complete", status="True", name="finished")
    place.wait_condition("Suspended", status="True", name="suspended")


def pods_by_run(place: Stage) -> dict[str, dict[str, object]]:
    return {pod["metadata"]["labels"]["lora-operator.io/name"]: pod for pod in place.objects("pods")}


def end_namespaces(*places: Stage) -> None:
    """Delete the namespaces, and wait until they are gone."""
    paths = {place.namespace: f"/api/v1/namespaces/{place.namespace}" for place in places}
    for place in places:
        place.api.delete(paths[place.namespace])

    def ended() -> bool:
        left = [place for place in places if not gone(place.api, paths[place.namespace])]
        for place in left:
            finish_pods(place)
        return not left

    try:
        eventually(ended, "the namespaces are gone", deadline_s=GONE_S)
    except AssertionError as error:
        for path in paths.values():
            if not gone(places[0].api, path):
                error.add_note(json.dumps(places[0].api.get(path)["status"], indent=1))
        raise


def finish_pods(place: Stage) -> None:
    """The kubelet's part: a pod that is being deleted is gone when its container has stopped."""
    for pod in place.objects("pods"):
        if pod["metadata"].get("deletionTimestamp"):
            with contextlib.suppress(ApiError):
                place.end_pod(pod, 143)
                place.api.delete(place.path("pods", pod["metadata"]["name"]) + "?gracePeriodSeconds=0")


def assert_quiet(operator: OperatorProcess) -> None:
    """A few refusals are in the nature of an end; a loop would have many, and an exception is never right."""
    assert operator.process.poll() is None
    refused = (v for s, v in operator.metrics().items() if s.startswith('lora_operator_api_requests_total{code="403"'))
    assert operator.metric('lora_operator_reconcile_total{result="error"}') + sum(refused) <= MOST_REFUSALS
    assert "Traceback" not in operator.text()


def may_create_jobs(place: Stage, operator: OperatorProcess) -> bool:
    """What the API server says of the operator's service account."""
    attributes = {"verb": "create", "group": "batch", "resource": "jobs", "namespace": place.namespace}
    review = {"spec": {"user": operator.user, "resourceAttributes": attributes}}
    answer = place.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])
