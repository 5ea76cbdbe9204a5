"""Whatever is applied, stored by an older release or written by others: the operator survives it and answers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from tests.component.documents import finetune, succeeded
from tests.component.generated import REPOSITORY, Generator, loose, present, set_field
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage, gone

from localcluster.api import ApiError

Object = dict[str, Any]
COUNT = 1000
MOST_MEMORY_MIB = 200
ODD_STATUS: tuple[Any, ...] = (
    "done",
    [],
    {"conditions": "none"},
    {"conditions": [None, 3, "x", {}, {"type": 7}, {"type": "Complete"}, {"type": "Complete", "status": True}]},
    {"conditions": [{"type": "Failed", "status": "True"}, {"type": "Complete", "status": "True"}] * 2},
    {"attempt": "many", "jobName": 7, "podName": {}, "startTime": "yesterday", "completionTime": -1},
    {"attempt": 10**15, "observedGeneration": "x", "progress": [], "retries": 3, "resolved": "x", "artifact": 1},
    {"retries": {"preempted": "x", "used": -5}, "runSeconds": "1", "activeSince": 0},
    {"advice": "none", "checkpoint": [1], "results": None, "progress": {"step": "x", "lastUpdateTime": "x"}},
    {"conditions": [{"type": f"Foreign{number}", "status": "True"} for number in range(5000)]},
    {"progress": {"phase": "x" * 500_000}, "unknown": {"deep": [[[[{}]]]]}},
)


def _bases() -> list[Object]:
    """Good resources: the least, and every example."""
    documents = [finetune()]
    for path in sorted((REPOSITORY / "examples").glob("*.yaml")):
        documents += [d for d in yaml.safe_load_all(path.read_text()) if d and d["kind"] == "LoRAFineTune"]
    for document in documents:
        document.pop("status", None)
        document["metadata"].pop("namespace", None)
    return documents


def _rss_mib(operator: OperatorProcess) -> float:
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _unharmed(operator: OperatorProcess) -> None:
    """It runs, within its memory, and nothing took it by surprise."""
    assert operator.process.poll() is None, operator.text()[-4000:]
    assert operator.get("/readyz")[0] == 200
    text = operator.text()
    assert "Traceback" not in text, text[text.find("Traceback") - 1000 :][:4000]
    assert "unexpected" not in text, text[text.find("unexpected") - 500 :][:2000]
    assert _rss_mib(operator) < MOST_MEMORY_MIB


def _accepted(resource: Object) -> Object:
    """Its condition Accepted, once the operator has written it."""
    status = resource.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    stated = conditions if isinstance(conditions, list) else []
    found = (c for c in stated if isinstance(c, dict) and c.get("type") == "Accepted")
    condition: Object = next(found, {})
    return condition if condition.get("message") not in (None, "Waiting for the operator") else {}


def _wait_answers(stage: Stage, *, but: Callable[[Object], bool] = lambda _: False) -> None:
    """Every resource gets Accepted with a reason, except for those that `but` is true of."""
    left: list[Object] = []

    def answered() -> bool:
        left[:] = [run for run in stage.objects("lorafinetunes") if not _accepted(run) and not but(run)]
        return not left

    try:
        eventually(answered, "every resource has Accepted with a reason", deadline_s=300)
    except AssertionError as error:
        error.add_note(f"{len(left)} have not: {str(left[0])[:3000]}")
        raise


def _claims_to_have_ended(run: Object) -> bool:
    """Whether somebody wrote a verdict, which stands whoever it was."""
    status = run.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    stated = [c for c in conditions if isinstance(c, dict)] if isinstance(conditions, list) else []
    return any(c.get("type") in {"Complete", "Failed"} and c.get("status") == "True" for c in stated)


@pytest.fixture
def careless(stage: Stage, definition: None) -> Iterator[Stage]:
    """The definition takes anything until the test calls for the present one; afterwards the present one is back."""
    _install(stage, loose(present()))
    eventually(lambda: _takes(stage, {"spec": 3}), "the API server takes anything")
    try:
        yield stage
    finally:
        _install(stage, present())
        eventually(lambda: not _takes(stage, {"spec": 3}), "the API server takes what is valid")


def _install(stage: Stage, crd: Object) -> None:
    """Make this the definition, whatever was."""
    file = stage.folder / "definition.yaml"
    file.write_text(yaml.safe_dump(crd))
    stage.cluster.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={file}")


def _takes(stage: Stage, document: Object) -> bool:
    """Whether the API server would store it."""
    body = {**finetune("probe"), **document}
    try:
        stage.api.post(stage.path("lorafinetunes") + "?dryRun=All", body)
    except ApiError:
        return False
    return True


def _odd_runs() -> list[Object]:
    """What no present definition would let in: fields of any type, fields unknown, and statuses of any shape."""
    random = Random(7)  # noqa: S311 - a seed, so that a failure can be repeated
    generator = Generator(random, _bases())
    runs = []
    for number in range(40):
        run = generator.resource(f"odd-{number}")
        run["metadata"] = {"name": f"odd-{number}", "annotations": {"team": "red"}}
        for _ in range(3):
            if isinstance(run.get("spec"), dict):
                set_field(run["spec"], random.choice(generator.fields).path, generator.junk({}))
        run["spec"] = random.choice((run["spec"], run["spec"], run["spec"], 3, "", [], None))
        runs.append({**run, "kindOfOwner": "team", "status": random.choice(ODD_STATUS)})
    return runs


def _store(stage: Stage, runs: list[Object]) -> None:
    for run in runs:
        name, status = run["metadata"]["name"], run["status"]
        stage.api.post(stage.path("lorafinetunes"), {key: value for key, value in run.items() if key != "status"})
        # A merge patch cannot put a word in the place of a block, but it can where there is nothing.
        stage.api.patch(stage.path("lorafinetunes", name, "status"), {"status": None})
        stage.api.patch(stage.path("lorafinetunes", name, "status"), {"status": status})


def _refuses_any_status(stage: Stage, run: Object) -> bool:
    """Whether the API server takes no status for this resource, however good."""
    condition = {"type": "Accepted", "status": "False", "reason": "ConfigInvalid", "message": "no"}
    status = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    path = stage.path("lorafinetunes", run["metadata"]["name"], "status") + "?dryRun=All"
    try:
        stage.api.patch(path, {"status": None})
        stage.api.patch(path, {"status": status})
    except ApiError:
        return True
    return False


def test_what_an_older_definition_let_in_harms_nobody(careless: Stage) -> None:
    """Stored under the old definition, read under the present one: answered, unless no status can be stored at all."""
    stage = careless
    _store(stage, _odd_runs())
    _install(stage, present())
    eventually(lambda: not _takes(stage, {"spec": 3}), "the API server takes what is valid")
    operator = stage.start()
    stage.apply()
    stage.wait_condition("Accepted", status="True")

    _wait_answers(stage, but=lambda run: _claims_to_have_ended(run) or _refuses_any_status(stage, run))
    _unharmed(operator)


def test_what_users_and_others_add_survives_to_the_end(stage: Stage) -> None:
    """Labels, annotations, finalizers and foreign conditions are there after the verdict as they were put."""
    operator = stage.start()
    stage.apply()
    marks = {"labels": {"team": "red"}, "annotations": {"note": "\U0001f600 ü"}, "finalizers": ["team.example/keep"]}
    stage.api.patch(stage.path("lorafinetunes", "tone"), {"metadata": marks})
    job = stage.wait_job()
    pod = stage.wait_pod(job)
    stage.wait_condition("Accepted", status="True")
    foreign = {
        "type": "team.example/Approved",
        "status": "True",
        "reason": "ByHand",
        "message": "fine",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    _add_condition(stage, foreign)
    stage.run_pod(pod)
    stage.wait_condition("PodsReady", status="True")
    assert stage.condition("team.example/Approved") == foreign
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True")
    run = stage.finetune()
    assert stage.condition("team.example/Approved") == foreign
    assert {key: run["metadata"][key] for key in marks} == marks
    stage.api.delete(stage.path("lorafinetunes", "tone"))
    assert stage.finetune()["metadata"]["finalizers"] == ["team.example/keep"]
    stage.api.patch(stage.path("lorafinetunes", "tone"), {"metadata": {"finalizers": None}})
    eventually(lambda: gone(stage.api, stage.path("lorafinetunes", "tone")), "the resource is gone")
    _unharmed(operator)


def _add_condition(stage: Stage, condition: Object) -> None:
    """As another controller does: read, add, write, and again where somebody was faster."""

    def add() -> bool:
        run = stage.finetune()
        conditions = [*run["status"]["conditions"], condition]
        version = {"resourceVersion": run["metadata"]["resourceVersion"]}
        try:
            body = {"metadata": version, "status": {"conditions": conditions}}
            stage.api.patch(stage.path("lorafinetunes", "tone", "status"), body)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    eventually(add, "the condition is written")


def test_a_thousand_generated_resources_are_refused_or_answered(stage: Stage) -> None:
    """Valid, extreme, Unicode, maximum sizes and nonsense: a refusal names the field, all else gets Accepted."""
    operator = stage.start()
    generator = Generator(Random(20261125), _bases())  # noqa: S311 - a seed, so that a failure can be repeated
    resources = [generator.resource(f"run-{number}") for number in range(COUNT)]

    def post(resource: Object) -> str:
        try:
            stage.api.post(stage.path("lorafinetunes"), resource)
        except ApiError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        refusals = [text for text in pool.map(post, resources) if text]
    stored = COUNT - len(refusals)
    assert stored >= COUNT / 5, refusals[:5]
    assert len(refusals) >= COUNT / 5
    assert all(text.startswith("4") for text in refusals), [text for text in refusals if text[0] != "4"]

    _wait_answers(stage)
    runs = stage.objects("lorafinetunes")
    assert len(runs) == stored
    assert all(_accepted(run)["reason"] for run in runs)
    assert {_accepted(run)["status"] for run in runs} <= {"True", "False"}
    _unharmed(operator)
