"""Rows of every format, however they are written, mean the conversation whose answers are learned."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.learning import assert_exactly_the_answers_are_learned, spans
from tests.trainer.templates import FAMILIES, Family
from tests.trainer.test_learned import ASSISTANT, CONTENTS, USER, conversations, encoder_of

from lora_trainer.data.formats import Conversation, detect, parse
from lora_trainer.data.messages import ROLES, Message
from lora_trainer.data.rows import Row
from lora_trainer.spec.config import DatasetConfig

Turns = Sequence[Message]
COLUMNS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "texts": [("prompt", "completion"), ("question", "answer")],
    "instruction": [
        ("instruction", "output", "input"),
        ("instruction", "response", "context"),
        ("question", "answer", "context"),
    ],
}
ANSWERS = CONTENTS.filter(str.strip)


def conversation(values: dict[str, Any]) -> Conversation | None:
    """What a row of these columns means."""
    row = Row(number=0, where="x", file="x", position=1, values=values)
    found = parse(row, detect(DatasetConfig(uri="pvc://a/b"), row))
    assert found is None or isinstance(found, Conversation)
    return found


@st.composite
def written(draw: st.DrawFn, messages: Turns) -> Any:
    """A list of turns in one of the ways in which data sets have it."""
    turns: list[dict[str, Any]] = []
    role, content = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    for message in messages:
        speaker = draw(st.sampled_from([name for name in ROLES if ROLES[name] == message.role] or [message.role]))
        cut = draw(st.integers(0, len(message.content)))
        parts = [{"type": "text", "text": message.content[:cut]}, {"type": "text", "text": message.content[cut:]}]
        turn = {
            role: draw(st.sampled_from([speaker, speaker.capitalize()])) if message.role in ROLES else speaker,
            content: draw(st.sampled_from([message.content, parts])),
        }
        weight = {} if message.learned else {"weight": 0}
        turns.append({**turn, **weight} if message.role == ASSISTANT else turn)
    return draw(st.sampled_from([turns, json.dumps(turns), json.dumps(turns, ensure_ascii=False)]))


@st.composite
def rows(draw: st.DrawFn, family: Family) -> tuple[dict[str, Any], Conversation]:
    """A row, and the conversation that it means."""
    kind = draw(st.sampled_from(["messages", "messages", "turns", "turns", "texts", "instruction"]))
    systems = CONTENTS.filter(str.strip) if "system" in family.roles else st.nothing()
    system = draw(st.none() | systems)
    values: dict[str, Any] = {} if system is None else {"system": system}
    if kind == "messages":
        chat = draw(conversations(family))
        # Nothing follows the last answer that could be learned.
        rest = draw(st.lists(CONTENTS.map(lambda text: Message(role=USER, content=text)), max_size=2))
        column = draw(st.sampled_from(["messages", "conversations"]))
        values[column] = draw(written([*chat.messages, *rest]))
        messages = chat.messages
    elif kind == "turns":
        # A list of each, answers in the prompt being context.
        chat = draw(conversations(family))
        place = draw(st.integers(1, len(chat.messages) - 1))
        prompt = tuple(
            Message(role=message.role, content=message.content, learned=message.role != ASSISTANT)
            for message in chat.messages[:place]
        )
        messages = (*prompt, *chat.messages[place:])
        turns = [[message.for_template() for message in part] for part in (prompt, messages[place:])]
        values |= {"prompt": turns[0], "completion": with_weights(turns[1], messages[place:])}
    else:
        question, said = draw(CONTENTS), draw(ANSWERS)
        more = draw(st.none() | CONTENTS) if kind == "instruction" else None
        names = draw(st.sampled_from(COLUMNS[kind]))
        values |= {names[0]: question, names[1]: said} | ({} if more is None else {names[2]: more})
        asked = f"{question}\n\n{more}" if more is not None and more.strip() else question
        messages = (Message(role=USER, content=asked), Message(role=ASSISTANT, content=said))
    before = () if system is None or messages[0].role == "system" else (Message(role="system", content=system),)
    verbatim = kind == "texts" and "prompt" in values and system is None
    return values, Conversation(where="x", messages=(*before, *messages), verbatim=verbatim)


def with_weights(turns: list[dict[str, Any]], messages: Turns) -> list[dict[str, Any]]:
    """Turns of which those that are not learned say so."""
    return [turn if message.learned else {**turn, "weight": 0} for turn, message in zip(turns, messages, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_row_of_any_format_is_learned_as_what_it_means(*, name: str, data: st.DataObject) -> None:
    """The columns, speakers and forms of content say the same: exactly the answers' tokens are learned."""
    family, encoder = FAMILIES[name], encoder_of(name, joins=True)
    values, meant = data.draw(rows(family))
    chat = conversation(values)
    assert chat == meant
    if meant.verbatim and not encoder.has_template:
        asked, answer = meant.messages
        example = encoder.encode(meant)
        assert spans(encoder, example) == [(asked.content, answer.content + family.after)]
    else:
        assert_exactly_the_answers_are_learned(encoder, family, meant)


@given(messages=st.lists(st.builds(Message, role=st.sampled_from(["system", USER, "tool"]), content=CONTENTS)))
def test_a_row_without_an_answer_teaches_nothing(messages: list[Message]) -> None:
    """Nor one whose answers are empty, or context."""
    silent = [
        {"role": ASSISTANT, "content": " \n"},
        {"role": ASSISTANT, "content": "Ahoy!", "weight": 0},
    ]
    turns = [message.for_template() for message in messages]
    assert conversation({"messages": [*turns, *silent]}) is None
