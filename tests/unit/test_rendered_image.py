"""Which image a run's pod must have run, where the configuration says that only the rendered one counts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.unit.builders import CONFIG, NOW, ended_pod, make_finetune, make_job_object, make_summary, with_status
from tests.unit.deciding import decide, run_of
from tests.unit.plans import ATTEMPTED, stated

from lora_operator.model.config import load_config
from lora_operator.model.names import IMAGE_ANNOTATION
from lora_operator.model.objects import JobView, Observed, Plan
from lora_operator.model.observe import parse_job

RENDERED, OTHER = "registry.example/lora-trainer:1.0", "registry.evil/x:1"
STORED = {**ATTEMPTED, "resolved": {"image": RENDERED}}
OF_THE_LAST_ATTEMPT = {"resolved": {"image": OTHER}}
COMPLETE = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}


def job_that(*, remembers: str = "", has: str = "") -> JobView:
    """A training Job that is complete: the image that its annotation remembers, and that of its template."""
    containers = [{"name": "trainer", "image": has}] if has else []
    document = make_job_object(
        spec={"template": {"spec": {"containers": containers}}},
        status=COMPLETE,
        annotations={IMAGE_ANNOTATION: remembers} if remembers else {},
    )
    return parse_job(document)


def plan_of(status: Any, job: JobView, ran: str, **settings: Any) -> Plan:
    """What follows where the Job's pod has proven a success, in that image."""
    pod = dataclasses.replace(ended_pod(0, make_summary().to_message()), image=ran)
    config = dataclasses.replace(CONFIG, **{"require_rendered_image": True, **settings})
    return decide(make_finetune(status=status), Observed(jobs=(job,), pods=(pod,)), config, NOW)


@pytest.mark.parametrize("ran", [RENDERED, OTHER])
@pytest.mark.parametrize(
    "status", [None, ATTEMPTED, OF_THE_LAST_ATTEMPT, STORED], ids=["none", "odd", "last", "stored"]
)
@pytest.mark.parametrize(
    "job", [job_that(remembers=RENDERED, has=OTHER), job_that(has=OTHER), job_that()], ids=["remembered", "odd", "bare"]
)
def test_only_the_rendered_image_counts_whatever_the_status_holds(job: JobView, status: Any, ran: str) -> None:
    """A crash before the first status leaves no image in it, and whoever may write it may take it out."""
    reason = "Succeeded" if ran == RENDERED else "ResultUnknown"
    assert stated(plan_of(status, job, ran)) == (str(ran == RENDERED), reason)
    assert stated(plan_of(status, job, ran, require_rendered_image=False)) == ("True", "Succeeded")


def test_a_first_status_after_an_upgrade_names_the_image_of_the_job_that_is_there() -> None:
    """The new configuration names another image than the one that the last operator rendered."""
    job = job_that(remembers=OTHER)
    plan = plan_of(None, job, OTHER, require_rendered_image=False)
    assert stated(plan) == ("True", "Succeeded")
    assert plan.status["resolved"]["image"] == OTHER
    assert "ImageChanged" not in [advice["code"] for advice in plan.status.get("advice", ())]
    known = with_status(make_finetune(), {key: plan.status[key] for key in ("attempt", "jobName", "resolved")})
    assert run_of(known, Observed(jobs=(job,)), CONFIG, NOW).rendered_image == OTHER


@pytest.mark.parametrize("status", [None, {**STORED, "attempt": 0}], ids=["before the first", "of a later attempt"])
@pytest.mark.parametrize("job", [job_that(remembers=OTHER), job_that(has=OTHER)], ids=["annotation", "template"])
def test_a_job_that_the_status_does_not_know_may_not_name_the_image_that_counts(job: JobView, status: Any) -> None:
    """Whoever may create Jobs can make one by the next attempt's name, with an image of theirs."""
    plan = plan_of(status, job, OTHER)
    assert stated(plan)[1] == "ResultUnknown"
    assert plan.status["resolved"]["image"] == RENDERED
    assert "ImageChanged" in [advice["code"] for advice in plan.status["advice"]]


@pytest.mark.parametrize("attempt", [0, 1], ids=["another attempt", "this one"])
def test_a_job_with_the_image_of_the_attempt_before_counts_after_an_upgrade(attempt: int) -> None:
    """The configuration names another one by now."""
    status = {**STORED, "attempt": attempt}
    assert stated(plan_of(status, job_that(remembers=RENDERED), RENDERED, trainer_image=OTHER)) == ("True", "Succeeded")


@pytest.mark.parametrize(
    ("setting", "reason"), [("", "Succeeded"), ("requireRenderedImage: true\n", "ResultUnknown")], ids=["off", "on"]
)
def test_the_setting_of_the_configuration_reaches_the_verdict(tmp_path: Path, setting: str, reason: str) -> None:
    """The Job is as it is rendered; admission changed the image of its pod."""
    path = tmp_path / "config.yaml"
    path.write_text(f"trainerImage: {RENDERED}\n{setting}")
    config, finetune = load_config(path), make_finetune(status=ATTEMPTED)
    (made,) = decide(make_finetune(), Observed(), config, NOW).create
    job = parse_job({**made, "metadata": {**made["metadata"], "uid": "made"}, "status": COMPLETE})
    pod = dataclasses.replace(ended_pod(0, make_summary().to_message(), job_uid="made"), image=OTHER)
    assert job.image == RENDERED
    assert stated(decide(finetune, Observed(jobs=(job,), pods=(pod,)), config, NOW))[1] == reason
