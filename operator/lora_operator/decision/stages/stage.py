"""A stage of a run: one Job, and what is particular to it."""

from collections.abc import Callable
from dataclasses import dataclass

from lora_operator.decision.case import Case
from lora_operator.decision.proof import Verdict
from lora_operator.rendering.pod_template import Shape
from lora_operator.views.conditions import Condition, Finding
from lora_operator.views.model import JobView, MemoryLimit, PodView
from lora_trainer.contract.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What makes the stage differ from others; all else of a Job's life is common to them.

    name       in the Job's name and label
    shape      of its pods
    is_due     whether the run goes through it, and has not yet
    judge      how its Job, which is there, and its pods ended; None while they go on
    condition  how it went, for the status, given what the run does and, at its end, the verdict; None for nothing
    memory     limit of its pods
    at_work    what a running pod does; None where it answers for its progress itself
    ended      the state of a run whose pod has ended while its Job has not
    """

    name: str
    shape: Shape
    is_due: Callable[[Case], bool]
    judge: Callable[[Case, JobView], Verdict | None]
    condition: Callable[[Case, Finding, Verdict | None], Condition | None]
    memory: Callable[[Case], MemoryLimit]
    at_work: Callable[[PodView], Finding] | None
    ended: Reason

    @property
    def trains(self) -> bool:
        """Whether it is the training, whose Jobs are the run's attempts."""
        return self.shape.trains

    def pods(self, case: Case) -> int:
        """How many pods its Job has at a time."""
        return case.request.pod.nodes if self.trains else 1
