"""kopf at the operator's door: what it loses, what handlers do, how it ends, and what it leaves in users' objects."""

import json
import signal
import time
import urllib.request
from functools import partial
from typing import Any

import pytest
from tests.component import odd_operator
from tests.component.documents import finetune, succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.injections import Answer, Cut, Hold, Rule, WatchError
from tests.faults.one_run import begin
from tests.faults.test_namespaces_and_rights import namespaces, without

from lora_operator.cluster.api import FINETUNES
from lora_operator.controller.checks import RIGHTS
from lora_operator.controller.handlers import STOPPED_WITHIN_S

ODD = odd_operator.__name__


def shows(stage: Stage, operator: OperatorProcess, name: str) -> bool:
    """Whether the operator knows of a run: it has series of it."""
    whose = f'name="{name}",namespace="{stage.namespace}"'
    return any(series.startswith("lorafinetune_info{") and whose in series for series in operator.metrics())


def test_a_handler_that_raises_ends_the_process_with_its_reason_and_a_restart_serves_all(stage: Stage) -> None:
    """kopf would log it and go on without that event; the Lease is given back, and no other run is harmed."""
    operator = stage.start(module=ODD)
    other = begin(stage, "other")
    other.wait("Accepted", "True")
    stage.apply(odd_operator.RAISES)
    assert operator.end_by_itself() == 1
    last = operator.text().splitlines()[-1]
    assert "CRITICAL" in last
    assert odd_operator.BOOM in last
    stage.start()
    stage.wait_condition("Accepted", status="True", name=odd_operator.RAISES)
    other.running_pod()


def test_a_handler_that_is_slower_than_events_come_acts_on_the_last_of_them(stage: Stage) -> None:
    """Twenty changes within a second, half a second each: other runs do not wait, and the last change holds."""
    operator = stage.start(module=ODD)
    run = begin(stage, odd_operator.SLOW)
    run.wait("Accepted", "True")
    for number in range(20):
        run.change(suspend=number % 2 == 0)
    run.change(suspend=True)
    began_s = time.monotonic()
    begin(stage, "other").wait("Accepted", "True")
    assert time.monotonic() - began_s < 20 * odd_operator.SLOW_S
    run.wait("Suspended", "True")
    stage.wait_held(run.job())
    run.change(suspend=False)
    run.running_pod()
    assert operator.process.poll() is None


def test_a_watch_that_is_cut_goes_on_from_where_it_was(stage: Stage) -> None:
    """No list, of ours or of kopf, is needed for what comes meanwhile."""
    proxy = stage.proxy()
    operator = stage.start(proxy=proxy)
    eventually(lambda: proxy.watching("watch lorafinetunes"), "LoRAFineTunes are watched")
    lists = len(proxy.made("list lorafinetunes"))
    for name in ("first", "second"):
        assert proxy.inject(Cut(), "watch lorafinetunes") == 1
        begin(stage, name).wait("Accepted", "True")
        eventually(lambda: proxy.watching("watch lorafinetunes"), "LoRAFineTunes are watched again")
    assert len(proxy.made("list lorafinetunes")) == lists
    assert operator.process.poll() is None


def test_a_run_that_is_deleted_while_the_watch_gets_410_is_found_to_be_gone_by_the_list(stage: Stage) -> None:
    """kopf lists again, and tells of no deletion then."""
    proxy = stage.proxy()
    operator = stage.start(proxy=proxy, resyncIntervalSeconds=20)
    run = begin(stage, "deleted")
    run.wait("Accepted", "True")
    eventually(lambda: shows(stage, operator, run.name), "the operator knows of it")
    deaf = [True]
    proxy.lose(lambda call, _: deaf[0] and call.resource == "lorafinetunes")
    path = stage.path("lorafinetunes", run.name)
    stage.api.delete(path)
    eventually(partial(gone, stage.api, path), "it is gone")
    lists = len(proxy.made("list lorafinetunes"))
    assert proxy.inject(WatchError(code=410, reason="Expired"), "watch lorafinetunes") == 1
    deaf[0] = False
    eventually(lambda: len(proxy.made("list lorafinetunes")) > lists, "it is listed again")
    begin(stage, "next").wait("Accepted", "True")
    eventually(lambda: not shows(stage, operator, run.name), "the operator knows that it is gone")
    assert operator.process.poll() is None


def test_a_watch_that_brings_nothing_is_made_up_for_by_the_list_and_then_ends_the_process(stage: Stage) -> None:
    """As behind a proxy that grants watches and keeps their bytes."""
    proxy = stage.proxy()
    operator = stage.start(proxy=proxy, resyncIntervalSeconds=1)
    eventually(lambda: proxy.watching("watch lorafinetunes"), "LoRAFineTunes are watched")
    proxy.lose(lambda call, _: call.resource == "lorafinetunes")
    begin(stage, "first").wait("Accepted", "True")
    begin(stage, "second").wait("Accepted", "True")
    assert operator.end_by_itself() == 1
    assert "lorafinetunes is deaf: two lists have shown what it does not bring" in operator.text()


def test_an_api_server_that_does_not_serve_the_kind_yet_ends_the_process(stage: Stage) -> None:
    """One that has just started is asked by kopf, once, which kinds there are."""
    proxy, path = stage.proxy(), f"/apis/{FINETUNES.group}/{FINETUNES.version}"
    # The operator itself has asked for the definition before.
    answer = Answer(code=404, reason="NotFound")
    rule = proxy.add(Rule(fault=answer, where=lambda call: call.path == path, skip=1))
    operator = stage.start(proxy=proxy, wait=False)
    assert operator.end_by_itself() == 1
    assert rule.hits == 1
    assert "CRITICAL The API server does not serve lorafinetunes yet" in operator.text()


def test_a_namespace_whose_watch_is_forbidden_is_left_out_by_the_next_process(stage: Stage) -> None:
    """kopf asks again for as long as a silent watch is borne; then the process starts again and serves the others."""
    blind = without("watch lorafinetunes.lora-operator.io")
    with namespaces(stage, 1) as (other,):
        proxy = stage.proxy()
        first = stage.start(elsewhere={other.namespace: RIGHTS}, proxy=proxy)
        begin(other, "before").wait("Accepted", "True")
        stage.grant(first, blind, other.namespace)
        eventually(lambda: not may_watch(other, first), "the right is gone")
        proxy.inject(Cut(), "watch lorafinetunes")
        # The other namespace does not wait for the end.
        begin(stage, "meanwhile").wait("Accepted", "True")
        assert first.end_by_itself() == 1
        last = first.text().splitlines()[-1]
        assert "CRITICAL" in last
        assert "forbidden" in last
        second = stage.start(elsewhere={other.namespace: blind})
        assert second.metric(f'lora_operator_left_out_namespace{{namespace="{other.namespace}"}}') == 1.0
        assert f"may not watch lorafinetunes.lora-operator.io in namespace {other.namespace}" in second.text()
        begin(stage, "served").wait("Accepted", "True")


def test_of_users_objects_nothing_but_the_status_changes_in_a_whole_life(stage: Stage) -> None:
    """To the byte, managedFields and the version aside: no finalizer, no annotation, and no manager but the user."""
    manifest = finetune("tone", maxRetries=2)
    manifest["metadata"] |= {
        "labels": {"team": "a"},
        "annotations": {"note": "Zeichen: äß…", "kopf.zalando.org/last-handled-configuration": "a user's own"},
        "finalizers": ["team.example/keep"],
    }
    before = stage.api.post(stage.path("lorafinetunes"), manifest)
    stage.start(resyncIntervalSeconds=1)
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.wait_condition("PodsReady", status="True")
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True")
    stage.operators[-1].stop()
    stage.start()
    after = stage.finetune()
    assert _own(after) == _own(before)
    writers = {field["manager"] for field in after["metadata"]["managedFields"] if field.get("subresource") != "status"}
    assert writers == {field["manager"] for field in before["metadata"]["managedFields"]}


def test_a_process_that_only_looks_at_the_cluster_ends_well_when_it_is_told_to(stage: Stage) -> None:
    """kopf does not run yet, and takes no signals."""
    proxy = stage.proxy()
    proxy.add(Rule(fault=Hold(answered=False)))
    operator = stage.start(proxy=proxy, wait=False)
    eventually(lambda: proxy.held, "it asks")
    assert operator.stop() == 0
    assert "Traceback" not in operator.text()


def test_no_scraper_keeps_a_connection(stage: Stage) -> None:
    """kopf waits five seconds for the end of every task when it stops, and each open connection has one."""
    operator = stage.start()
    for path in ("/metrics", "/healthz", "/readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}{path}", timeout=60) as response:
            assert response.headers["Connection"] == "close"


def test_what_does_not_end_is_ended_by_kopf(stage: Stage) -> None:
    """A handler that waits for ever, whoever cancels it: the kubelet need not wait as long."""
    operator = stage.start(module=ODD)
    stage.apply(odd_operator.NEVER_ENDS)
    stage.wait_condition("Accepted", status="True", name=odd_operator.NEVER_ENDS)
    began_s = time.monotonic()
    assert operator.stop() == -signal.SIGKILL
    assert time.monotonic() - began_s >= STOPPED_WITHIN_S - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_operator_well(stage: Stage, number: signal.Signals) -> None:
    """Exit status 0, with nothing in the log that would frighten anybody."""
    operator = stage.start()
    begin(stage, "tone").wait("Accepted", "True")
    operator.process.send_signal(number)
    assert operator.end_by_itself() == 0
    lines = [line for line in operator.text().splitlines() if " WARNING " in line or " ERROR " in line]
    assert lines == []


def may_watch(place: Stage, operator: OperatorProcess) -> bool:
    """What the API server says of the operator's service account."""
    attributes = {
        "verb": "watch",
        "group": "lora-operator.io",
        "resource": "lorafinetunes",
        "namespace": place.namespace,
    }
    review = {"spec": {"user": operator.user, "resourceAttributes": attributes}}
    answer = place.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def _own(document: dict[str, Any]) -> str:
    """What the user wrote of it, and the API server filled in."""
    kept = {key: value for key, value in document.items() if key != "status"}
    metadata = {k: v for k, v in document["metadata"].items() if k not in ("managedFields", "resourceVersion")}
    return json.dumps({**kept, "metadata": metadata}, ensure_ascii=False)
