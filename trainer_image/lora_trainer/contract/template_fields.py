"""`dataset.chatTemplate` and `dataset.templateArguments` of a manifest: how conversations become text."""

import json
import re
from collections.abc import Mapping

from lora_trainer.contract.addresses import of_config_map
from lora_trainer.contract.api import Rule
from lora_trainer.contract.fields import Reader
from lora_trainer.contract.uri import UriError, parse_uri

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
IS_TEMPLATE = Rule(
    cel=f"self in {list(BUILT_IN)} || {of_config_map()}",
    shown='"{self}" is no chat template: write ChatML, Llama3, Mistral, Gemma, Qwen or Alpaca, or the key of a '
    "ConfigMap, as in configmap://templates/chat.jinja",
    message="write ChatML, Llama3, Mistral, Gemma, Qwen, Alpaca, or configmap://name/key",
)
ARE_VARIABLES = Rule(
    cel=f"self.all(n, n.size() <= 63 && n.matches('^{_NAME}$') && !(n in {list(RESERVED)}))",
    message='there is a name that no variable can have: use letters, digits and "_", starting with a letter, as in '
    "enable_thinking; messages, tools, documents, conversations, chat_template, add_generation_prompt, "
    "continue_final_message and return_assistant_tokens_mask are the trainer's own",
)
_PREFIX = "configmap://"
Value = str | int | float | bool | None


def read_template(section: Reader, key: str) -> str | None:
    """The name of a built-in template or the address of a ConfigMap's key, None for the model's own."""
    text = section.text(key)
    if text is None or text in BUILT_IN:
        return text
    if not text.startswith(_PREFIX):
        section.complain(key, text, f"must be one of {', '.join(BUILT_IN)}, or configmap://name/key")
        return text
    try:
        parse_uri(text)
    except UriError as error:
        section.complain(key, text, str(error))
    return text


def read_arguments(section: Reader, key: str) -> Mapping[str, str] | None:
    """Variables of the template, their values as text; None where there are none."""
    given = section.get(key)
    if given is None:
        return None
    if not isinstance(given, Mapping) or not 1 <= len(given) <= MOST:
        section.complain(key, given, f"must be a map of 1 to {MOST} variables")
        return None
    for name, value in given.items():
        if not isinstance(name, str) or not re.fullmatch(_NAME, name) or name in RESERVED:
            rule = f"must be letters, digits and '_', starting with a letter, and none of {', '.join(RESERVED)}"
            section.complain(key, name, rule)
            return None
        if not isinstance(value, str) or len(value) > LONGEST:
            example = json.dumps(value) if isinstance(value, bool | int | float) else "false"
            rule = f'must be quoted, of at most {LONGEST} characters, as in {name}: "{example}"'
            section.complain(f"{key}.{name}", value, rule)
            return None
    return dict(given)


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
