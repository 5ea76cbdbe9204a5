"""Advice about quantization: whether the base needs it, and whether it would fit with it."""

import re

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, size
from lora_trainer.contract.config import Quantization
from lora_trainer.contract.fit.choice import MANNERS
from lora_trainer.contract.run_plan import Alternative, RunPlan

_QUANTIZED = (Quantization.NF4, Quantization.FP4, Quantization.INT8)
_CHANGE = re.compile(r"\bquantization: (\w+)")
_MANNER = re.compile(r"\btraining\.activationCheckpointing: (\w+)")
_STEPS = {manner.value: number for number, manner in enumerate(MANNERS)}
"""From what recomputes nothing to what recomputes all."""


def _alternative(facts: Facts, quantization: Quantization) -> Alternative | None:
    """The fastest way to run it with that quantization that fits the plan's device, recomputing no more than the
    run lets it; where no speed is known, the way that recomputes least."""
    plan = facts.plan
    if plan is None or plan.device_bytes is None:
        return None
    wanted = facts.config.training.activation_checkpointing
    most = _STEPS.get(wanted.value, len(MANNERS) - 1)
    fitting = [
        one
        for one in plan.alternatives
        if one.fits
        and (found := _CHANGE.search(one.change)) is not None
        and found[1] == quantization.value
        and _recomputed(one, plan) <= most
    ]
    return max(fitting, key=lambda one: (one.tokens_per_second or 0.0, -_recomputed(one, plan)), default=None)


def _recomputed(one: Alternative, plan: RunPlan) -> int:
    """How much an alternative recomputes, from 0 to 2; as the plan does where it changes nothing of that."""
    found = _MANNER.search(one.change)
    return _STEPS.get(plan.manner.value if found is None else found[1], len(_STEPS))


def _quantization_not_needed(facts: Facts) -> Values | None:
    wanted, other = facts.config.quantization, _alternative(facts, Quantization.NONE)
    if wanted not in _QUANTIZED or other is None or facts.plan is None:
        return None
    ours, theirs = facts.plan.tokens_per_second, other.tokens_per_second
    if ours is not None and theirs is not None:
        slower = theirs < ours  # recomputed in 16 bits it fits, and takes longer than quantized
    else:
        slower = _recomputed(other, facts.plan) > _STEPS[facts.plan.manner.value]  # of a GPU whose speed is not known
    if slower:
        return None
    values = {
        "quantization": wanted.value,
        "change": other.change[:120],
        "peak": size(other.peak_bytes),
        "memory": size(facts.plan.device_bytes or 0),
    }
    if ours is None or theirs is None or not 0 < ours < theirs:
        return values
    return {**values, "slower": f"{theirs / ours - 1:.0%}"}


def _quantization_would_fit(facts: Facts) -> Values | None:
    other = _alternative(facts, Quantization.NF4)
    if facts.config.quantization is not Quantization.NONE or other is None or facts.plan is None or facts.plan.fits:
        return None
    return {
        "change": other.change[:120],
        "peak": size(other.peak_bytes),
        "needed": size(facts.plan.peak_bytes),
        "memory": size(facts.plan.device_bytes or 0),
    }


RULES = (
    Rule(
        code=Code.QUANTIZATION_NOT_NEEDED,
        severity=Severity.INFO,
        subject="quantization",
        condition="quantization is asked for, and by the plan the base fits the GPU in 16 bits, no slower",
        message="Set spec.quantization to Auto or None: the base fits in 16 bits, which is as good and no slower",
        evidence=(
            "By the plan {quantization} takes {slower} more time than {change}, which takes {peak} of {memory}",
            "By the plan {change} takes {peak} of {memory}",
        ),
        source="Dettmers et al., QLoRA, arXiv 2305.14314 (equal quality); fit.md (memory and time)",
        rule_of_thumb=False,
        check=_quantization_not_needed,
    ),
    Rule(
        code=Code.QUANTIZATION_WOULD_FIT,
        severity=Severity.WARNING,
        subject="quantization",
        condition="no quantization is asked for, the plan does not see the base fit in 16 bits, and in NF4 it fits",
        message="Set spec.quantization to Auto or NF4, with which the run fits the GPU",
        evidence=("By the plan the run takes {needed} of {memory}, and {peak} with {change}",),
        source="fit.md",
        rule_of_thumb=False,
        check=_quantization_would_fit,
    ),
)
