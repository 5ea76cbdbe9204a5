"""Chat templates of the shapes that models bring, and a tokenizer with their special tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.trainer import tiny
from tokenizers import Regex, pre_tokenizers, processors, trainers

from lora_trainer.data.tokens import Encoder
from lora_trainer.spec.config import LossOn

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{%- else %}{% set turns = messages %}{% endif %}{{- bos_token }}{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system is defined %}{{- '[INST] ' + system + '\n\n' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA4 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ message.content | trim + '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
    "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
"""Of its larger models: the generation prompt has a thought that turns have not."""
HERMES = (
    "{%- if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}{% if message.content %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with tool calls, as Hermes and Qwen have them."""

QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- endif %}{%- if tools %}{{- '<|im_start|>system\n' }}{%- for tool in tools %}{{- tool | tojson + '\n' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(query=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.query = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.query and (loop.last or message.reasoning_content) %}"
    "{{- '<think>\n' + (message.reasoning_content or '') + '\n</think>\n\n' }}{%- endif %}{{- message.content }}"
    "{%- for call in message.tool_calls or [] %}{{- '\n' if message.content or not loop.first }}"
    "{{- '<tool_call>\n' }}{{- call.function | tojson }}{{- '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'user' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
"""Thoughts stand in the turns after the last question alone; the last turn has them, empty ones if need be."""
THINKING = QWEN3.replace(
    "'<|im_start|>assistant\n' }}{%- if enable", "'<|im_start|>assistant\n<think>\n' }}{%- if enable"
)
"""Qwen's models that always think: the generation prompt opens the thought."""
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}{{ '<|User|>' + message.content }}"
    "{% else %}{{ '<|Assistant|>' + message.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
"""No turn has thoughts, the last one neither, and yet the generation prompt opens one."""
SMOLLM3 = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + message.content + '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' }}{% endif %}"
)
"""Marks that hold the heading, which the generation prompt has already written, and the newline after the turn."""
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Marks around the content alone, without the end of the turn."""
GPT_OSS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% if loop.last and message.thinking %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
"""The last answer alone ends with the token that ends a turn."""
GLM4 = (
    "<s>{% for message in messages %}{{ '<|observation|>' if message.role == 'tool' else '<|' + message.role + '|>' }}"
    "{{ '\n' + message.content }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The beginning of the next turn is what ends an answer."""
PHI4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ 'ASSISTANT: ' + message.content + eos_token }}{% elif message.role == 'user' %}"
    "{{ 'USER: ' + message.content + ' ' }}{% else %}{{ message.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_SPECIAL = (
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|User|>",
    "<|Assistant|>",
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|channel|>",
    "<|message|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|im_sep|>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A template and how it writes what a model says: `before` and `after` the content of an answer.

    `stops` end a turn beside `eos`. `trims` is whether the template trims contents; `alternates` whether it refuses
    turns that do not alternate; `roles` are those it knows beside user and assistant. `cut` is what answers lack of the
    generation prompt's end.
    """

    template: str | None
    eos: str
    before: str = ""
    after: str
    stops: tuple[str, ...] = ()
    trims: bool = False
    alternates: bool = False
    roles: tuple[str, ...] = ("system",)
    cut: str = ""

    def said(self, content: str) -> str:
        """What a model generates that answers with this content."""
        return self.before + (content.strip() if self.trims else content) + self.after


FAMILIES = {
    "ChatML": Family(template=tiny.CHATML, eos="<|im_end|>", after="<|im_end|>", roles=("system", "tool")),
    "Hermes": Family(template=HERMES, eos="<|im_end|>", after="<|im_end|>", roles=("system", "tool")),
    "Llama-3": Family(template=LLAMA3, eos="<|eot_id|>", after="<|eot_id|>", trims=True, roles=("system", "ipython")),
    "Mistral": Family(template=MISTRAL, eos="</s>", before=" ", after="</s>", alternates=True),
    "Gemma": Family(template=GEMMA, eos="</s>", stops=("<end_of_turn>",), after="<end_of_turn>", trims=True, roles=()),
    "Gemma-4": Family(template=GEMMA4, eos="<turn|>", after="<turn|>", trims=True, cut="<|channel>thought\n<channel|>"),
    "Qwen3": Family(
        template=QWEN3, eos="<|im_end|>", before="<think>\n\n</think>\n\n", after="<|im_end|>", roles=("system", "tool")
    ),
    "Thinking": Family(
        template=THINKING, eos="<|im_end|>", before="\n</think>\n\n", after="<|im_end|>", roles=("system", "tool")
    ),
    "DeepSeek-R1": Family(template=DEEPSEEK_R1, eos="</s>", after="</s>", cut="<think>\n"),
    "SmolLM3": Family(template=SMOLLM3, eos="<|im_end|>", after="<|im_end|>"),
    "marked": Family(template=MARKED, eos="<|im_end|>", after="<|im_end|>"),
    "gpt-oss": Family(
        template=GPT_OSS, eos="<|return|>", before="<|channel|>final<|message|>", after="<|return|>", roles=("system",)
    ),
    "Phi-4": Family(template=PHI4, eos="<|im_end|>", after="<|im_end|>", roles=("system", "tool")),
    "Vicuna": Family(template=VICUNA, eos="</s>", before=" ", after="</s>"),
    "no end": Family(template=tiny.CHATML, eos="</s>", after="<|im_end|></s>"),
    "no template": Family(template=None, eos="</s>", after="</s>", roles=("system", "tool")),
}
"""All but GLM's, whose end of a turn depends on what follows it."""


def encoder(
    family: Family,
    *,
    trims: bool = False,
    joins: bool = False,
    loss_on: LossOn = LossOn.COMPLETION,
    longest: int = 2048,
) -> Encoder:
    """An encoder of a model of this family; `trims` and `joins` as in `tokenizer`."""
    made = tokenizer(family.template, family.eos, trims=trims, joins=joins)
    stops = made.convert_tokens_to_ids([family.eos, *family.stops])
    return Encoder(made, loss_on, longest, stops)


def tokenizer(template: str | Mapping[str, str] | None, eos: str, *, trims: bool = False, joins: bool = False) -> Any:
    """A tokenizer with this template and end-of-sequence token. `trims` leaves blanks out of offsets, like GPT-2;
    `joins` has tokens of several blanks, line ends and signs, like GPT-4's and Qwen's, which may cross a boundary."""
    made = tiny.make_tokenizer(chat_template=template)
    if joins:
        _join(made.backend_tokenizer)
    made.add_special_tokens({"bos_token": "<s>", "eos_token": eos, "additional_special_tokens": list(_SPECIAL)})
    if trims:
        made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def _join(backend: Any) -> None:
    """Cut words as Qwen does, and learn tokens of what stands at the edges of turns."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    trainer: Any = trainers.BpeTrainer
    backend.train_from_iterator(
        ["\n\n\n  \n", "x\n\n", ":\n\n", ":\n x", "]  [", "> \n>", "Ahoy, captain! Fair winds."],
        trainer(
            vocab_size=400,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
