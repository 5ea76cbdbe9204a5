"""What `lora-operator explain` says about one LoRAFineTune: what `decide` sees, what it decides now, and why it waits.

Pure: from what was read to a document of plain values, for machines, and from that to text, for people.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from lora_operator.decision.case import read_case
from lora_operator.decision.retries import Cause
from lora_operator.decision.vocabulary import VOCABULARY
from lora_operator.views.conditions import (
    Type,
    condition_in,
    is_finished,
    is_untouched,
    previous_condition,
    result_of,
    state_of,
)
from lora_operator.views.config import OperatorConfig
from lora_operator.views.model import (
    ConditionView,
    EventView,
    FineTune,
    JobView,
    Observed,
    Plan,
    PodView,
    WorkloadView,
    soonest,
)
from lora_operator.views.pods import newest_first
from lora_operator.views.wording import advice_lines, block_of, duration, maps_of, sentence
from lora_trainer.contract.reasons import Reason

Document = dict[str, Any]
_UNTAKEN = "No operator has written a status yet: look whether one runs, and watches this namespace"
_WRITES = {
    "operator": "It would write (this command writes nothing)",
    "default": "With default settings it would write (this command writes nothing)",
    "unknown": "What it would write depends on the chart's defaults, which are not known here",
}
"""By whose settings the plan was made."""


def describe(
    finetune: FineTune,
    observed: Observed,
    plan: Plan,
    *,
    config: OperatorConfig,
    now: datetime,
    notes: Iterable[str] = (),
    knows_settings: bool = True,
) -> Document:
    """The whole explanation. `notes` are what the reader of the cluster has to say, beside what is seen here.

    Without `knows_settings`, `config` and `plan` are those of a chart whose defaults are unset: the state is then the
    one that the operator wrote, and of the plan a refusal of the spec, which those defaults may mend, is left out.
    """
    decided, settings = plan, "operator"
    if not knows_settings:
        decided, settings = Plan(status=finetune.status), "default"
        if not observed.jobs and not is_finished(finetune) and state_of(plan.status) == Reason.CONFIG_INVALID:
            plan, settings = decided, "unknown"
    return {
        "resource": _resource(finetune, now),
        "policy": _policy(finetune, observed, config, now),
        "sees": {
            "jobs": [_job(job, now) for job in observed.jobs],
            "pods": [_pod(pod, observed, now) for pod in newest_first(observed.pods)],
            "workloads": [_workload(workload, now) for workload in observed.workloads],
            "events": [_event(event, observed, now) for event in observed.events],
        },
        "decides": _decision(finetune, decided),
        "plans": {"settings": settings, **_writes(finetune, plan)},
        "notes": [*notes, *_notes_on_others(observed), *_notes(finetune, plan, config, knows_settings=knows_settings)],
    }


def _resource(finetune: FineTune, now: datetime) -> Document:
    spec = finetune.spec
    state = previous_condition(finetune, Type.COMPLETE)
    return {
        "namespace": finetune.namespace,
        "name": finetune.name,
        "uid": finetune.uid,
        "generation": finetune.generation,
        "age": _age(finetune.created_at, now),
        "deleting": finetune.deleting,
        "state": str(state.get("reason", "")),
        "result": result_of(finetune.status),
        "attempt": finetune.status.get("attempt", 0),
        "observedGeneration": finetune.status.get("observedGeneration", 0),
        **{field: str(block_of(spec, field).get("uri", "")) for field in ("model", "dataset", "output")},
    }


def _policy(finetune: FineTune, observed: Observed, config: OperatorConfig, now: datetime) -> Document:
    """What bounds the run, and how much of it is used up."""
    case = read_case(finetune, observed, config, now)
    policy, queue = case.request.policy, case.request.pod.queue_labels
    spent_s = case.spent.ended_at(now).run_s
    limit_s = policy.active_deadline_s
    return {
        "suspend": policy.suspend,
        "maxRetries": policy.max_retries,
        "activeDeadlineSeconds": policy.active_deadline_s,
        "pendingTimeoutSeconds": policy.pending_timeout_s,
        "ttlSecondsAfterFinished": policy.ttl_s,
        "usedRetries": case.used.retries,
        "retries": {cause.value: case.retries.of(cause) for cause in Cause},
        "runSeconds": spent_s,
        **({} if limit_s is None else {"secondsUntilDeadline": max(0, limit_s - spent_s)}),
        **({"queue": dict(queue)} if queue else {}),
    }


def _job(job: JobView, now: datetime) -> Document:
    return {
        "name": job.name,
        "role": job.stage,
        "attempt": job.attempt,
        "age": _age(job.created_at, now),
        "active": job.active,
        "failed": job.failed,
        "suspended": job.suspended,
        "deleting": job.deleting,
        "backoffLimit": job.backoff_limit,
        "conditions": [_condition(c, now) for c in job.conditions],
    }


def _pod(pod: PodView, observed: Observed, now: datetime) -> Document:
    return {
        "name": pod.name,
        "role": pod.stage,
        "attempt": pod.attempt,
        "index": pod.index,
        "age": _age(pod.created_at, now),
        "phase": pod.phase,
        "node": pod.node,
        "trainer": _trainer(pod),
        "deleting": pod.deleting,
        "orphan": pod.job_uid not in {job.uid for job in observed.jobs},
        "conditions": [_condition(c, now) for c in pod.conditions],
    }


def _trainer(pod: PodView) -> str:
    trainer = pod.trainer
    if trainer.exit_code is not None:
        return f"ended with exit code {trainer.exit_code} {trainer.termination_reason}".rstrip()
    if trainer.running:
        return "running"
    return f"waiting: {trainer.waiting_reason}" if trainer.waiting_reason else "not started"


def _workload(workload: WorkloadView, now: datetime) -> Document:
    conditions = [_condition(c, now) for c in workload.conditions]
    return {"name": workload.name, "active": workload.active, "conditions": conditions}


def _condition(view: ConditionView, now: datetime) -> str:
    """`Ready=False ContainersNotReady for 3m`."""
    since = _age(view.since, now)
    return f"{view.type}={view.status} {view.reason}".rstrip() + (f" for {since}" if since else "")


def _event(event: EventView, observed: Observed, now: datetime) -> Document:
    names = {view.uid: f"Job/{view.name}" for view in observed.jobs}
    names |= {view.uid: f"Pod/{view.name}" for view in observed.pods}
    return {
        "age": _age(event.last_seen, now),
        "type": event.type,
        "reason": event.reason,
        "about": names.get(event.about_uid, event.about_uid),
        "message": sentence(event.message),
    }


def _decision(finetune: FineTune, plan: Plan) -> Document:
    state = condition_in(plan.status, "Complete")
    reason = str(state.get("reason", ""))
    untaken = is_untouched(plan.status)  # so its reason is nobody's
    known = VOCABULARY[Reason(reason)] if reason in set(Reason) and not untaken else None
    return {
        "state": reason,
        "verdict": result_of(plan.status),
        "why": _why(finetune, plan, _UNTAKEN if untaken else str(state.get("message", ""))),
        "meaning": known.meaning if known else "",
        "remedy": known.remedy if known else "",
        "advice": advice_lines(plan.status.get("advice"), str(state.get("message", ""))),
    }


def _why(finetune: FineTune, plan: Plan, message: str) -> str:
    if finetune.deleting:
        return "The resource is being deleted; its Jobs and pods go with it, and nothing is decided any more"
    if is_finished(finetune):
        rest = "; what is left of its attempt is cleaned up now" if plan.delete else ""
        return f"The run has ended, and its verdict never changes: {message}{rest}"
    return message


def _writes(finetune: FineTune, plan: Plan) -> Document:
    """What the operator would write now; nothing is written here."""
    return {
        "create": [f"{m['kind']}/{m['metadata']['name']}" for m in plan.create],
        "patch": [{"object": f"{patch.kind}/{patch.name}", "body": dict(patch.body)} for patch in plan.patch],
        "status": list(_differences(finetune.status, plan.status)),
        "delete": [f"{target.kind}/{target.name}" for target in plan.delete],
        "events": [f"{event.type} {event.reason}: {event.message}" for event in plan.events],
        "asksForProgress": plan.ask_progress.name if plan.ask_progress else "",
        "nextLookSeconds": soonest(plan.requeue_after_s, plan.due_in_s),
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """One line for each field of the status that would change; of a condition without its generation and its date."""
    for key in [*before, *(key for key in after if key not in before)]:
        old, new, here = before.get(key), after.get(key), f"{path}{key}"
        if key == "conditions":
            yield from _differences(_by_type(old), _by_type(new), f"{here}.")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{here}.")
        elif old != new:
            yield f"{here}: {_shown(old)} -> {_shown(new)}"


def _by_type(conditions: object) -> dict[str, str]:
    return {
        str(c.get("type")): f"{c.get('status')} {c.get('reason')} ({c.get('message')})" for c in maps_of(conditions)
    }


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)


def _notes_on_others(observed: Observed) -> Iterator[str]:
    if observed.jobs_left_out:
        yield f"{observed.jobs_left_out} more Jobs are this run's and are not looked at: find out who makes them"
    if observed.pods_left_out:
        yield (
            f"{observed.pods_left_out} more pods have this run's labels and are not looked at: find out who makes them"
        )


def _notes(finetune: FineTune, plan: Plan, config: OperatorConfig, *, knows_settings: bool) -> Iterator[str]:
    if config.namespaces and finetune.namespace not in config.namespaces:
        yield (
            f"The operator with this configuration does not watch namespace {finetune.namespace}: add it to namespaces"
        )
    accepted = previous_condition(finetune, Type.ACCEPTED)
    refusal = str(accepted.get("message")) if accepted.get("status") == "False" and not is_finished(finetune) else ""
    if refusal:
        yield (
            f"The last try was refused: {refusal}; the operator tries again at least every "
            f"{config.retry_max_s:.0f} s, a name conflict every {config.resync_interval_s:.0f} s"
        )
    if is_untouched(finetune.status) and not finetune.deleting:
        yield from [_UNTAKEN] if knows_settings else []
    elif (plan.create or plan.patch or plan.delete) and accepted.get("status") != "False":
        yield "The operator would do this within a second: if this answer stays the same, look at the operator's log"


def _age(since: datetime | None, now: datetime) -> str:
    """How long ago; empty for an unknown time, 0s for one that another clock puts into the future."""
    return duration(max(0, int((now - since).total_seconds()))) if since is not None and since.year > 1970 else ""


def render(document: Document) -> str:
    """The explanation as text."""
    return "\n".join([*_head(document), *_sees(document["sees"]), *_plans(document["plans"]), *_more(document)]) + "\n"


def _head(document: Document) -> Iterator[str]:
    resource, policy, decides = document["resource"], document["policy"], document["decides"]
    yield f"LoRAFineTune {resource['namespace']}/{resource['name']}"
    yield f"  uid {resource['uid']}, generation {resource['generation']}, {resource['age'] or 'of unknown age'} old"
    for field in ("model", "dataset", "output"):
        yield f"  {field:<8}{resource[field]}"
    yield "  policy  " + ", ".join(f"{name} {_setting(value)}" for name, value in policy.items())
    yield ""
    yield f"State: {decides['state'] or 'none yet'}" + (f" ({decides['verdict']})" if decides["verdict"] else "")
    yield from (f"  {text}" for text in (decides["why"], decides["meaning"]) if text)
    if decides["remedy"]:
        yield f"  What to do: {decides['remedy']}"
    yield from (f"  {text}" for text in decides["advice"])
    if resource["state"] != decides["state"]:
        yield f"  The status still says {resource['state'] or 'nothing'}."
    yield ""


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={value[key]}" for key in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "unlimited" if value is None else str(value)


def _sees(sees: Document) -> Iterator[str]:
    yield "decide() sees"
    if not any(sees.values()):
        yield "  no Job, no pod"
    for job in sees["jobs"]:
        flags = "".join(f", {flag}" for flag in ("suspended", "deleting") if job[flag])
        yield (
            f"  Job/{job['name']}: {job['role']}, attempt {job['attempt']}, {job['age']} old, {job['active']} active, "
            f"{job['failed']} failed of {job['backoffLimit']}{flags}"
        )
        yield from (f"    {line}" for line in job["conditions"])
    for pod in sees["pods"]:
        flags = "".join(f", {flag}" for flag in ("orphan", "deleting") if pod[flag])
        yield (
            f"  Pod/{pod['name']}: {pod['role']}, {pod['age']} old, {pod['phase'] or 'no phase'}, "
            f"node {pod['node'] or 'none'}, trainer {pod['trainer']}{flags}"
        )
        yield from (f"    {line}" for line in pod["conditions"])
    for workload in sees["workloads"]:
        yield f"  Workload/{workload['name']}: {'active' if workload['active'] else 'not active'}"
        yield from (f"    {line}" for line in workload["conditions"])
    for event in sees["events"]:
        what = f"{event['type']} {event['reason']}: {event['message']}"
        yield f"  Event {event['age']} ago about {event['about']}: {what}"
    yield ""


def _plans(plans: Document) -> Iterator[str]:
    yield _WRITES[plans["settings"]]
    if plans["settings"] == "unknown":
        return
    lines = [
        *(f"create  {name}" for name in plans["create"]),
        *(f"patch   {patch['object']} {patch['body']}" for patch in plans["patch"]),
        *(f"status  {line}" for line in plans["status"]),
        *(f"delete  {name}" for name in plans["delete"]),
        *(f"event   {line}" for line in plans["events"]),
    ]
    yield from (f"  {line}" for line in lines or ["nothing"])
    seconds = plans["nextLookSeconds"]
    if plans["asksForProgress"]:
        yield f"It asks pod {plans['asksForProgress']} for its progress"
    yield "Next look: " + ("" if seconds is None else f"in {seconds:g} s, or ") + "as soon as something changes"


def _more(document: Document) -> Iterator[str]:
    if document["notes"]:
        yield ""
        yield "Notes"
        yield from (f"  {note}" for note in document["notes"])
