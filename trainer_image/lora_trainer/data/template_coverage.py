"""Whether a chat template writes what a conversation says: shown by words that stand for its texts.

A text itself may be trimmed, escaped or written as JSON, and a short one stands in many places by chance. A word of
letters and digits comes through all of that, and is nowhere else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_trainer.data.formats import Conversation
from lora_trainer.data.messages import THOUGHTS, Message

_ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A conversation with a word in place of each text, and for each turn the words of its content, its thought and its
    calls."""

    messages: tuple[Message, ...]
    contents: tuple[tuple[str, ...], ...]
    thoughts: tuple[tuple[str, ...], ...]
    calls: tuple[tuple[str, ...], ...]


def probe_of(chat: Conversation) -> Probe:
    """The conversation in words; a blank text stays as it is, and so does whatever is no text."""
    made = [_in_words(turn, message) for turn, message in enumerate(chat.messages)]
    messages, contents, thoughts, calls = zip(*made, strict=True)
    return Probe(messages=messages, contents=contents, thoughts=thoughts, calls=calls)


def objection(probe: Probe, turn: int, text: str) -> str:
    """What of the conversation up to the answer of a `turn` is not in the `text` that ends with it, as the rest of a
    sentence; empty where all is.

    Of earlier turns by the assistant templates leave out what they mean to, thoughts above all; each is looked for in
    the text that ends with it.
    """
    for earlier, message in enumerate(probe.messages[:turn]):
        if message.role != _ASSISTANT and not _in(probe.contents[earlier], text):
            return (
                f"leaves out a turn of the role {message.role} (turn {earlier + 1}), so it would be lost; use another "
                "dataset.chatTemplate, or write it into a turn of another role"
            )
    if not _in(probe.thoughts[turn], text):
        named = next(name for name in THOUGHTS if name in probe.messages[turn].extra)
        return (
            f"leaves out the thoughts of answers ({named}), so they would be lost; use another dataset.chatTemplate, "
            "write them into the content, or remove them"
        )
    if not _in(probe.calls[turn], text):
        beside = " beside text" if probe.contents[turn] else ""
        some = any(word in text for word in probe.calls[turn])
        lacks = "leaves out some of an answer's tool calls" if some else f"has no place for tool calls{beside}"
        return f"{lacks}, so they would be lost; use another dataset.chatTemplate, or write them into the content"
    if not _in(probe.contents[turn], text):
        beside = " beside its tool calls" if probe.calls[turn] else ""
        return f"leaves out what an answer says{beside}, so it would be lost; use another dataset.chatTemplate"
    return ""


def shape_of(chat: Conversation) -> frozenset[tuple[Any, ...]]:
    """What decides whether a template writes a turn: its role and fields, its neighbours', whether there are tools."""
    turns = [None, *map(_kind, chat.messages), None]
    tools = bool(chat.tools)
    return frozenset((tools, turn == 1, *turns[turn - 1 : turn + 2]) for turn in range(1, len(turns) - 1))


def _kind(message: Message) -> tuple[Any, ...]:
    calls = len(message.extra.get("tool_calls", ()))
    said = (name for name, value in message.extra.items() if not isinstance(value, str) or value.strip())
    own = any(_is_own(message, name) for name in THOUGHTS)
    return (message.role, message.learned, bool(message.content.strip()), min(2, calls), own, *sorted(said))


def _is_own(message: Message, name: str) -> bool:
    """Whether it has a thought in this field that is not in its content, too."""
    value = message.extra.get(name)
    return _is_text(value) and str(value).strip() not in message.content


def _in(words: Sequence[str], text: str) -> bool:
    return all(word in text for word in words)


def _in_words(turn: int, message: Message) -> tuple[Message, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    words = (f"zq{turn:x}y{number:x}qz" for number in range(2**31))
    content, thought = next(words), next(words)
    thoughts = [name for name in THOUGHTS if _is_text(message.extra.get(name))]
    # Some data sets have the thought in the content, too.
    own = any(_is_own(message, name) for name in thoughts)
    extra = {**message.extra, **dict.fromkeys(thoughts, thought)}
    calls: list[str] = []
    if "tool_calls" in extra:
        extra["tool_calls"] = [_call(call, words, calls) for call in extra["tool_calls"]]
    said = bool(message.content.strip())
    return (
        replace(message, content=content if said else message.content, extra=extra),
        (content,) if said else (),
        (thought,) if own else (),
        tuple(calls),
    )


def _call(call: Mapping[str, Any], words: Iterator[str], used: list[str]) -> dict[str, Any]:
    return {**call, "function": _worded(call["function"], words, used)}


def _worded(value: Any, words: Iterator[str], used: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _worded(item, words, used) for key, item in value.items()}
    if isinstance(value, list):
        return [_worded(item, words, used) for item in value]
    if not _is_text(value):
        return value
    used.append(next(words))
    return used[-1]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
