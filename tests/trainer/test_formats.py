"""The four formats, and how Auto chooses."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lora_trainer.data.formats import Conversation, Layout, PlainText, Sample, content_key, detect, is_verbatim, parse
from lora_trainer.data.messages import Message
from lora_trainer.data.rows import Row
from lora_trainer.errors import DatasetError
from lora_trainer.spec.column_roles import COLUMN_ROLES, ROLES_GO_TOGETHER
from lora_trainer.spec.config import DatasetConfig, DatasetFormat

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def row(**values: Any) -> Row:
    """A row on line 3."""
    return Row(0, "x.jsonl, line 3", "x.jsonl", 3, values)


def config(**columns: str) -> DatasetConfig:
    """A data set's configuration."""
    return DatasetConfig(uri="pvc://d/x.jsonl", columns=columns)


def spoken(*turns: tuple[str, str]) -> tuple[Message, ...]:
    """Turns of role and content."""
    return tuple(Message(role=role, content=content) for role, content in turns)


def called(name: str, **arguments: Any) -> dict[str, Any]:
    """A call of a tool as templates take it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


FIRST_ROWS = {
    DatasetFormat.MESSAGES: row(messages=CHAT),
    DatasetFormat.PROMPT_COMPLETION: row(prompt="q", completion="a"),
    DatasetFormat.INSTRUCTION: row(instruction="q", output="a"),
    DatasetFormat.TEXT: row(text="t"),
}


def layout(kind: DatasetFormat) -> Layout:
    """The layout of a data set of this format with the usual columns."""
    return detect(config(), FIRST_ROWS[kind])


@pytest.mark.parametrize(
    ("values", "columns", "kind"),
    [
        ({"messages": CHAT}, {}, DatasetFormat.MESSAGES),
        ({"prompt": "q", "completion": "a"}, {}, DatasetFormat.PROMPT_COMPLETION),
        ({"instruction": "q", "input": "", "output": "a"}, {}, DatasetFormat.INSTRUCTION),
        ({"text": "t"}, {}, DatasetFormat.TEXT),
        ({"text": "t", "messages": CHAT}, {}, DatasetFormat.MESSAGES),
        ({"id": 1, "conversations": CHAT}, {}, DatasetFormat.MESSAGES),
        ({"instruction": "q", "context": "", "response": "a"}, {}, DatasetFormat.INSTRUCTION),
        ({"question": "q", "answer": "a"}, {}, DatasetFormat.PROMPT_COMPLETION),
        ({"question": "q", "context": "c", "answer": "a"}, {}, DatasetFormat.INSTRUCTION),
        ({"body": "t", "messages": CHAT}, {"text": "body"}, DatasetFormat.TEXT),
        ({"text": "q", "answer": "a"}, {"prompt": "text", "completion": "answer"}, DatasetFormat.PROMPT_COMPLETION),
        ({"conversations": CHAT}, {"messages": "conversations"}, DatasetFormat.MESSAGES),
        (
            {"question": "q", "answer": "a"},
            {"prompt": "question", "completion": "answer"},
            DatasetFormat.PROMPT_COMPLETION,
        ),
    ],
)
def test_auto_finds_the_format_by_columns(values: dict[str, Any], columns: dict[str, str], kind: DatasetFormat) -> None:
    """With and without a mapping of columns."""
    assert detect(config(**columns), row(**values)).kind is kind


def test_a_chosen_format_is_not_overruled_by_other_columns() -> None:
    """And one whose columns are not there is reported with those that are."""
    chosen = DatasetConfig(uri="pvc://d/x.jsonl", format=DatasetFormat.TEXT)
    assert detect(chosen, row(messages=CHAT, text="t")).kind is DatasetFormat.TEXT
    with pytest.raises(DatasetError, match=r"columns are messages, which do not fit the format Text \(Text: text\)"):
        detect(chosen, row(messages=CHAT))


def test_auto_lists_what_it_found_when_nothing_fits() -> None:
    """The sentence names file, line, the columns and what each format needs."""
    with pytest.raises(DatasetError) as caught:
        detect(config(), row(query="q", reply="a"))
    assert "x.jsonl, line 3: the columns are query, reply, which fit no format" in str(caught.value)
    assert "PromptCompletion: prompt, completion" in str(caught.value)
    assert "dataset.columns" in str(caught.value)


def test_a_mapping_to_a_missing_column_is_reported() -> None:
    """Where a role is mapped to a column that no row has."""
    with pytest.raises(DatasetError, match=r'maps prompt to "question", but the columns are q, a'):
        detect(config(prompt="question"), row(q="q", a="a"))


def test_a_mapped_role_is_never_passed_over() -> None:
    """Auto would learn the prompt alone, as text."""
    with pytest.raises(DatasetError, match="the columns are text, summary, which fit no format"):
        detect(config(prompt="text"), row(text="q", summary="a"))


@pytest.mark.parametrize(
    ("values", "columns", "turns"),
    [
        (
            {"system_prompt": "s", "question": "q", "answer": "a"},
            {"system": "system_prompt"},
            (("system", "s"), ("user", "q"), ("assistant", "a")),
        ),
        (
            {"system_prompt": "s", "question": "q", "response": "a"},
            {"system": "system_prompt", "prompt": "question", "completion": "response"},
            (("system", "s"), ("user", "q"), ("assistant", "a")),
        ),
        ({"input": "q", "output": "a"}, {"instruction": "input"}, (("user", "q"), ("assistant", "a"))),
        (
            {"input": "q", "context": "c", "output": "a"},
            {"instruction": "input", "input": "context"},
            (("user", "q\n\nc"), ("assistant", "a")),
        ),
        ({"system": "q", "completion": "a"}, {"prompt": "system"}, (("user", "q"), ("assistant", "a"))),
        (
            {"instruction": "q", "system": "c", "output": "a"},
            {"input": "system"},
            (("user", "q\n\nc"), ("assistant", "a")),
        ),
        (
            {"question": "q", "context": "c", "answer": "a"},
            {},
            (("user", "q\n\nc"), ("assistant", "a")),
        ),
    ],
)
def test_no_column_is_read_for_two_roles(
    values: dict[str, str], columns: dict[str, str], turns: tuple[tuple[str, str], ...]
) -> None:
    """A role that a row may lack is that of the column of its name only where no other reads it."""
    sample = parse(row(**values), detect(config(**columns), row(**values)))
    assert isinstance(sample, Conversation)
    assert sample.messages == spoken(*turns)


def test_an_answer_is_not_its_own_question() -> None:
    """Where the mapping leaves both roles the same column."""
    with pytest.raises(DatasetError, match="which fit no format"):
        detect(config(instruction="output"), row(output="a"))


@pytest.mark.parametrize(
    ("names", "shown", "remedy"),
    [
        (
            ("Prompt", "Completion"),
            "Prompt, Completion",
            'set dataset.columns to {prompt: "Prompt", completion: "Completion"}',
        ),
        (
            ("prompt", " completion"),
            'prompt, " completion"',
            'set dataset.columns to {prompt: "prompt", completion: " completion"}',
        ),
        (("prompt;completion",), '"prompt;completion"', "separate columns by commas"),
        (("prompt\tcompletion",), '"prompt\\tcompletion"', "separate columns by commas"),
        (("query", "reply"), "query, reply", "rename them or map them with dataset.columns"),
    ],
)
def test_names_that_look_right_are_shown_with_what_is_wrong(names: tuple[str, ...], shown: str, remedy: str) -> None:
    """Blanks, case, and what stands between them."""
    with pytest.raises(DatasetError) as caught:
        detect(config(), row(**dict.fromkeys(names, "x")))
    assert f"the columns are {shown}, which fit no format" in str(caught.value)
    assert str(caught.value).endswith(remedy)


@pytest.mark.parametrize("kind", [kind for kind in FIRST_ROWS if kind is not DatasetFormat.TEXT])
def test_the_definition_takes_the_roles_of_a_format_together(kind: DatasetFormat) -> None:
    """Those that the trainer reads of its rows, and no other."""
    broken, roles = ROLES_GO_TOGETHER.broken, set(layout(kind).columns)
    assert broken is not None
    chosen = DatasetConfig(uri="pvc://d/x.jsonl", format=kind, columns=dict.fromkeys(roles, "x"))
    assert not broken(chosen, lambda _: True)
    for other in set(COLUMN_ROLES) - roles:
        assert broken(replace(chosen, columns={other: "x"}), lambda _: True)


@pytest.mark.parametrize("label", [False, True, "False"])
def test_answers_that_are_marked_as_bad_are_not_learned(label: object) -> None:
    """As KTO has them; of whoever names the format they are."""
    values = {"prompt": "q", "completion": "a", "label": label}
    with pytest.raises(DatasetError, match=r"the column label is .*, which marks answers as good or bad"):
        detect(config(), row(**values))
    chosen = DatasetConfig(uri="pvc://d/x.jsonl", format=DatasetFormat.PROMPT_COMPLETION)
    assert detect(chosen, row(**values)).kind is DatasetFormat.PROMPT_COMPLETION
    assert detect(config(), row(**{**values, "label": "polite"})).kind is DatasetFormat.PROMPT_COMPLETION
    assert (
        detect(config(prompt="text", completion="label"), row(text="q", label=label)).columns["completion"] == "label"
    )


@pytest.mark.parametrize("context", [{"title": ["a"]}, ["a", "b"]])
def test_a_context_that_is_no_text_is_not_read_beside_question_and_answer(context: object) -> None:
    """As HotpotQA has it."""
    found = detect(config(), row(question="q", context=context, answer="a"))
    assert "context" not in found.names
    assert (found.columns["prompt"], found.columns["completion"]) == ("question", "answer")


@pytest.mark.parametrize(
    ("kind", "values", "sample"),
    [
        (
            DatasetFormat.INSTRUCTION,
            {"instruction": "Sum", "input": "1 2", "output": "3"},
            Conversation(
                where="x.jsonl, line 3",
                messages=(Message(role="user", content="Sum\n\n1 2"), Message(role="assistant", content="3")),
            ),
        ),
        (
            DatasetFormat.PROMPT_COMPLETION,
            {"prompt": "q", "completion": "a"},
            Conversation(
                where="x.jsonl, line 3",
                messages=(Message(role="user", content="q"), Message(role="assistant", content="a")),
                verbatim=True,
            ),
        ),
        (DatasetFormat.TEXT, {"text": "t"}, PlainText(where="x.jsonl, line 3", text="t")),
        (
            DatasetFormat.MESSAGES,
            {
                "messages": [
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                    {"from": "human", "value": "z"},
                ]
            },
            Conversation(
                where="x.jsonl, line 3",
                messages=(Message(role="user", content="q"), Message(role="assistant", content="a")),
            ),
        ),
        (
            DatasetFormat.PROMPT_COMPLETION,
            {"prompt": CHAT[:1], "completion": CHAT[1:]},
            Conversation(where="x.jsonl, line 3", messages=spoken(("user", "q"), ("assistant", "a"))),
        ),
        (
            DatasetFormat.PROMPT_COMPLETION,
            {"prompt": [*CHAT, {"role": "user", "content": "z"}], "completion": "b", "system": "s"},
            Conversation(
                where="x.jsonl, line 3",
                messages=(
                    *spoken(("system", "s"), ("user", "q")),
                    Message(role="assistant", content="a", learned=False),
                    *spoken(("user", "z"), ("assistant", "b")),
                ),
            ),
        ),
        (
            DatasetFormat.MESSAGES,
            {"messages": json.dumps(CHAT), "tools": '[{"name": "f"}]', "system": "s"},
            Conversation(
                where="x.jsonl, line 3",
                messages=spoken(("system", "s"), ("user", "q"), ("assistant", "a")),
                tools=({"name": "f"},),
            ),
        ),
        (
            DatasetFormat.MESSAGES,
            {
                "messages": [
                    {"from": "system", "value": "own"},
                    {"from": "Human", "value": [{"type": "text", "text": "q"}]},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": "2"},
                    {"from": "gpt", "value": "a", "weight": 1},
                ],
                "system": "other",
                "tools": None,
            },
            Conversation(
                where="x.jsonl, line 3",
                messages=(
                    *spoken(("system", "own"), ("user", "q")),
                    Message(role="assistant", content="", extra={"tool_calls": [called("f", x=1)]}),
                    *spoken(("tool", "2"), ("assistant", "a")),
                ),
            ),
        ),
        (
            DatasetFormat.MESSAGES,
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                    },
                ]
            },
            Conversation(
                where="x.jsonl, line 3",
                messages=(
                    *spoken(("user", "q")),
                    Message(role="assistant", content="", extra={"tool_calls": [{"id": "c1", **called("f", x=1)}]}),
                ),
            ),
        ),
        *(
            (
                DatasetFormat.MESSAGES,
                {
                    "messages": [
                        {"role": "user", "content": "q"},
                        {
                            "role": "assistant",
                            "content": content,
                            "tool_calls": None,
                            "function_call": {"name": "f", "arguments": '{"x": 1}'},
                        },
                    ]
                },
                Conversation(
                    where="x.jsonl, line 3",
                    messages=(
                        *spoken(("user", "q")),
                        Message(role="assistant", content=content or "", extra={"tool_calls": [called("f", x=1)]}),
                    ),
                ),
            )
            for content in ("a", None)
        ),
        (DatasetFormat.MESSAGES, {"messages": [{"role": "user", "content": "q"}, {**CHAT[1], "weight": 0}]}, None),
        (DatasetFormat.MESSAGES, {"messages": None}, None),
        (DatasetFormat.TEXT, {"text": "  "}, None),
        (DatasetFormat.TEXT, {"text": None}, None),
        (DatasetFormat.PROMPT_COMPLETION, {"prompt": "q", "completion": ""}, None),
        (DatasetFormat.PROMPT_COMPLETION, {"prompt": None, "completion": None}, None),
        (DatasetFormat.INSTRUCTION, {"instruction": None, "output": ""}, None),
        (
            DatasetFormat.PROMPT_COMPLETION,
            {"prompt": "", "completion": "a"},
            Conversation(where="x.jsonl, line 3", messages=spoken(("user", ""), ("assistant", "a")), verbatim=True),
        ),
        (DatasetFormat.MESSAGES, {"messages": []}, None),
        (DatasetFormat.MESSAGES, {"messages": CHAT[:1]}, None),
    ],
)
def test_a_row_becomes_a_sample(kind: DatasetFormat, values: dict[str, Any], sample: object) -> None:
    """Rows with nothing to learn become None, and are counted by the caller."""
    assert parse(row(**values), layout(kind)) == sample


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (DatasetFormat.INSTRUCTION, {"instruction": "q"}, "missing field 'output', which the format Instruction needs"),
        (DatasetFormat.TEXT, {"text": 3}, "field 'text' is a number, but must be text"),
        (
            DatasetFormat.PROMPT_COMPLETION,
            {"prompt": None, "completion": "a"},
            "field 'prompt' is null, but must be text: write the prompt, or an empty text",
        ),
        (DatasetFormat.PROMPT_COMPLETION, {"prompt": None, "completion": CHAT}, "field 'prompt' is null"),
        (DatasetFormat.INSTRUCTION, {"instruction": None, "input": "i", "output": "a"}, "field 'instruction' is null"),
        (DatasetFormat.MESSAGES, {"messages": "q"}, "messages is text, but must be a list of messages, or"),
        (DatasetFormat.MESSAGES, {"messages": ["q"]}, "messages[0] is text, but must be an object"),
        (
            DatasetFormat.MESSAGES,
            {"messages": [{"role": "user"}]},
            "messages[0] must have a content that is text, not null",
        ),
        (
            DatasetFormat.MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]},
            'messages[0] must have a content that is text, or parts as {"type": "text", "text": "..."}: images',
        ),
    ],
)
def test_a_row_of_the_wrong_shape_is_reported(kind: DatasetFormat, values: dict[str, Any], sentence: str) -> None:
    """File, line, field, and what it must be."""
    with pytest.raises(DatasetError) as caught:
        parse(row(**values), layout(kind))
    assert str(caught.value).startswith("x.jsonl, line 3: ")
    assert sentence in str(caught.value)


def test_an_input_that_is_no_text_is_refused() -> None:
    """It would be left out in silence."""
    with pytest.raises(DatasetError, match=r"x\.jsonl, line 3: field 'input' is a number, but must be text"):
        parse(row(instruction="Add", input=3, output="a"), layout(DatasetFormat.INSTRUCTION))


def test_equal_content_has_equal_keys_whatever_stands_beside_it() -> None:
    """Another id, another file: still a copy. Another word, another turn, another tool: none."""
    samples = [
        parse(row(messages=CHAT, id=1), layout(DatasetFormat.MESSAGES)),
        parse(row(messages=CHAT[::-1] + CHAT), layout(DatasetFormat.MESSAGES)),
        parse(row(messages=CHAT, tools=[{"name": "f"}]), layout(DatasetFormat.MESSAGES)),
        parse(row(messages=CHAT, tools=[{"name": "g"}]), layout(DatasetFormat.MESSAGES)),
        parse(row(messages=[CHAT[0], {**CHAT[1], "content": "b"}]), layout(DatasetFormat.MESSAGES)),
        PlainText(where="y", text="q a"),
    ]
    keys = [content_key(sample) for sample in samples if sample is not None]
    assert len(set(keys)) == 6
    copy = parse(Row(9, "y", "y", 1, {"messages": CHAT, "id": 2}), layout(DatasetFormat.MESSAGES))
    assert copy is not None
    assert content_key(copy) == keys[0]


@pytest.mark.parametrize(
    ("values", "verbatim"),
    [
        ({"prompt": "q", "completion": "a"}, True),
        ({"question": "q", "answer": "a"}, False),
        ({"prompt": CHAT[:1], "completion": "a"}, False),
    ],
)
def test_only_a_prompt_of_text_is_continued_as_it_stands(values: dict[str, Any], verbatim: bool) -> None:
    """A base model gets a question with headings, so that the answer does not stick to it."""
    sample: Sample | None = parse(row(**values), detect(config(), row(**values)))
    assert isinstance(sample, Conversation)
    assert sample.verbatim is verbatim
    assert is_verbatim(row(**values), detect(config(), row(**values))) is verbatim
