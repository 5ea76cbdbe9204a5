"""Rows to conversations or texts: the four formats, and how `Auto` tells them apart by their columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_trainer.contract.config import DatasetConfig, DatasetFormat
from lora_trainer.errors import DatasetError
from lora_trainer.rows import Row

NEEDED = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.INSTRUCTION: ("instruction", "output"),
    DatasetFormat.TEXT: ("text",),
}
"""Roles that a row must have, in the order in which `Auto` tries the formats; `Instruction` may also have `input`."""

_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns, the last one by the assistant. `verbatim` asks base models to get prompt and answer without decoration."""

    where: str
    messages: tuple[Message, ...]
    verbatim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainText:
    """Text that is learned as it stands."""

    where: str
    text: str


Sample = Conversation | PlainText


def detect(config: DatasetConfig, row: Row) -> DatasetFormat:
    """The data set's format, from the configuration or from the columns of its first row. Raises `DatasetError`."""
    _check_mapping(config.columns, row)
    if config.format is not DatasetFormat.AUTO:
        return config.format
    for candidate, roles in NEEDED.items():
        if all(_column(config.columns, role) in row.values for role in roles):
            return candidate
    wanted = "; ".join(f"{candidate.value}: {', '.join(roles)}" for candidate, roles in NEEDED.items())
    raise DatasetError(
        f"{row.where}: the columns are {_names(row.values)}, which fit no format ({wanted}); rename them or map them "
        "with dataset.columns"
    )


def parse(row: Row, kind: DatasetFormat, columns: Mapping[str, str]) -> Sample | None:
    """The sample of a row, or None where what is to be learned is empty. Raises `DatasetError`."""
    if kind is DatasetFormat.MESSAGES:
        return _conversation(row, _column(columns, "messages"))
    texts = {role: _text(row, _column(columns, role), kind) for role in NEEDED[kind]}
    if kind is DatasetFormat.TEXT:
        return PlainText(where=row.where, text=texts["text"]) if texts["text"].strip() else None
    question, answer = (texts[role] for role in NEEDED[kind])
    if kind is DatasetFormat.INSTRUCTION:
        column = _column(columns, "input")
        extra = _text(row, column, kind) if column in row.values else ""
        question = f"{question}\n\n{extra}" if extra.strip() else question
    if not answer.strip():
        return None
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Conversation(where=row.where, messages=turns, verbatim=kind is DatasetFormat.PROMPT_COMPLETION)


def check_optional(columns: Mapping[str, str], rows: Sequence[Row]) -> None:
    """A row may lack its `input`, but a mapped column that all rows lack is misspelt. Raises `DatasetError`."""
    column = columns.get("input")
    if column is not None and not any(column in row.values for row in rows):
        raise DatasetError(
            f'{rows[0].where}: dataset.columns maps input to "{column}", which no row has; '
            f"the columns are {_names(rows[0].values)}"
        )


def _check_mapping(columns: Mapping[str, str], row: Row) -> None:
    for role, column in columns.items():
        if column not in row.values and role != "input":
            raise DatasetError(
                f'{row.where}: dataset.columns maps {role} to "{column}", but the columns are {_names(row.values)}'
            )


def _column(columns: Mapping[str, str], role: str) -> str:
    return columns.get(role, role)


def _names(values: Mapping[str, Any]) -> str:
    names = ", ".join(list(values)[:20])
    return names if len(names) <= 300 else names[:299] + "…"


def _missing(row: Row, column: str, kind: DatasetFormat) -> DatasetError:
    return DatasetError(
        f"{row.where}: missing field '{column}', which the format {kind.value} needs; the row has {_names(row.values)}"
    )


def _text(row: Row, column: str, kind: DatasetFormat) -> str:
    if column not in row.values:
        raise _missing(row, column, kind)
    value = row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DatasetError(f"{row.where}: field '{column}' is a {type(value).__name__}, but must be text")
    return value


def _conversation(row: Row, column: str) -> Conversation | None:
    if column not in row.values:
        raise _missing(row, column, DatasetFormat.MESSAGES)
    value = row.values[column]
    if not isinstance(value, list):
        raise DatasetError(f"{row.where}: field '{column}' is a {type(value).__name__}, but must be a list of messages")
    messages = tuple(_message(f"{row.where}: {column}[{i}]", item) for i, item in enumerate(value))
    learned = _until_last_answer(messages)
    return Conversation(where=row.where, messages=learned) if any(_is_answer(m) for m in learned) else None


def _message(where: str, item: object) -> Message:
    if not isinstance(item, dict):
        raise DatasetError(f"{where} is a {type(item).__name__}, but must be an object with role and content")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DatasetError(f"{where} must have a role and a content that are text; it has {_names(item)}")
    return Message(role=_SPEAKERS.get(role, role), content=content)


def _is_answer(message: Message) -> bool:
    return message.role == "assistant" and bool(message.content.strip())


def _until_last_answer(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Without turns after the last answer: nothing follows them that could be learned."""
    last = max((i for i, message in enumerate(messages) if _is_answer(message)), default=-1)
    return tuple(messages[: last + 1])
