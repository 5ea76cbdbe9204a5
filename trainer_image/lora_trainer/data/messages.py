"""The turns of a conversation as data sets write them: roles, ShareGPT's names, tool calls, parts of text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_trainer.data.rows import kind_of
from lora_trainer.errors import DatasetError

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""Names of speakers, in lower case, and the roles that chat templates know; other names are passed on as they are."""

_CALLS = frozenset({"function_call", "tool_call"})
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Fields of an answer that hold its thought, each of which Transformers gives to templates under all these names."""

_PASSED_ON = ("name", "tool_call_id", *THOUGHTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn; `role` is system, user, assistant or tool. `extra` holds what templates read besides: tool calls,
    names, thoughts. With `learned` false an assistant turn is context only."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    learned: bool = True

    @property
    def is_answer(self) -> bool:
        """Whether there is something to learn in it."""
        return self.learned and self.role == "assistant" and bool(self.content.strip() or self.extra.get("tool_calls"))

    @property
    def thinks(self) -> bool:
        """Whether it has a thought, in a field or in its content."""
        return "</think>" in self.content or any(self.extra.get(name) for name in THOUGHTS)

    @property
    def calls_beside_text(self) -> bool:
        """Whether it has tool calls and text."""
        return bool(self.content.strip() and self.extra.get("tool_calls"))

    def for_template(self, *, in_parts: bool = False) -> dict[str, Any]:
        """As chat templates take it, which may want texts as parts of a content that may have images as well."""
        content: object = [{"type": "text", "text": self.content}] if in_parts else self.content
        return {"role": self.role, "content": content, **self.extra}


def parse_messages(where: str, value: object, *, learned: bool = True) -> tuple[Message, ...]:
    """The turns of a list of `{role, content}` or `{from, value}`, which may be JSON text. Raises `DatasetError`."""
    if isinstance(value, str):
        value = _from_json(value)
    if not isinstance(value, list):
        raise DatasetError(f"{where} is {kind_of(value)}, but must be a list of messages, or one as JSON text")
    return tuple(_message(f"{where}[{i}]", item, learned) for i, item in enumerate(value))


def parse_tools(where: str, value: object) -> tuple[Mapping[str, Any], ...]:
    """The tools that a conversation may call: JSON schemas, or the list of them as JSON text. Raises `DatasetError`."""
    if isinstance(value, str):
        value = _from_json(value) if value.strip() else []
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DatasetError(f"{where} is {kind_of(value)}, but must be a list of tools, or one as JSON text")
    tools: list[Any] = [_from_json(item) if isinstance(item, str) else item for item in value]
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise DatasetError(f"{where}[{i}] is {kind_of(tool)}, but must be an object that describes a tool")
    return tuple(tools)


def _message(where: str, item: object, learned: bool) -> Message:
    if not isinstance(item, dict):
        raise DatasetError(f"{where} is {kind_of(item)}, but must be an object with role and content")
    speaker, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(speaker, str):
        raise DatasetError(f"{where} must have a role that is text; it has {', '.join(map(str, item))}")
    # OpenAI's older form has the only call in a field of its own.
    calls = item.get("tool_calls") or item.get("function_call")
    if speaker.lower() in _CALLS:
        speaker, calls, content = "assistant", content, None
    role = ROLES.get(speaker.lower(), speaker)
    extra: dict[str, Any] = {name: item[name] for name in _PASSED_ON if item.get(name) is not None}
    if calls:
        extra["tool_calls"] = _calls(f"{where}.tool_calls", calls)
    # The weight is OpenAI's mark for a turn that is not to be learned.
    return Message(
        role=role,
        content=_content(where, content, role, optional="tool_calls" in extra),
        extra=extra,
        learned=role != "assistant" or (learned and item.get("weight", 1) != 0),
    )


def _content(where: str, content: object, role: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    if content is None and optional:
        return ""
    if role == "tool" and isinstance(content, dict | list):
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, list):
        raise DatasetError(
            f'{where} must have a content that is text, or parts as {{"type": "text", "text": "..."}}: images and '
            "sounds are not trained on"
        )
    raise DatasetError(f"{where} must have a content that is text, not {kind_of(content)}")


def _calls(where: str, value: object) -> list[dict[str, Any]]:
    """In OpenAI's form, with the arguments as an object: templates write them as JSON themselves."""
    if isinstance(value, str):
        value = _from_json(value)
    items: Sequence[object] = value if isinstance(value, list) else [value]
    calls = []
    for i, item in enumerate(items):
        call = item if isinstance(item, dict) else {}
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise DatasetError(f"{where}[{i}] must name a function and its arguments, as in {_EXAMPLE}")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            arguments = _from_json(arguments) if arguments.strip() else {}
        if not isinstance(arguments or {}, dict):
            raise DatasetError(f"{where}[{i}].arguments must be an object, or one as JSON text, as in {_EXAMPLE}")
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append({**identity, "type": "function", "function": {"name": name, "arguments": arguments or {}}})
    return calls


_EXAMPLE = '{"function": {"name": "weather", "arguments": {"city": "Bern"}}}'


def _from_json(text: str) -> object:
    """What the text says; the text itself where it is no JSON."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
