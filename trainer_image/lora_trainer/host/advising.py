"""What a run advises at its end besides its training: how right the plan was, and why a loss may diverge."""

from lora_trainer.contract.advice.codes import Advice
from lora_trainer.contract.advice.facts import Estimate
from lora_trainer.contract.advice.rules import after_divergence, of_estimate
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.summary import Results
from lora_trainer.training.guards import BAD_STEPS, DIVERGED_STEPS

_STEPS = {Reason.LOSS_DIVERGED: DIVERGED_STEPS, Reason.NON_FINITE_LOSS: BAD_STEPS}


def advice_on_estimate(config: TrainConfig, results: Results) -> tuple[Advice, ...]:
    """Whether peak memory and the duration of all steps were far from the plan's; an early end took fewer of them."""
    estimate = Estimate(
        peak_bytes=results.peak_memory_bytes,
        seconds=results.trained_tokens / max(results.tokens_per_second, 1e-9),
        estimated_peak_bytes=results.estimated_peak_memory_bytes,
        estimated_seconds=None if results.stopped_early else results.estimated_seconds,
    )
    return of_estimate(config, estimate)


def advice_on_failure(config: TrainConfig, reason: Reason) -> tuple[Advice, ...]:
    """What would have kept the loss a number."""
    return after_divergence(config, _STEPS[reason]) if reason in _STEPS else ()
