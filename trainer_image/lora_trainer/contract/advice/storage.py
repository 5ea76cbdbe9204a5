"""Advice about what a run's pods take beside the GPU: main memory, and room on the claim of the checkpoints."""

import math

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, number, size
from lora_trainer.contract.manifest import checkpoint_claim

_GIB = 2**30
_KILLED = "the kernel kills a pod that takes more than its limit, and what it did since its last checkpoint is lost"


def _claim_size(facts: Facts) -> Values | None:
    claim, plan = checkpoint_claim(facts.config), facts.plan
    if claim is None or plan is None or plan.claim_bytes < _GIB:
        return None
    return {
        "claim": claim,
        "needed": size(plan.claim_bytes),
        "checkpoint": size(plan.checkpoint_bytes),
        "count": number(facts.config.checkpoint.keep + 1),
    }


def _pod_memory(facts: Facts) -> Values | None:
    # Before the rows are known a plan is an upper bound, far above what short rows take.
    given, plan = facts.config.device.pod_memory_bytes, facts.plan
    if given is None or plan is None or facts.rows is None or given >= plan.pod_memory_bytes:
        return None
    least = f"{math.ceil(plan.pod_memory_bytes / _GIB)}Gi"
    return {"given": size(given), "needed": size(plan.pod_memory_bytes), "least": least}


RULES = (
    Rule(
        code=Code.POD_MEMORY,
        severity=Severity.WARNING,
        subject="main memory",
        condition="the run gives its pods less main memory than the plan of its own rows estimates",
        message=f"Give the pods {{needed}} or more with spec.resources.memory in a new LoRAFineTune: {_KILLED}",
        special=(f"Give the pods {{least}} or more with spec.resources.memory in a new LoRAFineTune: {_KILLED}",),
        evidence=("resources.memory is {given}, and the plan estimates {needed}",),
        source="fit.md, What is counted",
        rule_of_thumb=True,
        check=_pod_memory,
    ),
    Rule(
        code=Code.CLAIM_SIZE,
        severity=Severity.INFO,
        subject="storage",
        condition="the run saves checkpoints on a claim, and takes 1 GiB of it or more",
        message="See that PersistentVolumeClaim {claim} has {needed} free for each run of this kind that trains at a "
        "time",
        evidence=("A checkpoint takes {checkpoint}, and {count} of them are there at a time, beside the result",),
        source="fit.md, What a claim takes",
        rule_of_thumb=False,
        check=_claim_size,
    ),
)
