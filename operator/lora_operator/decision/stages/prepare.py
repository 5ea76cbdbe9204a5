"""Model and data are fetched into the cache claim before GPUs are asked for. Its success leaves nothing to prove."""

from collections.abc import Sequence

from lora_operator.decision.case import Case
from lora_operator.decision.proof import Verdict, dated
from lora_operator.decision.stages.stage import Stage
from lora_operator.decision.verdict import failed
from lora_operator.rendering.pod_template import Shape
from lora_operator.views.conditions import Condition, Finding, Type, previous_condition
from lora_operator.views.jobs import ending_of
from lora_operator.views.model import FineTune, JobView, MemoryLimit, PodView
from lora_operator.views.pods import newest_first, summary_of
from lora_operator.views.wording import sentence
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.uri import HubUri, S3Uri, parse_uri

NAME = "prepare"


def _is_due(case: Case) -> bool:
    """Whether something is to be fetched, and there is a claim to fetch it to; once for a run, not for each attempt."""
    train = case.request.train
    if train is None or not case.config.cache_claim or _was_prepared(case.finetune):
        return False
    addresses = (train.model.uri, train.dataset.uri, train.dataset.validation_uri)
    return any(isinstance(parse_uri(address), HubUri | S3Uri) for address in addresses if address)


def _was_prepared(finetune: FineTune) -> bool:
    return previous_condition(finetune, Type.PREFLIGHT_PASSED).get("status") == "True"


def _memory(case: Case) -> MemoryLimit:
    remedy = "have prepareMemory raised in the operator's configuration"
    return MemoryLimit(amount=case.config.prepare_memory, remedy=remedy)


def _judge(case: Case, job: JobView, pods: Sequence[PodView]) -> Verdict | None:
    ending = ending_of(job)
    if ending is None:
        return None
    if ending.type == "Complete":
        done = (summary_of(pod) for pod in newest_first(pods) if pod.trainer.exit_code == 0)
        said = next((summary.message for summary in done if summary is not None), "")
        message = sentence(said) or f"Job {job.name} has fetched model and data into the cache"
        return Verdict(succeeded=True, finding=Finding(reason=Reason.PREFLIGHT_PASSED, message=message))
    return dated(failed(job, ending, pods, _memory(case), case.request.policy), job)


def _condition(case: Case, state: Finding, verdict: Verdict | None) -> Condition | None:
    if _was_prepared(case.finetune):
        message = str(previous_condition(case.finetune, Type.PREFLIGHT_PASSED).get("message", ""))
        return Condition(
            type=Type.PREFLIGHT_PASSED, holds=True, finding=Finding(reason=Reason.PREFLIGHT_PASSED, message=message)
        )
    job = case.children.stages.get(NAME)
    if job is None:
        return None
    own = _judge(case, job, [pod for pod in case.observed.pods if pod.job_uid == job.uid])
    if own is not None and own.succeeded:
        return Condition(type=Type.PREFLIGHT_PASSED, holds=True, finding=own.finding)
    return Condition(type=Type.PREFLIGHT_PASSED, holds=None if verdict is None else False, finding=state)


def _at_work(pod: PodView) -> Finding:
    message = f"Pod {pod.name} fetches model and data into the cache, before GPUs are asked for"
    return Finding(reason=Reason.PREFLIGHT, message=message)


PREPARE = Stage(
    name=NAME,
    shape=Shape(command="prepare", trains=False),
    is_due=_is_due,
    judge=_judge,
    condition=_condition,
    memory=_memory,
    at_work=_at_work,
    ended=Reason.PREFLIGHT,
)
