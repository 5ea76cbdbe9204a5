"""Before GPUs are asked for: model, data and the output's address are looked at, and the run is planned.

Its success leaves nothing to prove, and the training checks all of it again: so a report that is missing or cannot be
read only leaves the status without it.
"""

from lora_operator.decide.run import Run
from lora_operator.decide.verdict import Verdict, dated, failed
from lora_operator.model.conditions import Condition, StateReason, Type
from lora_operator.model.jobs import ending_of
from lora_operator.model.names import PREFLIGHT
from lora_operator.model.objects import ObjectRef
from lora_operator.model.wording import sentence
from lora_trainer.spec.reasons import Reason


def preflight_verdict(run: Run) -> Verdict | None:
    """How the preflight's Job ended, until the status says that it has passed; None before."""
    job = None if run.has_passed_preflight else run.preflight
    ending = ending_of(job) if job is not None else None
    if job is None or ending is None:
        return None
    if ending.type != "Complete":
        return dated(failed(job, ending, run.pods_of(job), run.memory_of(PREFLIGHT), run.policy), job)
    report = run.report if run.report and run.report.reason is Reason.PREFLIGHT_PASSED else None
    unread = (
        f"Job {job.name} has succeeded, but there is no report of it that can be read: the training begins, and "
        "checks model, data and output itself"
    )
    message = sentence(report.message) if report else unread
    return Verdict(succeeded=True, why=StateReason(reason=Reason.PREFLIGHT_PASSED, message=message), summary=report)


def preflight_passed(run: Run, state: StateReason, *, over: bool) -> Condition | None:
    """The condition PreflightPassed; `state` is what the run does or, where it is over, how it ended."""
    if run.has_passed_preflight:
        message = str(run.stored.condition(Type.PREFLIGHT_PASSED).get("message", ""))
        why = StateReason(reason=Reason.PREFLIGHT_PASSED, message=message)
        return Condition(type=Type.PREFLIGHT_PASSED, holds=True, why=why)
    if run.preflight is None:
        return None
    verdict = preflight_verdict(run)
    if verdict is not None and verdict.succeeded:
        return Condition(type=Type.PREFLIGHT_PASSED, holds=True, why=verdict.why)
    return Condition(type=Type.PREFLIGHT_PASSED, holds=False if over else None, why=state)


def is_unread(run: Run) -> bool:
    """Whether the preflight's Job has ended well and no report of it is known: the watch of pods may lag behind."""
    verdict = preflight_verdict(run)
    return verdict is not None and verdict.succeeded and verdict.summary is None


def no_longer_needed(run: Run) -> tuple[ObjectRef, ...]:
    """Its ended Job, once the status has what it found: the training may need that place in a quota."""
    jobs = (job for job in run.jobs if job.stage == PREFLIGHT and not job.deleting and ending_of(job) is not None)
    return tuple(ObjectRef(kind="Job", name=j.name, uid=j.uid) for j in jobs) if run.has_passed_preflight else ()
