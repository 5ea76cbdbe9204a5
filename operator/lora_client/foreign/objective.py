"""What another tool trains for, of which only supervised fine-tuning has a counterpart here."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lora_client.errors import ClientError
from lora_operator.model.wording import printable

_OTHERS = r"(?:online_)?dpo|ipo|kto|simpo|orpo|cpo|bco|g[rd]po|ppo|rloo|xpo|nash_md|gkd|prm|rm|reward\w*"
_SCRIPT = re.compile(rf"(?:.*[/_-])?(?:{_OTHERS})(?:[_-]\w+)*\.py|trl\.scripts\.(?:{_OTHERS})")
_LOSS = re.compile(
    r"\b(?:sigmoid\w*|hinge|ipo|exo_pair|nca_pair|robust|bco_pair|sppo_hard|aot\w*|apo_\w+|discopop|kto|(?:dr_)?grpo|"
    r"bnpo|dapo)\b"
)
"""Of TRL's DPOConfig, KTOConfig and GRPOConfig; SFTConfig has others."""
_PREFERENCE = (
    *("rl", "reward_model", "process_reward_model"),
    *("beta", "max_prompt_length", "max_completion_length", "num_generations", "desirable_weight"),
    *("undesirable_weight", "reward_funcs", "reward_model_path", "reward_model_name_or_path"),
)
"""Options that supervised fine-tuning has not: Axolotl's, then those of TRL's other trainers."""


def only_supervised(tool: str, options: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Raises `ClientError` for a run that learns preferences or rewards, or that goes on with pretraining."""
    stage = str(options.get("stage") or "sft")
    if stage == "pt" or options.get("pretraining_dataset"):
        what = "stage is pt" if stage == "pt" else "pretraining_dataset is given"
        raise ClientError(
            f"{what}: only supervised fine-tuning can be converted; for plain text, write a manifest with "
            "dataset.format: Text, by lora init"
        )
    other = _other(stage, options, arguments)
    if other:
        raise ClientError(
            f"{printable(other)}: only supervised fine-tuning can be converted, since preference and reward training "
            f"are not offered; convert the supervised run before it, and continue from its adapter with {tool}"
        )


def _other(stage: str, options: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """What says that the run is another one; empty where nothing does."""
    if stage != "sft":
        return f"stage is {stage[:60]}"
    verb = next((verb for argument, verb in pairwise(arguments) if argument == "trl"), "")
    if re.fullmatch(_OTHERS, verb):
        return f"The command is trl {verb}"
    script = next(filter(_SCRIPT.fullmatch, arguments), "")
    if script:
        return f"The script is {script[:60]}"
    if loss := _LOSS.search(str(options.get("loss_type"))):
        return f"loss_type is {loss[0]}"
    name = next((name for name in _PREFERENCE if str(options.get(name) or "none").lower() not in ("none", "false")), "")
    return f"{name} is {str(options[name])[:60]}" if name else ""
