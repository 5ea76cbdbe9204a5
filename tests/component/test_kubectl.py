"""What kubectl does with a LoRAFineTune is what it does with a Job: on a real API server, with the real kubectl."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.component.documents import failed, succeeded
from tests.component.patience import DEADLINE_S, eventually
from tests.component.stage import REPOSITORY, Stage, gone
from tests.faults.one_run import Run

from lora_operator.model.names import TRAIN
from lora_trainer.spec.reasons import Reason

Object = dict[str, Any]
PATIENCE = f"--timeout={DEADLINE_S:.0f}s"


def kubectl(stage: Stage, *arguments: str) -> str:
    """Run kubectl in the stage's namespace."""
    return stage.cluster.kubectl(*arguments, f"--namespace={stage.namespace}")


def started(stage: Stage, name: str) -> Object:
    """A run whose trainer runs; its pod."""
    stage.apply(name)

    def look() -> Object | None:
        jobs = [j for j in stage.jobs_of(TRAIN) if j["metadata"]["labels"]["lora-operator.io/name"] == name]
        return jobs[0] if jobs else None

    pod = stage.wait_pod(eventually(look, f"the Job of {name}"))
    stage.run_pod(pod)
    stage.wait_condition("PodsReady", status="True", name=name)
    return pod


def stated(stage: Stage, name: str) -> list[Object]:
    """The Events about a run in the order of their names, which is the one in which they came."""
    ours = [e for e in stage.objects("events") if e["involvedObject"]["kind"] == "LoRAFineTune"]
    found = [e for e in ours if e["involvedObject"]["name"] == name]
    return sorted(found, key=lambda e: str(e["metadata"]["name"]))


def test_waiting_for_complete_and_for_the_completion_time_ends_as_for_a_job(stage: Stage) -> None:
    """On success both end; on failure the completion time does; the columns and the manual are there."""
    stage.start()
    waits = ("wait", PATIENCE)
    with ThreadPoolExecutor() as pool:
        good, bad = started(stage, "good"), started(stage, "bad")
        complete = pool.submit(kubectl, stage, *waits, "lft/good", "--for=condition=Complete")
        ended = pool.submit(kubectl, stage, *waits, "lft/good", "lft/bad", "--for=jsonpath={.status.completionTime}")
        has_failed = pool.submit(kubectl, stage, *waits, "lft/bad", "--for=condition=Failed")
        stage.end_pod(good, 0, succeeded())
        stage.end_pod(bad, 65, failed(Reason.DATASET_INVALID, "line 17 has no field 'output': add it"))
        assert complete.result() == "lorafinetune.lora-operator.io/good condition met\n"
        assert ended.result().count("condition met") == 2
        assert has_failed.result() == "lorafinetune.lora-operator.io/bad condition met\n"
    rows = [line.split() for line in kubectl(stage, "get", "lft").splitlines()]
    assert rows[0] == ["NAME", "STATE", "MODEL", "RANK", "QUANT", "STEP", "LOSS", "ETA", "AGE"]
    assert {row[0]: row[1] for row in rows[1:]} == {"good": "Succeeded", "bad": "DatasetInvalid"}
    wide = kubectl(stage, "get", "lft", "-o", "wide").splitlines()
    assert len(wide[0].split()) > len(rows[0])
    assert "pvc://adapters/tone/tone-abcde" in wide[2]
    manual = kubectl(stage, "explain", "lft.spec.suspend")
    assert "FIELD: suspend <boolean>" in manual


def test_describe_tells_the_conditions_and_the_story_in_order(stage: Stage) -> None:
    """Of a run that had to be tried again: each state once for each time that it came."""
    stage.start()
    first = started(stage, "tone")
    # Its Job, which hears of the end later, makes no other pod before the state was shown.
    stage.end_pod(first, 1, failed(Reason.INTERNAL_ERROR, "no luck"), phase="Running")
    stage.wait_condition("Complete", status="Unknown", reason="Restarting")
    stage.clear_away(first)
    job = stage.wait_job()
    second = stage.wait_pod(job, other_than=first["metadata"]["uid"])
    stage.run_pod(second)
    stage.wait_condition("PodsReady", status="True")
    stage.end_pod(second, 0, succeeded())
    stage.wait_event("Normal", "Succeeded")
    text = kubectl(stage, "describe", "lft", "tone")
    conditions, _, events = text.partition("\nEvents:\n")
    for kind in ("Accepted", "PodsReady", "Suspended", "ArtifactPublished", "Complete", "Failed"):
        assert f"Type:                  {kind}\n" in conditions
    story = [line.split()[1] for line in events.splitlines() if line.startswith(("  Normal", "  Warning"))]
    assert story == [event["reason"] for event in stated(stage, "tone")]
    assert story[0] == "Accepted"
    assert story[-1] == "Succeeded"
    order = [story.index("Starting"), story.index("Restarting"), len(story) - 1 - story[::-1].index("Starting")]
    assert order == sorted(set(order))
    assert all(before != after for before, after in itertools.pairwise(story))


def test_events_come_with_changes_alone_whatever_is_listed_and_restarted(stage: Stage) -> None:
    """A run through restarts and resyncs has each Event once, and none is added at rest."""
    often_s = 0.3
    operator = stage.start(resyncIntervalSeconds=often_s)
    pod = started(stage, "tone")
    stage.wait_event("Normal", "Starting")
    operator.kill()
    operator = stage.start(resyncIntervalSeconds=often_s)
    stage.end_pod(pod, 0, succeeded())
    stage.wait_event("Normal", "Succeeded")
    operator.kill()
    before = stated(stage, "tone")
    proxy = stage.proxy()
    stage.start(resyncIntervalSeconds=often_s, proxy=proxy)
    eventually(lambda: len(proxy.made("list jobs")) >= 6, "everything was listed over and over")
    after = stated(stage, "tone")
    assert [event["metadata"]["name"] for event in after] == [event["metadata"]["name"] for event in before]
    assert proxy.made("create *", about="tone") == proxy.made("update *", about="tone") == []
    counts = Counter((event["reason"], event["message"]) for event in after)
    assert set(counts.values()) == {1}, counts
    assert all(event["count"] == 1 for event in after)


def waiting(stage: Stage) -> tuple[Object, Object]:
    """The Job and the pod of a run that waits for its volume, once the operator has said all that there is to say."""
    stage.apply()
    job = stage.wait_job()
    pod = stage.wait_pod(job)
    stage.wait_condition("PodsReady", status="False", reason="VolumeNotReady")
    eventually(lambda: stage.finetune()["status"].get("startTime"), "the Job controller has begun")
    Run(stage=stage, name="tone").wait_told()
    return job, pod


def rounds_of_examples() -> list[dict[Path, list[Object]]]:
    """Every file of the examples with its objects, in rounds in which no name comes twice."""
    rounds: list[dict[Path, list[Object]]] = []
    for path in sorted((REPOSITORY / "examples").glob("*.yaml")):
        objects = [document for document in yaml.safe_load_all(path.read_text()) if document]
        names = {*map(identity, objects)}
        if not rounds or names & {*map(identity, chain(*rounds[-1].values()))}:
            rounds.append({})
        rounds[-1][path] = objects
    return rounds


def identity(document: Object) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


@pytest.mark.parametrize("way", [(), ("--server-side",)], ids=["client", "server"])
def test_applying_an_example_again_changes_nothing_and_its_diff_is_empty(stage: Stage, way: tuple[str, ...]) -> None:
    """Of every example, after the operator has written what it writes; and applied the other way, nothing changes."""
    stage.start()
    other = () if way else ("--server-side", "--force-conflicts")
    for examples in rounds_of_examples():
        files = [f"--filename={path}" for path in examples]
        names = [identity(document) for document in chain(*examples.values())]
        runs = [name for kind, name in names if kind == "LoRAFineTune"]
        kubectl(stage, "delete", "lft", *runs, "--ignore-not-found")
        kubectl(stage, "apply", *way, *files)
        for name in runs:
            stage.wait_condition("Accepted", status="True", name=name)
        assert kubectl(stage, "diff", *way, *files) == ""
        before = stored(stage, names)
        said = kubectl(stage, "apply", *way, *files).splitlines()
        assert {line.rpartition(" ")[2] for line in said} == {"serverside-applied" if way else "unchanged"}
        assert len(said) == len(names)
        assert stored(stage, names) == before
        kubectl(stage, "apply", *other, *files)
        assert stored(stage, names) == before
        assert kubectl(stage, "diff", *other, *files) == ""


def stored(stage: Stage, names: list[tuple[str, str]]) -> list[Object]:
    """These objects without their status, and of their metadata what counts changes of the spec."""
    wanted = [f"{kind}/{name}" for kind, name in names]
    found = stage.cluster.get(*wanted, f"--namespace={stage.namespace}")["items"]
    return [{**it, "metadata": {"generation": it["metadata"].get("generation")}, "status": None} for it in found]


def test_deletion_in_the_foreground_ends_when_job_and_pods_are_gone(stage: Stage) -> None:
    """Until then the resource stays, and the operator neither writes nor makes anything for one that is going."""
    proxy = stage.proxy()
    operator = stage.start(proxy=proxy)
    _, pod = waiting(stage)
    path = stage.path("pods", pod["metadata"]["name"])
    stage.api.patch(path, {"metadata": {"finalizers": ["tests.example/hold"]}})
    turns = 'lora_operator_reconcile_total{result="success"}'
    with ThreadPoolExecutor() as pool:
        deletion = pool.submit(kubectl, stage, "delete", "lft", "tone", "--cascade=foreground", PATIENCE)
        eventually(lambda: stage.objects("jobs")[0]["metadata"].get("deletionTimestamp"), "the Job is going")
        before, turns_before = len(proxy.made()), operator.metric(turns)
        stage.api.patch(stage.path("lorafinetunes", "tone"), {"metadata": {"labels": {"wake": "up"}}})
        eventually(lambda: operator.metric(turns) > turns_before, "the operator has looked at it")
        assert stage.finetune()["metadata"]["deletionTimestamp"]
        assert not deletion.done()
        stage.api.patch(path, {"metadata": {"finalizers": None}})
        deletion.result()
    assert stage.objects("jobs") == stage.objects("pods") == []
    assert [call.what for call in proxy.made()[before:] if call.mutates] == []


def test_deletion_in_the_background_takes_everything_with_it(stage: Stage) -> None:
    """The resource goes at once, its Job and pods soon; the operator deletes nothing itself."""
    proxy = stage.proxy()
    stage.start(proxy=proxy)
    waiting(stage)
    kubectl(stage, "delete", "lft", "tone", "--cascade=background", PATIENCE)
    assert gone(stage.api, stage.path("lorafinetunes", "tone"))
    eventually(lambda: not stage.objects("jobs") + stage.objects("pods"), "neither Job nor pod is left")
    assert len(proxy.made("create jobs")) == 1
    assert proxy.made("delete *") == []


def test_orphans_are_left_to_whoever_wanted_them(stage: Stage) -> None:
    """As with a Job and its pods: the Job stays and goes on, and the operator does not touch it any more."""
    proxy = stage.proxy()
    stage.start(proxy=proxy)
    job, pod = waiting(stage)
    kubectl(stage, "delete", "lft", "tone", "--cascade=orphan", PATIENCE)
    before = len(proxy.made("* jobs"))
    stage.run_pod(pod)

    def left() -> Object | None:
        (found,) = stage.objects("jobs")
        return found if found["status"].get("ready") == 1 else None

    kept = eventually(left, "the Job goes on")
    assert kept["metadata"]["uid"] == job["metadata"]["uid"]
    assert not kept["metadata"].get("ownerReferences")
    writes = [call for call in proxy.made("* jobs")[before:] if call.mutates]
    assert writes == []
