"""What a training advises: in its log as soon as it is known, and in the manifest, from where the summary has it."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date

from lora_trainer.contract.advice.codes import Advice, Severity
from lora_trainer.contract.advice.facts import Computing, Ended, Facts, Rows
from lora_trainer.contract.advice.rules import after, known_before, spoken
from lora_trainer.contract.config import ActivationCheckpointing, TrainConfig
from lora_trainer.contract.fit.reading import ShapeError
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.data.dataset import Data
from lora_trainer.data.row_sketch import RowSketch
from lora_trainer.data.survey import Samples
from lora_trainer.errors import ConfigError
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted
from lora_trainer.places.base import Base
from lora_trainer.places.base_shape import positions_in, shape_in
from lora_trainer.recipe.settling import Settled
from lora_trainer.recipe.way import Way
from lora_trainer.training.batches import Budget
from lora_trainer.training.evaluate import Evaluation, improvement_standard_error
from lora_trainer.training.listener import Trained
from lora_trainer.training.schedule import total_steps, wanted_rows
from lora_trainer.training.trend import Interim, interim, since_late, since_lowest

log = logging.getLogger(__name__)


def facts_of(
    settled: Settled,
    base: Base,
    data: Data,
    adapted: Adapted,
    *,
    samples: Samples,
    before: RowSketch | None,
    device: Device,
    way: Way,
    day: date | None,
) -> Facts:
    """What is known when the training begins; `before` are the rows that its first weights were trained on, `day` what
    the chat template writes into rows."""
    stats, config = data.stats, settled.config
    return Facts(
        config=config,
        computing=Computing(
            cpu=device.torch_device.type == "cpu",
            quantization=config.quantization,
            recomputes=adapted.checkpointing.recomputes,
            selective=adapted.checkpointing is ActivationCheckpointing.SELECTIVE,
            micro_batch_tokens=way.budget.tokens,
        ),
        shape=_shape(base),
        positions=positions_in(base.folder),
        trainable_parameters=adapted.trainable_parameters,
        rows=Rows(
            training=stats.train_samples,
            held_out=data.evaluation.row_count if data.held_out else 0,
            tokens=stats.train_tokens,
            learned=stats.target_tokens,
            cut=stats.truncated_samples,
            cut_tokens=stats.truncated_tokens,
            duplicates=stats.duplicate_samples,
            learned_before=samples.measured.share_in(before, but_for=samples.learned) if before else 0.0,
            day=day,
        ),
        columns=samples.columns,
        left_alone=adapted.left_alone,
        plan=settled.plan,
    )


def _shape(base: Base) -> Shape | None:
    """None for a kind that the estimate does not know."""
    try:
        return shape_in(base.folder, base.name)
    except (ConfigError, ShapeError):
        return None


def interim_of(config: TrainConfig, data: Data) -> Interim:
    """Which evaluations on the way show where the loss is going, of a run that asks for none."""
    if not data.held_out:
        return Interim()
    rows = len(data.training)
    trained = wanted_rows(config.training, rows) / rows * data.stats.train_tokens
    lengths, of_rows = data.evaluation.lengths.tolist(), data.evaluation.rows.tolist()
    return interim(config.training, total_steps(config.training, rows), trained, lengths, of_rows)


def ended_of(trained: Trained, before: Evaluation, after: Evaluation, planned: int, *, held_out: bool) -> Ended:
    """What the end of a training shows, of which so many steps were `planned`."""
    return Ended(
        steps=trained.steps,
        loss_before=before.loss,
        improvement_standard_error=improvement_standard_error(before, after) or 0.0,
        held_out=held_out,
        late=since_late(trained.marks, after, planned),
        lowest=since_lowest(trained.marks, after),
        kept_best=trained.best_step is not None and trained.best_step != trained.steps,
        unsteady_steps=trained.unsteady_steps,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adviser:
    """Logs each piece of advice once, where this process `speaks` for the others; `known` was said at the beginning."""

    facts: Facts
    known: tuple[Advice, ...]
    speaks: bool

    @classmethod
    def begin(cls, facts: Facts, *, speaks: bool) -> "Adviser":
        """Say what can be said before the training."""
        adviser = cls(facts=facts, known=known_before(facts), speaks=speaks)
        adviser._log(adviser.known)
        return adviser

    def end(self, ended: Ended, budget: Budget) -> tuple[Advice, ...]:
        """All advice, and say what is new; `budget` is what micro-batches held in the end."""
        computing = replace(self.facts.computing, micro_batch_tokens=budget.tokens)
        advice = after(replace(self.facts, computing=computing, ended=ended))
        self._log(one for one in advice if one not in self.known)
        return advice

    def _log(self, advice: Iterable[Advice]) -> None:
        for one in spoken(advice) if self.speaks else ():
            log.log(logging.WARNING if one.severity is Severity.WARNING else logging.INFO, "advice: %s", one.line)
