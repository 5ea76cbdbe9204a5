"""Advice about the claim of the checkpoints: how much of it a run takes."""

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, number, size
from lora_trainer.contract.manifest import checkpoint_claim

_LEAST = 2**30


def _claim_size(facts: Facts) -> Values | None:
    claim, plan = checkpoint_claim(facts.config), facts.plan
    if claim is None or plan is None or plan.claim_bytes < _LEAST:
        return None
    return {
        "claim": claim,
        "needed": size(plan.claim_bytes),
        "checkpoint": size(plan.checkpoint_bytes),
        "count": number(facts.config.checkpoint.keep + 1),
    }


RULES = (
    Rule(
        code=Code.CLAIM_SIZE,
        severity=Severity.INFO,
        subject="storage",
        condition="the run saves checkpoints on a claim, and takes 1 GiB of it or more",
        message="See that PersistentVolumeClaim {claim} has {needed} free for each run of this kind that trains at a "
        "time: a full claim ends a run in the middle",
        evidence=("A checkpoint takes {checkpoint}, and {count} of them are there at a time, beside the result",),
        source="fit.md, What a claim takes",
        rule_of_thumb=False,
        check=_claim_size,
    ),
)
