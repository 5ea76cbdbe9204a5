"""What a training knows for its advice, which is in its log and in the manifest, from where the summary has it."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from lora_trainer.contract.advice.codes import Advice, Severity
from lora_trainer.contract.advice.facts import Ended, Facts, Rows
from lora_trainer.contract.advice.rules import after, known_before, spoken
from lora_trainer.contract.fit.reading import ShapeError
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.data.dataset import Data
from lora_trainer.errors import ConfigError
from lora_trainer.model.loading import Adapted
from lora_trainer.places.base import Base
from lora_trainer.places.base_shape import positions_in, shape_in
from lora_trainer.recipe.settling import Settled
from lora_trainer.training.evaluate import Evaluation, improvement_standard_error
from lora_trainer.training.listener import Trained

log = logging.getLogger(__name__)


def facts_of(settled: Settled, base: Base, data: Data, adapted: Adapted) -> Facts:
    """What is known when the training begins."""
    stats = data.stats
    return Facts(
        config=settled.config,
        shape=_shape(base),
        positions=positions_in(base.folder),
        trainable_parameters=adapted.trainable_parameters,
        rows=Rows(
            training=stats.train_samples,
            held_out=data.evaluation.row_count if data.held_out else 0,
            learned=stats.target_tokens,
            cut=stats.truncated_samples,
            cut_tokens=stats.truncated_tokens,
            duplicates=stats.duplicate_samples,
        ),
        columns=data.columns,
        left_alone=adapted.left_alone,
        plan=settled.plan,
    )


def _shape(base: Base) -> Shape | None:
    """None for a kind that the estimate does not know."""
    try:
        return shape_in(base.folder, base.name)
    except (ConfigError, ShapeError):
        return None


def ended_of(trained: Trained, first: Evaluation, last: Evaluation, planned: int, *, held_out: bool) -> Ended:
    """What the end of a training shows, of which so many steps were `planned`."""
    return Ended(
        steps=trained.steps,
        planned=planned,
        loss_before=first.loss,
        loss=last.loss,
        improvement_standard_error=improvement_standard_error(first, last) or 0.0,
        held_out=held_out,
        on_the_way={point.step: point.loss for point in trained.evaluations},
        kept_best=trained.best_step is not None and trained.best_step != trained.steps,
    )


def advise_before(facts: Facts, *, speaks: bool) -> None:
    """Log what can be said before the training, where this process `speaks` for the others."""
    _log(known_before(facts) if speaks else ())


def advise_at_end(facts: Facts, ended: Ended) -> tuple[Advice, ...]:
    """All advice; what could not be said before is logged."""
    known, advice = known_before(facts), after(replace(facts, ended=ended))
    _log(one for one in advice if one not in known)
    return advice


def _log(advice: Iterable[Advice]) -> None:
    for one in spoken(advice):
        log.log(logging.WARNING if one.severity is Severity.WARNING else logging.INFO, "advice: %s", one.line)
