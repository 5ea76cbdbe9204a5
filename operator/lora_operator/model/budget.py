"""What the spec allows a run, less what is used up: the limits of its next or its present Job."""

from dataclasses import dataclass

from lora_operator.model.request import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Used up before a Job began, or went on after a suspension: retries, and seconds of activity."""

    retries: int = 0
    run_s: int = 0


def backoff_limit(policy: Policy, used: Used, pods: int) -> int:
    """Failed pods that a Job bears. Where several train together, each may fail by itself, as without a network."""
    return max(0, policy.max_retries - used.retries) * pods


def seconds_left(policy: Policy, used: Used) -> int | None:
    """Seconds until the Job's deadline, as Kubernetes counts them: from the Job's start; None for no limit."""
    if policy.active_deadline_s is None:
        return None
    return max(1, policy.active_deadline_s - used.run_s)


def is_spent(policy: Policy, used: Used) -> bool:
    """Whether a Job that does not run yet has no second left to run in."""
    return policy.active_deadline_s is not None and used.run_s >= policy.active_deadline_s
