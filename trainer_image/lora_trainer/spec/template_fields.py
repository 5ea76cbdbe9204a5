"""`dataset.chatTemplate` and `dataset.templateArguments` of a manifest: how conversations become text."""

import json

from lora_trainer.spec.addresses import OF_CONFIG_MAP, of_config_map
from lora_trainer.spec.api import Rule, keys_matching

BUILT_IN = ("ChatML", "Llama3", "Mistral", "Gemma", "Qwen", "Alpaca")
"""Templates that the trainer brings."""

RESERVED = (
    "messages",
    "tools",
    "documents",
    "conversations",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
)
"""Variables that the trainer itself gives to a template."""

MOST, LONGEST = 16, 256
_NAME = "[A-Za-z][A-Za-z0-9_]{0,62}"
_RESERVED = f"^({'|'.join(RESERVED)})$"
IS_TEMPLATE = Rule(
    cel=f"self in {list(BUILT_IN)} || {OF_CONFIG_MAP}",
    message=f"is no chat template: write {', '.join(BUILT_IN[:-1])} or {BUILT_IN[-1]}, or the key of a ConfigMap, as "
    "in configmap://templates/chat.jinja",
    quoted=True,
    broken=lambda text: text not in BUILT_IN and not of_config_map(text),
)
ARE_VARIABLES = keys_matching(
    _NAME,
    63,
    'there is a name that no variable can have: use letters, digits and "_", starting with a letter, as in '
    f"enable_thinking; {', '.join(RESERVED[:-1])} and {RESERVED[-1]} are the trainer's own",
    but=_RESERVED,
)
_PREFIX = "configmap://"
Value = str | int | float | bool | None


def argument_value(text: str) -> Value:
    """What a template gets: true, false, null, a number or a quoted text is read as JSON; else it is the text."""
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, list | dict) else value


def template_config_map(template: str | None) -> str | None:
    """The address of the ConfigMap that holds a chosen template, None where no ConfigMap does."""
    return template if template is not None and template.startswith(_PREFIX) else None
