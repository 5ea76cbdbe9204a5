"""What tests ask of a plan, and what they read from it."""

from collections.abc import Mapping
from typing import Any

from tests.unit.builders import (
    CONFIG,
    NOW,
    ended_pod,
    finished_job,
    job_name,
    make_finetune,
    make_summary,
    with_status,
)
from tests.unit.deciding import decide, run_of

from lora_operator.decide.verdict import Verdict, training_verdict
from lora_operator.model.objects import FineTune, JobView, Observed, Plan, PodView

ATTEMPTED = {"attempt": 1, "jobName": job_name()}


def plan_for(
    finetune: FineTune, *, jobs: tuple[JobView, ...] = (), pods: tuple[PodView, ...] = (), **observed: Any
) -> Plan:
    """The plan at `NOW`."""
    return decide(finetune, Observed(jobs=jobs, pods=pods, **observed), CONFIG, NOW)


def judged(
    job: JobView, *pods: PodView, spec: Mapping[str, Any] | None = None, former: tuple[JobView, ...] = ()
) -> Verdict | None:
    """The verdict on a training Job and its pods; None while it goes on."""
    observed = Observed(jobs=(job,), former_jobs=former, pods=pods)
    run = run_of(make_finetune(spec=spec), observed)
    return training_verdict(job, run.pods, run.memory, run.policy, run.evidence)


def condition(plan: Plan, kind: str) -> dict[str, Any]:
    """A condition of the planned status."""
    found: dict[str, Any] = next(c for c in plan.status["conditions"] if c["type"] == kind)
    return found


def stated(plan: Plan, kind: str = "Complete") -> tuple[str, str]:
    """Status and reason of a condition; by default of the one that is shown as STATE."""
    found = condition(plan, kind)
    return found["status"], found["reason"]


def finished(finetune: FineTune | None = None, **changes: Any) -> FineTune:
    """A resource whose success is stored."""
    done = with_status(
        finetune or make_finetune(**changes),
        plan_for(make_finetune(), jobs=(finished_job(),), pods=(ended_pod(0, make_summary().to_message()),)).status,
    )
    assert done.status["completionTime"]
    return done
