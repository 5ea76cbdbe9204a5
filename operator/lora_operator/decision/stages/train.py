"""The training, the last stage: its Job leaves the verified adapter, and its end is the run's."""

from lora_operator.decision.case import Case
from lora_operator.decision.proof import Verdict, dated, proven_success
from lora_operator.decision.stages.stage import Stage
from lora_operator.decision.verdict import complete_without_proof, failed
from lora_operator.rendering.pod_template import TRAINING
from lora_operator.views.jobs import ending_of
from lora_operator.views.model import JobView, MemoryLimit
from lora_operator.views.names import TRAIN as NAME
from lora_trainer.contract.reasons import Reason


def _memory(case: Case) -> MemoryLimit:
    return MemoryLimit(
        amount=case.request.pod.memory or "",
        remedy="create a new LoRAFineTune with more in spec.resources.memory",
    )


def _judge(case: Case, job: JobView) -> Verdict | None:
    ending, pods = ending_of(job), case.pods_of(job)
    if ending is None:
        return None
    verdict = proven_success(pods, case.evidence)
    if verdict is None and ending.type == "Complete":
        verdict = complete_without_proof(pods, case.evidence)
    return dated(verdict or failed(job, ending, pods, _memory(case), case.request.policy), job)


def failed_before_deletion(case: Case) -> Verdict | None:
    """The end of an attempt whose Job had failed when it was deleted: another attempt would train to the same end."""
    present = (NAME, max(1, case.children.attempt))  # the first may be gone before the status counts it
    endings = ((job, ending_of(job)) for job in reversed(case.children.former) if (job.stage, job.attempt) == present)
    job = next((job for job, ending in endings if ending is not None and ending.type == "Failed"), None)
    return _judge(case, job) if job else None


TRAIN = Stage(
    name=NAME,
    shape=TRAINING,
    is_due=lambda _: True,
    judge=_judge,
    condition=lambda *_: None,
    memory=_memory,
    at_work=None,
    ended=Reason.PUBLISHING,
)
