"""The chat template that a run chose instead of its model's own: a built-in one, or one from a ConfigMap."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from lora_trainer.errors import ConfigError, NotFoundError
from lora_trainer.spec.config import DatasetConfig
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.template_fields import Value, argument_value
from lora_trainer.spec.uri import ConfigMapUri, parse_uri
from lora_trainer.storage.volumes import Volumes, readable

LARGEST_BYTES = 2**18
"""Of a template; the largest of a known model has some 20 KiB."""

_SYSTEM_FIRST = (
    "{% set turns = messages %}{% set system = '' %}{% if messages and messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}{% endif %}"
)


def _end(token: str) -> str:
    """The end of an answer: the template's own token and, where the model stops at another one, that."""
    return f"{{{{ '{token}' }}}}{{% if eos_token and eos_token != '{token}' %}}{{{{ eos_token }}}}{{% endif %}}"


_CALLS = (
    "{% for call in message.tool_calls or [] %}{{ '\\n' if message.content or not loop.first }}"
    "{{ '<tool_call>\\n' }}{{ call.function | tojson }}{{ '\\n</tool_call>' }}{% endfor %}"
)
_CHATML = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' + message.content }}" + _end("<|im_end|>") + "{{ '\\n' }}"
    "{% elif message.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TOOLS_BEGIN = (
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>"
)
_TOOLS_END = (
    "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\\n<tool_call>\\n"
    '{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}'
    "\\n</tool_call><|im_end|>\\n"
)
_QWEN = (
    _SYSTEM_FIRST + "{% if tools %}{{ '<|im_start|>system\\n' + system + '" + _TOOLS_BEGIN + "' }}"
    "{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}{{ '" + _TOOLS_END + "' }}"
    "{% elif system %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}"
    "{% for message in turns %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content }}" + _CALLS + _end("<|im_end|>") + "{{ '\\n' }}"
    "{% elif message.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen2.5's, without its own system prompt, and with thoughts as Qwen3 writes them."""

TEMPLATES: Mapping[str, str] = {
    "ChatML": _CHATML,
    "Llama3": "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim }}"
    "{% if message.role == 'assistant' %}" + _end("<|eot_id|>") + "{% else %}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "Mistral": _SYSTEM_FIRST + "{% for message in turns %}{% if message.role == 'assistant' %}"
    "{{ ' ' + message.content }}{{ eos_token }}"
    "{% else %}{{ '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}{% endif %}{% endfor %}",
    "Gemma": _SYSTEM_FIRST + "{% for message in turns %}{% if message.role == 'assistant' %}"
    "{{ '<start_of_turn>model\\n' + message.content | trim }}" + _end("<end_of_turn>") + "{{ '\\n' }}"
    "{% else %}{{ '<start_of_turn>' + message.role + '\\n' + (system if loop.first else '') }}"
    "{{ message.content | trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    "Qwen": _QWEN,
    "Alpaca": _SYSTEM_FIRST + "{{ system }}{% for message in turns %}{% if message.role == 'assistant' %}"
    "{{ '### Response:\\n' + message.content }}{{ eos_token }}{{ '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
}
"""In the shapes that the models of these names, and Stanford Alpaca, were trained with, without a first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a run says of its chat template: its text, None for the model's own, and its variables.

    Before a `built_in` one comes what the tokenizer puts before every text. `day` is the day on which its clock stands,
    None for today.
    """

    text: str | None = None
    built_in: bool = False
    arguments: Mapping[str, Value] = field(default_factory=dict)
    day: date | None = None

    @property
    def digest(self) -> str | None:
        """Of the text, where one was chosen."""
        return None if self.text is None else f"sha256:{hashlib.sha256(self.text.encode()).hexdigest()}"

    def served(self, text: str) -> str:
        """A template with the run's variables as defaults, which a server's request may still set otherwise."""
        return "".join((*(_default(name, value) for name, value in self.arguments.items()), text))


def _default(name: str, value: Value) -> str:
    # A tokenizer gives its own special tokens to each template, so that no default would count.
    own = "" if name.endswith("_token") else f"{name} | default"
    return f"{{% set {name} = {own}({_literal(value)}) %}}"


def _literal(value: Value) -> str:
    """As Jinja has it."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def chosen_template(config: DatasetConfig, volumes: Volumes, day: date | None = None) -> Chosen:
    """The template of a run, on a `day`. Raises `ConfigError` and, for a missing ConfigMap or key, `NotFoundError`."""
    arguments = {name: argument_value(text) for name, text in (config.template_arguments or {}).items()}
    name = config.chat_template
    if name is None or name in TEMPLATES:
        text = None if name is None else TEMPLATES[name]
        return Chosen(text=text, built_in=name is not None, arguments=arguments, day=day)
    uri = parse_uri(name)
    if not isinstance(uri, ConfigMapUri):
        raise ConfigError(f"dataset.chatTemplate is {name}: it must be {', '.join(TEMPLATES)} or configmap://name/key")
    return Chosen(text=_read(f"dataset.chatTemplate is {name}", uri, volumes), arguments=arguments, day=day)


def _read(what: str, uri: ConfigMapUri, volumes: Volumes) -> str:
    path = volumes.config_map_path(uri)
    if not path.is_file():
        raise NotFoundError(
            f"{what}: the ConfigMap has no key {uri.key}: there is no file {path}", Reason.DATASET_NOT_FOUND
        )
    with readable(what):
        content = path.read_bytes()
    if len(content) > LARGEST_BYTES:
        raise ConfigError(f"{what}: it has {len(content)} bytes, and a template at most {LARGEST_BYTES}; shorten it")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: it is not UTF-8; save it as UTF-8") from error
    if not text.strip():
        raise ConfigError(f"{what}: it is empty; write a template into the key, or remove the field")
    return text
