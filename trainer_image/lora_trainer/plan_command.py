"""`lora-trainer plan`: what a run would take of which GPU."""

import argparse
import shutil

from lora_trainer.command_options import by_hand, local_config, say, volumes
from lora_trainer.plan.answer import Asked
from lora_trainer.plan.show import show
from lora_trainer.plan_run import plan_run


def plan(options: argparse.Namespace) -> int:
    """The exit status; the plan is printed."""

    def action() -> None:
        asked = Asked(
            config_file=options.config,
            gpus=tuple(options.gpu),
            tokens=options.tokens,
        )
        found = plan_run(local_config(options.file), volumes(options), asked)
        say(show(found, options.form, shutil.get_terminal_size((80, 24)).columns))

    return by_hand(action)
