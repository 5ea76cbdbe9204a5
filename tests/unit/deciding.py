"""A decision on what tests make up."""

from datetime import datetime

from tests.unit.builders import CONFIG, NOW

from lora_operator.decide import decide as decision
from lora_operator.decide.run import Run
from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import FineTune, Observed, Plan


def run_of(finetune: FineTune, observed: Observed, config: OperatorConfig = CONFIG, now: datetime = NOW) -> Run:
    """All that is known of a run."""
    return Run(finetune=finetune, observed=observed, config=config, now=now)


def decide(finetune: FineTune, observed: Observed, config: OperatorConfig = CONFIG, now: datetime = NOW) -> Plan:
    """The plan for it."""
    return decision.decide(run_of(finetune, observed, config, now))
