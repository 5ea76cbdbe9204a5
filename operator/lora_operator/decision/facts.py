"""What a status says besides its state: what was reached, counted over all attempts, resolved, and advised."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_operator.decision.advice import advise
from lora_operator.decision.case import Case
from lora_operator.decision.checkpoint import checkpoint_saved
from lora_operator.decision.proof import Verdict
from lora_operator.decision.quota import no_quota
from lora_operator.decision.results import resolved_by_request
from lora_operator.decision.stages.order import STAGES, latest_job
from lora_operator.decision.stages.preflight import advised, findings
from lora_operator.decision.status import Facts, Status
from lora_operator.views.conditions import Condition, Finding
from lora_operator.views.names import QUEUE_LABEL


def with_counts(case: Case, facts: Facts, state: Finding) -> Facts:
    """With what was found out beforehand and counted over all attempts, and the advice that follows."""
    counted = dataclasses.replace(facts, spent=case.spent, retries=case.retries, findings=findings(case))
    return dataclasses.replace(counted, advice=advise(case, state, *advised(case)))


def milestones(
    case: Case, state: Finding, progress: Mapping[str, Any], verdict: Verdict | None = None
) -> tuple[Condition, ...]:
    """The conditions of the stages, and that of the last checkpoint."""
    conditions = [stage.condition(case, state, verdict) for stage in STAGES]
    conditions.append(checkpoint_saved(case.request.train, progress, verdict))
    return tuple(condition for condition in conditions if condition is not None)


def without_quota(case: Case, state: Finding) -> tuple[Condition, ...]:
    """The condition QuotaReserved where no Job goes on; nothing for a run that is in no queue."""
    job = latest_job(case)
    queue = job.queue if job else case.request.pod.queue_labels.get(QUEUE_LABEL)
    return (no_quota(state, queue),) if queue else ()


def resolution(case: Case) -> Status:
    """What was resolved stays, unless a crash came before the first status of the run, or of the Job that trains."""
    return case.resolved or resolved_by_request(case.request, case.rendered_image)
