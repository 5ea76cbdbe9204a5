"""What a training knows for its advice, which is in its log and in the manifest, from where the summary has it."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from lora_trainer.plan.hint_checks import Ended, Facts
from lora_trainer.plan.hints import after, known_before, spoken
from lora_trainer.spec.advice import Advice, Severity
from lora_trainer.train.evaluate import improvement_standard_error
from lora_trainer.train.session import Result

log = logging.getLogger(__name__)


def advise_before(facts: Facts) -> None:
    """Log what can be said before the training."""
    _log(known_before(facts))


def advise_at_end(facts: Facts, result: Result, *, held_out: bool) -> tuple[Advice, ...]:
    """All advice; what could not be said before is logged."""
    known, advice = known_before(facts), after(replace(facts, ended=_ended(result, held_out=held_out)))
    _log(one for one in advice if one not in known)
    return advice


def _ended(result: Result, *, held_out: bool) -> Ended:
    trainer_state, first, last = result.trainer_state, result.before, result.after
    return Ended(
        steps=trainer_state.step,
        planned=result.steps,
        loss_before=first.loss,
        loss=last.loss,
        improvement_standard_error=improvement_standard_error(first, last) or 0.0,
        held_out=held_out,
        on_the_way={eval_result.step: eval_result.loss for eval_result in trainer_state.evaluations},
        kept_best=trainer_state.best_step is not None and trainer_state.best_step != trainer_state.step,
    )


def _log(advice: Iterable[Advice]) -> None:
    for one in spoken(advice):
        log.log(logging.WARNING if one.severity is Severity.WARNING else logging.INFO, "advice: %s", one.line)
