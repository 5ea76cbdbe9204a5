"""Rows to conversations or texts: the four formats, and how `Auto` chooses by their columns."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_trainer.data.messages import Message, parse_messages, parse_tools
from lora_trainer.data.rows import Row, kind_of
from lora_trainer.errors import DatasetError
from lora_trainer.spec.config import DatasetConfig, DatasetFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns, the last one by the assistant. `verbatim` asks base models to get prompt and answer without decoration."""

    where: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    verbatim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainText:
    """Text that is learned as it stands."""

    where: str
    text: str


Sample = Conversation | PlainText

_RENDERED_TIMES = 64
"""So many times as much text may be made of a conversation where memory is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The format of a data set and the column that plays each role. `verbatim` as in `Conversation`."""

    kind: DatasetFormat
    columns: Mapping[str, str]
    verbatim: bool = False

    @property
    def names(self) -> frozenset[str]:
        """The columns that are read."""
        return frozenset(self.columns.values())

    @property
    def roles(self) -> frozenset[str]:
        """All roles of the format that columns may play here."""
        return frozenset((*self.columns, *_OPTIONAL[self.kind]))

    def has_text_input(self, row: Row) -> bool:
        """Whether the input is text, if the format needs one: HotpotQA's context, an object, is none to a question."""
        value = row.values.get(self.columns.get("input", ""))
        return value is None or isinstance(value, str)

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns, each of them for one role."""
        return self.names <= row.values.keys() and len(self.names) == len(self.columns)


def _layout(kind: DatasetFormat, *, verbatim: bool = False, **needed: str) -> Layout:
    return Layout(kind=kind, columns=needed, verbatim=verbatim)


KNOWN = (
    _layout(DatasetFormat.MESSAGES, messages="messages"),
    _layout(DatasetFormat.MESSAGES, messages="conversations"),
    _layout(DatasetFormat.PROMPT_COMPLETION, prompt="prompt", completion="completion", verbatim=True),
    _layout(DatasetFormat.INSTRUCTION, instruction="instruction", output="output"),
    _layout(DatasetFormat.INSTRUCTION, instruction="instruction", output="response"),
    _layout(DatasetFormat.INSTRUCTION, instruction="question", input="context", output="answer"),
    _layout(DatasetFormat.PROMPT_COMPLETION, prompt="question", completion="answer"),
    _layout(DatasetFormat.TEXT, text="text"),
)
"""The needed columns of each format, in the order in which `Auto` tries them."""

_OPTIONAL = {
    DatasetFormat.MESSAGES: ("tools", "system"),
    DatasetFormat.PROMPT_COMPLETION: ("tools", "system"),
    DatasetFormat.INSTRUCTION: ("input", "system"),
    DatasetFormat.TEXT: (),
}
"""Columns that a row may lack, by the name of their role."""

MAY_BE_ABSENT = frozenset({"input", "system", "tools"})


def detect(config: DatasetConfig, row: Row) -> Layout:
    """The data set's layout, from the configuration and from the columns of its first row. Raises `DatasetError`."""
    _check_mapping(config.columns, row)
    known = [
        layout for layout in KNOWN if config.format in (DatasetFormat.AUTO, layout.kind) and layout.has_text_input(row)
    ]
    mapped = [_mapped(layout, config.columns) for layout in known if config.columns.keys() <= layout.roles]
    found = next((layout for layout in mapped if layout.fits(row)), None)
    if found is None:
        wanted = "; ".join(f"{layout.kind.value}: {', '.join(layout.columns.values())}" for layout in known)
        auto = config.format is DatasetFormat.AUTO
        what = "fit no format" if auto else f"do not fit the format {config.format.value}"
        remedy = _remedy(list(row.values), known)
        raise DatasetError(f"{row.where}: the columns are {_names(row.values)}, which {what} ({wanted}); {remedy}")
    if config.format is DatasetFormat.AUTO:
        _check_preferences(found, row)
    return Layout(
        kind=found.kind, columns={**_optional(found, config.columns), **found.columns}, verbatim=found.verbatim
    )


def _optional(found: Layout, columns: Mapping[str, str]) -> Mapping[str, str]:
    """Columns of roles that a row may lack. None is read for two roles: a question would be asked twice."""
    # Databricks' Dolly, whose answer is the response, calls the input context.
    defaults = {"input": "context"} if found.columns.get("output") == "response" else {}
    usual = {role: defaults.get(role, role) for role in _OPTIONAL[found.kind]}
    taken = {*found.columns.values(), *columns.values()}
    free = {role: column for role, column in usual.items() if column not in taken}
    return free | {role: columns[role] for role in usual if role in columns}


def _remedy(names: Sequence[str], known: Sequence[Layout]) -> str:
    """What to do about columns that fit no layout."""
    if len(names) == 1 and re.search("[;\t]", names[0]):
        return "separate columns by commas"
    alike = {name.strip().lower(): name for name in names}
    layout = next((layout for layout in known if layout.names <= alike.keys()), None)
    if layout is None:
        return "rename them or map them with dataset.columns"
    mapping = ", ".join(f"{role}: {json.dumps(alike[column])}" for role, column in layout.columns.items())
    return f"rename them, or set dataset.columns to {{{mapping}}}"


def _check_preferences(found: Layout, row: Row) -> None:
    """Answers that are marked as good or bad, as for KTO, are not all to be learned. Raises `DatasetError`."""
    label = row.values.get("label")
    marks = found.kind is DatasetFormat.PROMPT_COMPLETION and "label" not in found.names
    if marks and str(label).lower() in {"true", "false"}:
        raise DatasetError(
            f"{row.where}: the column label is {json.dumps(label)}, which marks answers as good or bad, and bad ones "
            "would be learned, too: keep the rows with good ones, and set dataset.format to PromptCompletion"
        )


def _mapped(layout: Layout, columns: Mapping[str, str]) -> Layout:
    needed = {role: columns.get(role, column) for role, column in layout.columns.items()}
    return Layout(kind=layout.kind, columns=needed, verbatim=layout.verbatim)


def parse(row: Row, layout: Layout) -> Sample | None:
    """The sample of a row, or None where what is to be learned is empty. Raises `DatasetError`."""
    if layout.kind is DatasetFormat.TEXT:
        text = _text(row, layout, "text")
        return PlainText(where=row.where, text=text) if text.strip() else None
    verbatim = False
    if layout.kind is DatasetFormat.MESSAGES:
        messages = _turns(row, layout, "messages", learned=True) or ()
    elif layout.kind is DatasetFormat.INSTRUCTION:
        answer = _answer(_text(row, layout, "output"))
        question, extra = _prompt(row, layout, "instruction", answer), _optional_text(row, layout, "input")
        question = f"{question}\n\n{extra}" if extra.strip() else question
        messages = (Message(role="user", content=question), answer)
    else:
        prompt, completion = (_turns(row, layout, role, learned=role == "completion") for role in _EXCHANGE)
        verbatim = layout.verbatim and prompt is None and completion is None
        answers = (_answer(_text(row, layout, "completion")),) if completion is None else completion
        asked = (Message(role="user", content=_prompt(row, layout, "prompt", *answers)),) if prompt is None else prompt
        messages = asked + answers
    system = _optional_text(row, layout, "system")
    if system.strip() and not any(message.role == "system" for message in messages[:1]):
        messages, verbatim = (Message(role="system", content=system), *messages), False
    return _conversation(row, layout, messages, verbatim=verbatim)


_EXCHANGE = ("prompt", "completion")


def _conversation(row: Row, layout: Layout, messages: tuple[Message, ...], *, verbatim: bool) -> Conversation | None:
    """Without turns after the last answer: nothing follows them that could be learned."""
    last = max((i for i, message in enumerate(messages) if message.is_answer), default=-1)
    if last < 0:
        return None
    column = layout.columns.get("tools", "tools")
    return Conversation(
        where=row.where,
        messages=messages[: last + 1],
        tools=parse_tools(f"{row.where}: {column}", row.values.get(column)) if "tools" in layout.columns else (),
        verbatim=verbatim,
    )


def is_verbatim(row: Row, layout: Layout) -> bool:
    """Whether a row is learned as it stands where there is no chat template. Raises `DatasetError`."""
    sample = parse(row, layout)
    if sample is None:
        return layout.verbatim or layout.kind is DatasetFormat.TEXT
    return isinstance(sample, PlainText) or sample.verbatim


def nothing_to_learn(row: Row, layout: Layout) -> str:
    """Why no row has anything to learn, seen from the first; the end of a sentence."""
    if layout.kind is not DatasetFormat.MESSAGES:
        return "and so are all others; nothing can be learned from them"
    roles = {message.role for message in _turns(row, layout, "messages", learned=True) or ()}
    found = f"the roles here are {', '.join(sorted(roles))}" if roles else "there are no turns"
    return f"and so are all others: an answer is a turn of the role assistant (or gpt) with text, {found}"


def size(sample: Sample) -> int:
    """Characters of a sample, about."""
    if isinstance(sample, PlainText):
        return len(sample.text)
    extras = [m.extra for m in sample.messages if m.extra] + list(sample.tools)
    return sum(len(m.content) for m in sample.messages) + sum(len(str(extra)) for extra in extras)


def rendered_size(sample: Sample) -> int:
    """Characters of all that a chat template makes of a sample, about: each answer has a text of its own, which begins
    with all that comes before it."""
    answers = 0 if isinstance(sample, PlainText) else sum(message.is_answer for message in sample.messages)
    return size(sample) * max(1, answers)


def is_larger(sample: Sample, longest: int) -> bool:
    """Whether a sample has more characters, or so many answers that a multiple of these would be rendered of it."""
    return size(sample) > longest or rendered_size(sample) > _RENDERED_TIMES * longest


def content_key(sample: Sample) -> int:
    """64 bits, equal for samples of equal content, whatever other columns hold, and practically only for them."""
    if isinstance(sample, PlainText):
        parts = [sample.text]
    else:
        parts = [part for message in sample.messages for part in (message.role, message.content)]
        extras = [message.extra for message in sample.messages]
        if sample.tools or any(extras):
            parts.append(json.dumps([sample.tools, extras], sort_keys=True, default=str))
    text = "\0".join(parts).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _check_mapping(columns: Mapping[str, str], row: Row) -> None:
    for role, column in columns.items():
        if column not in row.values and role not in MAY_BE_ABSENT:
            raise DatasetError(
                f'{row.where}: dataset.columns maps {role} to "{column}", but the columns are {_names(row.values)}'
            )


def _names(values: Mapping[str, Any]) -> str:
    names = ", ".join(_shown(name) for name in list(values)[:20])
    return names if len(names) <= 300 else names[:299] + "…"


def _shown(name: str) -> str:
    """In quotes where it would be read as another name, or as several."""
    return json.dumps(name, ensure_ascii=False) if name != name.strip() or re.search("[,;\t]", name) else name


def _value(row: Row, layout: Layout, role: str) -> Any:
    column = layout.columns[role]
    if column not in row.values:
        raise DatasetError(
            f"{row.where}: missing field '{column}', which the format {layout.kind.value} needs; the row has "
            f"{_names(row.values)}"
        )
    return row.values[column]


def _text(row: Row, layout: Layout, role: str) -> str:
    value = _value(row, layout, role)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DatasetError(f"{row.where}: field '{layout.columns[role]}' is {kind_of(value)}, but must be text")
    return value


def _prompt(row: Row, layout: Layout, role: str, *answers: Message) -> str:
    """The text of a prompt, which may be empty and not null where an answer to it is learned."""
    if _value(row, layout, role) is None and any(answer.is_answer for answer in answers):
        raise DatasetError(
            f"{row.where}: field '{layout.columns[role]}' is null, but must be text: write the prompt, or an empty "
            "text where the answer is to be learned without one"
        )
    return _text(row, layout, role)


def _optional_text(row: Row, layout: Layout, role: str) -> str:
    return _text(row, layout, role) if layout.columns.get(role) in row.values else ""


def _turns(row: Row, layout: Layout, role: str, *, learned: bool) -> tuple[Message, ...] | None:
    """The turns of a column; None where a prompt or a completion is text instead."""
    value = _value(row, layout, role)
    if value is None and role == "messages":
        return ()
    if role in _EXCHANGE and not isinstance(value, list):
        return None
    return parse_messages(f"{row.where}: {layout.columns[role]}", value, learned=learned)


def _answer(text: str) -> Message:
    return Message(role="assistant", content=text)
