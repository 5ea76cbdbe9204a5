"""A run's `Auto` turned into what its plan chose."""

import dataclasses

from lora_trainer.contract.config import ActivationCheckpointing, TrainConfig
from lora_trainer.contract.run_plan import RunPlan


def settled(config: TrainConfig, plan: RunPlan | None) -> TrainConfig:
    """The configuration with what the plan chose in place of `Auto`; as it is where no plan knows the device."""
    if plan is None or plan.device is None:
        return config
    training = config.training
    if training.activation_checkpointing is ActivationCheckpointing.AUTO:
        chosen = ActivationCheckpointing.FULL if plan.activation_checkpointing else ActivationCheckpointing.NONE
        training = dataclasses.replace(training, activation_checkpointing=chosen)
    return dataclasses.replace(config, training=training)
