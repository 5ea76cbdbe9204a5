"""What would make a run, or the next one, go better. Advice informs; it never decides.

The cluster's own is found here; what spec, model, data and results give rise to comes from the contract's rules, in the
summaries of preflight and training, and as far as the spec alone shows it from the rules themselves.
"""

import enum
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from lora_operator.decision.run import Run
from lora_operator.decision.trouble import trouble_of_refusal
from lora_operator.views.conditions import Finding
from lora_operator.views.model import PodView
from lora_operator.views.names import TRAIN
from lora_operator.views.pods import condition_of, failure_of, newest_first, was_disrupted, was_short_of_something
from lora_operator.views.wording import last_line, sentence
from lora_trainer.contract.advice import codes, rules
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.exit_codes import FINAL
from lora_trainer.contract.manifest import checkpoint_claim
from lora_trainer.contract.reasons import Reason

MANY_PREEMPTIONS = 3
PATIENCE_WITH_A_NODE = timedelta(minutes=5)


class Code(enum.StrEnum):
    """What advice is about, in the order in which it stands in the status."""

    NO_CHECKPOINT_CLAIM = "NoCheckpointClaim"
    MORE_MEMORY = "MoreMemory"
    NODE_SILENT = "NodeSilent"
    NODE_PRESSURE = "NodePressure"
    GPU_FAULT = "GPUFault"
    OFTEN_PREEMPTED = "OftenPreempted"
    CLEANUP_REFUSED = "CleanupRefused"
    IMAGE_CHANGED = "ImageChanged"


_ORDER = (*Code, *codes.Code)
CODES = frozenset(code.value for code in _ORDER)
SEVERITIES = frozenset(severity.value for severity in codes.Severity)
_LONGEST_TEXT = 1024


def advise(run: Run, state: Finding) -> list[dict[str, Any]]:
    """The list for the status, at most one for each code; empty where there is nothing to say.

    What the preflight has to advise is kept in the status, as its pod is not.
    """
    train = run.request.train
    by_spec = map(_said, rules.spoken(rules.before(train))) if train else ()
    reported = run.report.advice if run.report else ()
    return joined([*by_spec, *_kept(run.stored.advice), *_of_the_cluster(run, state, train)], *reported)


def advise_cleanup(run: Run) -> list[Mapping[str, Any]]:
    """What was advised until the end, and what keeps finished Jobs from their time to live, which comes first."""
    message = (
        "Have whatever refuses it let the operator set spec.ttlSecondsAfterFinished of Jobs that have ended, or delete "
        "them: the operator tries again every few minutes, and the Job stays until then"
    )
    refused = (trouble_of_refusal(refusal).message for refusal in run.observed.refusals[:1])
    found = [_advice(Code.CLEANUP_REFUSED, message, why) for why in refused]
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


def _of_the_cluster(run: Run, state: Finding, train: TrainConfig | None) -> list[dict[str, Any]]:
    return [
        *(_of_the_spec(train) if train else ()),
        *_of_memory(run, state),
        *_of_a_silent_node(run, state),
        *_of_pods(newest_first(run.observed.pods)),
        *_of_preemptions(run),
        *_of_the_image(run),
    ]


def _of_the_spec(train: TrainConfig) -> Iterable[dict[str, Any]]:
    if checkpoint_claim(train) is None:
        message = (
            "A restart loses what the run has done: name a claim in spec.checkpoint.volumeClaimName of the next one"
        )
        yield _advice(
            Code.NO_CHECKPOINT_CLAIM, message, f"The result goes to {train.output.uri}, and no claim is named"
        )


def _of_memory(run: Run, state: Finding) -> Iterable[dict[str, Any]]:
    killed = sum(failure.reason is Reason.OOM_KILLED for _, failure in run.failures)
    if not killed and state.reason is not Reason.OOM_KILLED:
        return
    message = (
        "Raise spec.resources.memory in a new LoRAFineTune, or preflightMemory in the operator's configuration if it "
        "was the pod of its preflight"
    )
    pods = "1 pod was" if killed == 1 else f"{killed} pods were"
    evidence = f"{pods} killed for memory; a pod that trains has {run.memory_of(TRAIN).amount}"
    yield _advice(Code.MORE_MEMORY, message, evidence if killed else state.message)


def _of_a_silent_node(run: Run, state: Finding) -> Iterable[dict[str, Any]]:
    silent = state.reason is Reason.NODE_UNREACHABLE and state.since is not None
    if silent and state.since and run.now - state.since >= PATIENCE_WITH_A_NODE:
        message = (
            "Look at the node. If it is gone for good, delete it or taint it node.kubernetes.io/out-of-service: only "
            "then does Kubernetes let go of the pod and of its volume, and the run continues elsewhere"
        )
        yield _advice(Code.NODE_SILENT, message, state.message)


_OF_ITS_NODE = (
    "A node evicted the pod to free its memory or disk: ask for as much as the run needs in spec.resources.memory and "
    "spec.resources.ephemeralStorage of a new LoRAFineTune, or have the node's disk enlarged"
)
_OF_ITS_LIMIT = (
    "The pod filled more of its node's disk than it may: name claims for what is large, such as "
    "spec.checkpoint.volumeClaimName and a cache of models and data, or have the limit raised that a LimitRange of the "
    "namespace sets by default"
)


def _of_pods(pods: Iterable[PodView]) -> Iterable[dict[str, Any]]:
    given: set[Code] = set()
    for pod in pods:
        disruption, failure = condition_of(pod, "DisruptionTarget"), failure_of(pod)
        if was_short_of_something(pod) and Code.NODE_PRESSURE not in given:
            given.add(Code.NODE_PRESSURE)
            message = _OF_ITS_NODE if was_disrupted(pod) else _OF_ITS_LIMIT
            evidence = f"Pod {pod.name} on node {pod.node}: {last_line(disruption.message or pod.message)}"
            yield _advice(Code.NODE_PRESSURE, message, evidence)
        # A GPU that does not suit the image is as good as it was: there is nothing to be repaired.
        broken = failure is not None and failure.reason is Reason.GPU_FAULT and pod.trainer.exit_code not in FINAL
        if failure is not None and broken and Code.GPU_FAULT not in given:
            given.add(Code.GPU_FAULT)
            message = "Have the node's GPU and driver checked, and the node cordoned until then"
            yield _advice(Code.GPU_FAULT, message, f"Pod {pod.name} on node {pod.node}: {failure.message}")


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
