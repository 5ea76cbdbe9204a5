"""Advice about the end of a run: where the loss was going, and how right the plan was."""

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.data import FEW_ROWS
from lora_trainer.contract.advice.facts import Change, Facts
from lora_trainer.contract.advice.rule import Rule, Values, count, size

_SURE = 2.0
"""Standard errors beyond which a difference is no chance."""
_OFF = 0.1
_OURS = "Paired over rows: Cochran, Sampling Techniques, 3rd ed., section 6.4"


def _noisy_loss(facts: Facts) -> Values | None:
    lora = facts.config.lora
    if facts.ended is None or facts.ended.unsteady_steps <= 0:
        return None
    return {"steps": count(facts.ended.unsteady_steps), "alpha": str(lora.alpha), "rank": str(lora.rank)}


def _is_sure(change: Change, difference: float) -> bool:
    return change.rows >= FEW_ROWS and difference > _SURE * change.standard_error


def _still_improving(facts: Facts) -> Values | None:
    ended = facts.ended
    if ended is None or not ended.held_out or ended.kept_best or ended.late is None:
        return None
    return _change(ended.late, ended.late.fall, ended.steps) if _is_sure(ended.late, ended.late.fall) else None


def _held_out_loss_rose(facts: Facts) -> Values | None:
    ended = facts.ended
    if ended is None or not ended.held_out or ended.kept_best or ended.lowest is None:
        return None
    rise = -ended.lowest.fall
    return _change(ended.lowest, rise, ended.steps) if _is_sure(ended.lowest, rise) else None


def _change(change: Change, difference: float, steps: int) -> Values:
    error = f"{change.standard_error:.2g}"
    return {"step": count(change.step), "steps": count(steps), "difference": f"{difference:.3g}", "error": error}


def _estimate_off(facts: Facts) -> Values | None:
    found = facts.estimate
    if found is None:
        return None
    values: dict[str, str] = {}
    if _is_off(found.peak_bytes, found.estimated_peak_bytes):
        values |= {"peak": size(found.peak_bytes), "estimated_peak": size(found.estimated_peak_bytes or 0)}
    if _is_off(found.seconds, found.estimated_seconds):
        values |= {"seconds": count(found.seconds), "estimated_seconds": count(found.estimated_seconds or 0)}
    return values or None


def _is_off(measured: float, estimated: float | None) -> bool:
    return estimated is not None and estimated > 0 and measured > 0 and abs(measured - estimated) > _OFF * estimated


RULES = (
    Rule(
        code=Code.NOISY_LOSS,
        severity=Severity.WARNING,
        subject="alpha",
        condition="the smoothed loss rose far above its lowest (halfway to what counts as diverged), steps were left "
        "out for numbers that are none, or the loss diverged",
        message="Set spec.lora.alpha to spec.lora.rank where it is larger, lower spec.training.learningRate, or raise "
        "warmupRatio: each makes the steps smaller that the adapter takes",
        evidence=(
            "Steps with a loss far above its lowest, or with no number: {steps}; alpha is {alpha} at rank {rank}",
        ),
        source="Raschka, Practical Tips for Finetuning LLMs Using LoRA (2023)",
        rule_of_thumb=True,
        check=_noisy_loss,
        at_end=True,
    ),
    Rule(
        code=Code.STILL_IMPROVING,
        severity=Severity.INFO,
        subject="end of the run",
        condition="the held-out loss at the end is lower than around three quarters of the steps, by more than two "
        "standard errors of the difference over 20 rows or more",
        message="Train on more data rather than for more epochs: the held-out loss was still falling at the end",
        evidence=("From step {step} to {steps} the held-out loss fell by {difference} ± {error} nats",),
        source=f"{_OURS}; more data: Raschka (2023)",
        rule_of_thumb=True,
        check=_still_improving,
        at_end=True,
    ),
    Rule(
        code=Code.HELD_OUT_LOSS_ROSE,
        severity=Severity.WARNING,
        subject="end of the run",
        condition="the held-out loss at the end is higher than at its lowest evaluation, by more than two standard "
        "errors of the difference over 20 rows or more, and the weights are not those of that one",
        message="Set spec.training.evalSteps and earlyStoppingPatience, which would have kept the better adapter of "
        "step {step}, or train for fewer steps",
        evidence=("From step {step} to {steps} the held-out loss rose by {difference} ± {error} nats",),
        source=_OURS,
        rule_of_thumb=False,
        check=_held_out_loss_rose,
        at_end=True,
    ),
    Rule(
        code=Code.ESTIMATE_OFF,
        severity=Severity.INFO,
        subject="estimate",
        condition="peak memory or duration differ by more than 10 % from the plan's",
        message="Plan the next run of this kind by what this one took; fit.md says what the estimate does not know",
        evidence=(
            (
                "The peak was {peak} instead of {estimated_peak}, and the training took {seconds} s instead of "
                "{estimated_seconds} s"
            ),
            "The peak was {peak} instead of {estimated_peak}",
            "The training took {seconds} s instead of {estimated_seconds} s",
        ),
        source="fit.md, Accuracy",
        rule_of_thumb=False,
        check=_estimate_off,
        at_end=True,
    ),
)
