"""Advice about fast paths: one that did not prove itself, and one that stopped doing so within a run."""

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, count

_MOST_CHARACTERS = 300


def _left_out(facts: Facts) -> Values | None:
    computing = facts.computing
    if not computing.kernels_left_out or computing.kernels_changed_step is not None:
        return None
    return {"kernels": _sentences(facts)}


def _changed(facts: Facts) -> Values | None:
    step = facts.computing.kernels_changed_step
    return None if step is None else {"step": count(step), "kernels": _sentences(facts)}


def _sentences(facts: Facts) -> str:
    text = "; ".join(facts.computing.kernels_left_out)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


RULES = (
    Rule(
        code=Code.KERNEL_LEFT_OUT,
        severity=Severity.INFO,
        subject="kernels",
        condition="a fast path fails, errs more than plain PyTorch, is slower on the device or does not repay what "
        "compiling takes",
        message="Nothing has to be done: plain PyTorch takes the place. Report a kernel that fails or errs, "
        "with the device's name",
        evidence=("Left out: {kernels}",),
        source="trainer-model.md, Kernels",
        rule_of_thumb=False,
        check=_left_out,
    ),
    Rule(
        code=Code.KERNELS_CHANGED,
        severity=Severity.WARNING,
        subject="kernels",
        condition="a run continues from a checkpoint, and a fast path that it was trained on no longer proves itself",
        message="Do not expect the bytes of an uninterrupted run: from step {step} on numbers are rounded otherwise. "
        "Where that matters, keep runs on one kind of GPU, or set spec.training.kernels to Reference",
        evidence=("Left out: {kernels}",),
        source="trainer-model.md, Kernels",
        rule_of_thumb=False,
        check=_changed,
    ),
)
