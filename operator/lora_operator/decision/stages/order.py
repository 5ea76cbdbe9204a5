"""The stages of a run, in the order in which it goes through them."""

from lora_operator.decision.case import Case
from lora_operator.decision.quota import waits_for_user
from lora_operator.decision.stages.preflight import FIRST, PREFLIGHT, is_lost
from lora_operator.decision.stages.stage import Stage
from lora_operator.decision.stages.train import TRAIN
from lora_operator.views import names
from lora_operator.views.jobs import ending_of
from lora_operator.views.model import JobView

# Anyone who may create pods can make hundreds whose Job is not there, and each read costs the API server something.
_MOST_ORPHANED = 8
STAGES: tuple[Stage, ...] = (PREFLIGHT, TRAIN)


def reached(case: Case) -> tuple[Stage, JobView | None]:
    """The stage that the run is in, and its Job where it has one: the first that is due and has not succeeded."""
    if case.children.job is not None:
        return TRAIN, case.children.job
    for stage in STAGES[:-1]:
        job = case.children.stages.get(stage.name)
        verdict = stage.judge(case, job) if job else None
        if stage.is_due(case) and not (verdict and verdict.succeeded):
            return stage, job
    return TRAIN, None


def superseded(case: Case) -> tuple[JobView, ...]:
    """Jobs that go on and must not.

    They are of an earlier attempt: a request of an operator that was cut off, say, may make one long after another
    operator has gone on. Or of a stage that there is no more, or not yet: another release made them.
    """
    known, attempt = {stage.name for stage in STAGES}, case.children.attempt
    going = (job for job in case.children.jobs if ending_of(job) is None)
    return tuple(j for j in going if j.stage not in known or (j.stage == TRAIN.name and j.attempt < attempt))


def latest_job(case: Case) -> JobView | None:
    """The Job of the last stage that has one."""
    stages = [case.children.stages.get(stage.name) for stage in STAGES[:-1]]
    return next((job for job in (case.children.job, *reversed(stages)) if job is not None), None)


def makes_none(case: Case) -> bool:
    """Whether no training Job is known and none may be made: no name that is taken shows one that lost its labels."""
    return waits_for_user(case.request) and case.children.job is None


def job_names(case: Case) -> tuple[str, ...]:
    """The Jobs that the run has or should have, and those that its orphans had, by name: what a live read asks for."""
    finetune, children = case.finetune, case.children
    # An operator that was cut off may have made the next attempt, and no other.
    orphaned = dict.fromkeys(pod.attempt for pod in children.orphans if 0 < pod.attempt <= children.attempt + 1)
    # One that was not answered may have been made.
    unmade = (children.number,) if makes_none(case) or case.observed.rejection is not None else ()
    attempts = (max(1, children.attempt), *unmade, *[*orphaned][:_MOST_ORPHANED])
    due = [(stage.name, children.number) for stage in STAGES[:-1] if stage.is_due(case)]
    due += [(PREFLIGHT.name, FIRST)] if is_lost(case) else []
    return tuple(
        dict.fromkeys(
            (
                *(job.name for job in children.jobs),
                *(names.child_name(finetune.name, finetune.uid, attempt) for attempt in attempts),
                *(names.job_name(finetune.name, finetune.uid, number, stage) for stage, number in due),
            )
        )
    )
