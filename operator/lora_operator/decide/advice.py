"""What would make a run, or the next one, go better, and no condition says. Advice informs; it never decides.

The cluster's own is found here; what spec, model, data and results give rise to comes from the contract's rules, in the
summaries of preflight and training, and as far as the spec alone shows it from the rules themselves.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Any

from lora_operator.decide.run import Run
from lora_operator.decide.trouble import trouble_of_refusal
from lora_operator.model.pods import condition_of, evicted_by_node_pressure, newest_first, was_disrupted
from lora_operator.model.wording import last_line, sentence
from lora_trainer.plan import hints as rules
from lora_trainer.spec import advice as codes

MANY_PREEMPTIONS = 3


class Code(enum.StrEnum):
    """What advice is about, in the order in which it stands in the status."""

    NODE_PRESSURE = "NodePressure"
    OFTEN_PREEMPTED = "OftenPreempted"
    CLEANUP_REFUSED = "CleanupRefused"
    IMAGE_CHANGED = "ImageChanged"


_ORDER = (*Code, *codes.Code)
CODES = frozenset(code.value for code in _ORDER)
SEVERITIES = frozenset(severity.value for severity in codes.Severity)
_LONGEST_TEXT = 1024
_TIME_TO_LIVE = "ttlSecondsAfterFinished"


def advise(run: Run) -> list[dict[str, Any]]:
    """The list for the status, at most one for each code; empty where there is nothing to say.

    What the preflight has to advise is kept in the status, as its pod is not.
    """
    train = run.request.train
    by_spec = map(_said, rules.spoken(rules.before(train))) if train else ()
    reported = run.report.advice if run.report else ()
    return joined([*by_spec, *_kept(run.stored.advice), *_of_the_cluster(run)], *reported)


def advise_cleanup(run: Run) -> list[Mapping[str, Any]]:
    """What was advised until the end, and what keeps finished Jobs from their time to live, which comes first."""
    message = (
        "Have whatever refuses it let the operator set spec.ttlSecondsAfterFinished of Jobs that have ended, or delete "
        "them: the operator tries again every few minutes, and the Job stays until then"
    )
    # What was refused before the end, such as a Job for want of quota, may still stand.
    refused = (one for one in run.observed.refusals if one.patch and _TIME_TO_LIVE in one.patch.body.get("spec", {}))
    found = [_advice(Code.CLEANUP_REFUSED, message, trouble_of_refusal(one).message) for one in refused][:1]
    return [*found, *(one for one in run.stored.advice if one.get("code") != Code.CLEANUP_REFUSED)][: rules.MOST]


def joined(known: Iterable[dict[str, Any]], *reported: codes.Advice) -> list[dict[str, Any]]:
    """A list for the status with what a stage reported: of a code the report counts, else the last that is known.

    Warnings come first, and the last ones are left out where there are more than a status has room for.
    """
    found = {one["code"]: one for one in (*known, *map(_said, rules.spoken(reported)))}
    return sorted(found.values(), key=_place)[: rules.MOST]


def _place(advice: Mapping[str, Any]) -> tuple[bool, int]:
    return advice["severity"] != codes.Severity.WARNING, _ORDER.index(advice["code"])


def _said(one: rules.Spoken) -> dict[str, Any]:
    text = {"message": sentence(one.message), "evidence": sentence(one.evidence)}
    return {"code": one.code.value, "severity": one.severity.value, **text}


def _kept(advice: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """What a stage reported, as it stands in the status, whoever wrote it there."""
    # Lists, as what somebody wrote there need not be hashable.
    known, severities = [code.value for code in codes.Code], [severity.value for severity in codes.Severity]
    for one in advice:
        if one.get("code") not in known or one.get("severity") not in severities:
            continue
        texts = {key: one.get(key) for key in ("message", "evidence")}
        if all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts.values()):
            yield {"code": one["code"], "severity": one["severity"], **texts}


def _of_the_cluster(run: Run) -> list[dict[str, Any]]:
    return [*_of_evictions(run), *_of_preemptions(run), *_of_the_image(run)]


_OF_ITS_NODE = (
    "A node evicted the pod to free its memory or disk: ask for as much as the run needs in spec.resources.memory and "
    "spec.resources.ephemeralStorage of a new LoRAFineTune, or have the node's disk enlarged"
)
_OF_ITS_LIMIT = (
    "The pod filled more of its node's disk than it may: name claims for what is large, such as "
    "spec.checkpoint.volumeClaimName and a cache of models and data, or have the limit raised that a LimitRange of the "
    "namespace sets by default"
)


def _of_evictions(run: Run) -> Iterable[dict[str, Any]]:
    pod = next(filter(evicted_by_node_pressure, newest_first(run.observed.pods)), None)
    if pod is not None:
        message = _OF_ITS_NODE if was_disrupted(pod) else _OF_ITS_LIMIT
        said = last_line(condition_of(pod, "DisruptionTarget").message or pod.message)
        yield _advice(Code.NODE_PRESSURE, message, f"Pod {pod.name} on node {pod.node}: {said}")


def _of_preemptions(run: Run) -> Iterable[dict[str, Any]]:
    times = run.retries.preempted
    if times >= MANY_PREEMPTIONS:
        message = (
            "Each time the work since the last checkpoint is done again: a higher priority, a quieter queue or a "
            "shorter spec.checkpoint.intervalSeconds helps the next run"
        )
        yield _advice(Code.OFTEN_PREEMPTED, message, f"The run was preempted, drained or deleted {times} times")


def _of_the_image(run: Run) -> Iterable[dict[str, Any]]:
    rendered = run.rendered_image
    changed = next((pod for pod in newest_first(run.pods) if pod.image and pod.image != rendered), None)
    if changed is not None:
        message = (
            "Make sure that whatever changes images in this cluster may be trusted with the result: the pod runs "
            "another image than the one that the operator rendered"
        )
        evidence = f"Pod {changed.name} runs {changed.image} instead of {rendered}"
        yield _advice(Code.IMAGE_CHANGED, message, evidence, severity="Info")


def _advice(code: Code, message: str, evidence: str, severity: str = "Warning") -> dict[str, Any]:
    return {"code": code.value, "severity": severity, "message": message, "evidence": sentence(evidence)}
