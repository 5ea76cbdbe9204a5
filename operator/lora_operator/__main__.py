"""Command line of the operator."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_operator import logs
from lora_operator.api import ApiError, UnreachableError
from lora_operator.config import load_config
from lora_operator.login import LoginError
from lora_operator.operate import operate
from lora_operator.self_check import SelfCheckError
from lora_operator.supervision import OperatorFailedError
from lora_trainer.contract.codec import CodecError

logger = logging.getLogger("lora_operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator; return 0 after SIGTERM, 2 for a configuration it cannot read, 1 for everything else."""
    parser = argparse.ArgumentParser(prog="lora-operator", description="Run LoRAFineTune resources as Jobs.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file of settings")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
    except (CodecError, OSError) as error:
        parser.exit(2, f"lora-operator: {error}\n")
    logs.configure(config.log_level, config.log_format)
    try:
        asyncio.run(operate(config))
    except (ApiError, LoginError, OperatorFailedError, OSError, SelfCheckError, UnreachableError) as error:
        logger.critical("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
