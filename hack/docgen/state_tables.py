"""The steps between the states of a run, and what each condition may say: the one home of both tables.

docs/states.md is drawn from them, and the tests hold whatever a model world does to a LoRAFineTune against them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_operator.decide.states import ENDS, STATES, Group
from lora_operator.model.conditions import Type
from lora_trainer.spec.reasons import Reason

STEPS: Mapping[Group | None, Mapping[Group, str]] = {
    None: {
        Group.WAITING: "applied",
        Group.HELD: "applied with a queue, or suspended",
        Group.FAILED: "the spec breaks a rule",
    },
    Group.WAITING: {
        Group.RUNNING: "all pods run",
        Group.HELD: "suspended, or not admitted",
        Group.RETRYING: "the pod is lost before it ran",
        Group.FAILING: "a failure that is not tried again",
        Group.SUCCEEDED: "as from Running, unseen",
        Group.FAILED: "pendingTimeoutSeconds, or maxRetries used up",
    },
    Group.HELD: {
        Group.WAITING: "resumed, or admitted",
        Group.RUNNING: "resumed, and its pods run already",
        Group.RETRYING: "resumed, after a failure",
        Group.FAILING: "resumed, after the last failure",
        Group.SUCCEEDED: "the pod had done its work",
        Group.FAILED: "the pod had failed for good",
    },
    Group.RUNNING: {
        Group.WAITING: "the preflight passed, its Job was deleted, or a node stopped answering",
        Group.HELD: "suspended, or preempted",
        Group.RETRYING: "a failure worth a retry, or the cluster took the pod",
        Group.FAILING: "a failure that is final, or one too many",
        Group.SUCCEEDED: "the adapter is verified and published",
        Group.FAILED: "activeDeadlineSeconds",
    },
    Group.RETRYING: {
        Group.WAITING: "a new pod is made",
        Group.HELD: "suspended, or not admitted again",
        Group.RUNNING: "the new pod runs",
        Group.FAILING: "the new pod fails for good",
        Group.SUCCEEDED: "as from Running, unseen",
        Group.FAILED: "maxRetries used up",
    },
    Group.FAILING: {
        Group.WAITING: "maxRetries was raised, or the Job deleted",
        Group.HELD: "suspended",
        Group.RUNNING: "maxRetries was raised, unseen",
        Group.RETRYING: "maxRetries was raised",
        Group.SUCCEEDED: "another pod had done the work",
        Group.FAILED: "its Job reports it",
    },
    Group.SUCCEEDED: {},
    Group.FAILED: {},
}
"""From which group a run may come into which, and what does it. The operator may have slept over what lay between."""

_ONGOING = frozenset().union(*(STATES[group] for group in Group if group not in ENDS))
_REFUSED = frozenset(
    {
        Reason.ADMISSION_DENIED,
        Reason.FORBIDDEN,
        Reason.NAME_CONFLICT,
        Reason.POD_SECURITY_VIOLATION,
        Reason.QUOTA_EXCEEDED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One status of one condition, what it means, and the reasons that it may have."""

    status: str
    meaning: str
    reasons: frozenset[Reason]


CONDITIONS: Mapping[Type, tuple[Statement, ...]] = {
    Type.ACCEPTED: (
        Statement(status="Unknown", meaning="no operator has seen the resource", reasons=frozenset({Reason.PENDING})),
        Statement(
            status="True",
            meaning="the spec is valid and the cluster accepted the Job",
            reasons=frozenset({Reason.ACCEPTED}),
        ),
        Statement(
            status="False",
            meaning="the spec breaks a rule, or the API server refuses the Job",
            reasons=_REFUSED | {Reason.CONFIG_INVALID},
        ),
    ),
    Type.QUOTA_RESERVED: (
        Statement(
            status="True",
            meaning="the queue has reserved the quota",
            reasons=frozenset({Reason.QUOTA_RESERVED}),
        ),
        Statement(
            status="False",
            meaning="it waits, was preempted, or holds no quota; absent without a queue",
            reasons=_ONGOING | STATES[Group.FAILED] | STATES[Group.SUCCEEDED],
        ),
    ),
    Type.PREFLIGHT_PASSED: (
        Statement(
            status="Unknown",
            meaning="the checks go on; absent with `preflight: Skip`",
            reasons=_ONGOING,
        ),
        Statement(
            status="True",
            meaning="nothing was found that would fail the run",
            reasons=frozenset({Reason.PREFLIGHT_PASSED}),
        ),
        Statement(status="False", meaning="the run would fail, or its preflight did", reasons=STATES[Group.FAILED]),
    ),
    Type.PODS_READY: (
        Statement(status="True", meaning="the trainer runs on every node", reasons=frozenset({Reason.POD_RUNNING})),
        Statement(
            status="False",
            meaning="it does not run yet, or no longer",
            reasons=_ONGOING | STATES[Group.FAILED] | STATES[Group.SUCCEEDED],
        ),
    ),
    Type.CHECKPOINT_SAVED: (
        Statement(status="True", meaning="a valid checkpoint exists", reasons=frozenset({Reason.CHECKPOINT_SAVED})),
        Statement(
            status="False",
            meaning="there is none, no PVC for one, or none is valid",
            reasons=STATES[Group.FAILED] | {Reason.PENDING, Reason.NO_CHECKPOINT_CLAIM, Reason.SUCCEEDED},
        ),
    ),
    Type.SUSPENDED: (
        Statement(
            status="True",
            meaning="`spec.suspend`, the queue or another client holds the run",
            reasons=STATES[Group.HELD],
        ),
        Statement(status="False", meaning="nothing holds it", reasons=frozenset({Reason.NOT_SUSPENDED})),
    ),
    Type.ARTIFACT_PUBLISHED: (
        Statement(
            status="Unknown",
            meaning="the run continues",
            reasons=frozenset({Reason.PENDING, Reason.PUBLISHING}),
        ),
        Statement(
            status="True",
            meaning="the adapter is at `status.artifact.uri`",
            reasons=frozenset({Reason.SUCCEEDED}),
        ),
        Statement(status="False", meaning="there will be none", reasons=STATES[Group.FAILED]),
    ),
    Type.COMPLETE: (
        Statement(status="Unknown", meaning="the run continues; the reason is its STATE", reasons=_ONGOING),
        Statement(status="True", meaning="the run succeeded", reasons=STATES[Group.SUCCEEDED]),
        Statement(status="False", meaning="the run failed", reasons=STATES[Group.FAILED]),
    ),
    Type.FAILED: (
        Statement(status="Unknown", meaning="the run continues; the reason is its STATE", reasons=_ONGOING),
        Statement(status="False", meaning="the run succeeded", reasons=STATES[Group.SUCCEEDED]),
        Statement(status="True", meaning="the run failed", reasons=STATES[Group.FAILED]),
    ),
}
"""What each condition may say."""
