"""The evaluations of a run: before, on the way and after, each with its line in the log."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lora_trainer.data.dataset import Data
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.logs import with_error
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Adapted
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.train.batches import MicroBatchLimit, evaluation_limit
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.guards import check_evaluated
from lora_trainer.train.noise import measure_noise
from lora_trainer.train.objective import Objective
from lora_trainer.train.stopping import Stop

log = logging.getLogger(__name__)


def limit_for(config: TrainConfig, training: MicroBatchLimit, device: Device) -> MicroBatchLimit:
    """Packed as the training is. INT8 finds outliers over a whole batch: only in the very batches of the verification,
    which pads, do the same weights give the same loss."""
    return evaluation_limit(
        config.training.micro_batch_size,
        training.longest,
        training.frequencies,
        device.torch_device,
        trained=training.tokens,
        packed=training.packed and config.quantization is not Quantization.INT8,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Evaluates the model as it is now, and logs the result; `alive` is called after every batch. `stop` hears a
    request to stop in evaluations on the way."""

    adapted: Adapted
    data: Data
    objective: Objective
    limit: MicroBatchLimit
    device: Device
    ranks: Ranks
    alive: Callable[[], None]
    stop: Stop

    def __call__(self, *, trained: bool) -> Evaluation:
        """Loss on all held-out rows before or after the training. Raises `NonFiniteLossError` where it is no number."""
        result = self._found("after training" if trained else "before training")
        check_evaluated(result.loss, trained=trained)
        return result

    def on_the_way(self) -> Evaluation:
        """Loss on all held-out rows within the training. Raises `Interrupted`."""
        return self._found("on the way", self.stop)

    def _found(self, when: str, stop: Stop | None = None) -> Evaluation:
        rows = self.data.evaluation
        model, head = self.adapted.model, self.adapted.head
        done, ranks = lambda _rows: self.alive(), self.ranks
        result = evaluate(
            model,
            head,
            rows,
            self.device,
            done,
            limit=self.limit,
            ranks=ranks,
            stop=stop,
            objective=self.objective,
        )
        kind = "held-out" if self.data.held_out else "training"
        loss = with_error(result.loss, result.standard_error)
        samples = f" ({len(rows)} samples)" if len(rows) != result.row_count else ""
        log.info("loss %s %s on %d %s rows%s", when, loss, result.row_count, kind, samples)
        for name, value in result.others.items():
            log.info("%s %s %.4f", name, when, value)
        return result

    def noise(self, result: Evaluation) -> float:
        """The noise of the loss `result`, which this model as it is now gave."""
        return measure_noise(
            self.adapted.model,
            self.adapted.head,
            self.data.evaluation,
            self.device,
            lambda _rows: self.alive(),
            first=result,
            limit=self.limit,
            ranks=self.ranks,
            objective=self.objective,
        )
