"""The chat templates that models bring, as TRL ships them: nothing of a conversation is lost or learned by mistake.

Each text of the conversations is a word of its own, so that it can be found in what a template makes of it.
"""

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.test_learned import marked

from lora_trainer.data.chosen_template import TEMPLATES, Chosen
from lora_trainer.data.formats import Conversation
from lora_trainer.data.messages import parse_messages, parse_tools
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import DatasetError
from lora_trainer.spec.config import LossOn

_FOUND = importlib.util.find_spec("trl")
assert _FOUND is not None
assert _FOUND.submodule_search_locations is not None
FOLDER = Path(_FOUND.submodule_search_locations[0]) / "chat_templates"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
ORIGINALS = tuple(name for name in NAMES if not name.endswith("_training"))
"""As in the models' repositories; the others are TRL's changes to them, which people bring in ConfigMaps."""

BAR = "\N{FULLWIDTH VERTICAL LINE}"
STOPS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": (f"<{BAR}end▁of▁sentence{BAR}>",),
    "diffusion_gemma": ("<turn|>", "<|tool_response>"),
    "gemma": ("<end_of_turn>",),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "glm4moe": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "idefics3": ("<end_of_utterance>",),
    "llama3": ("<|eot_id|>", "<|eom_id|>"),
    "llava": ("</s>",),
    "phi3": ("<|endoftext|>", "<|end|>", "<|assistant|>"),
    "smolvlm": ("<end_of_utterance>",),
}
"""The tokens that end a turn, the tokenizer's own first, by how the name begins; the others end with ChatML's."""

USER, ASSISTANT, TOOL = "user", "assistant", "tool"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content, **more}


def calling(argument: str, content: str = "", **more: Any) -> dict[str, Any]:
    """An answer that calls the tool."""
    function = {"name": "weather", "arguments": {"city": argument}}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    return turn(ASSISTANT, content, tool_calls=[call], **more)


def result(content: Any) -> dict[str, Any]:
    """What the tool says."""
    return turn(TOOL, content, tool_call_id="abcdefghi", name="weather")


QUESTION, ANSWER = turn(USER, "seenask"), turn(ASSISTANT, "saidreply")
AGAIN = (turn(USER, "seenmore"), turn(ASSISTANT, "saidlast"))
CALLED = (turn(USER, "seenask"), calling("saidcity"), result("seendegrees"), ANSWER, *AGAIN)
TALKS: dict[str, tuple[Sequence[dict[str, Any]], int]] = {
    "plain": ((QUESTION, ANSWER, *AGAIN), 41),
    "system": ((turn("system", "seenrule"), QUESTION, ANSWER, *AGAIN), 40),
    "developer": ((turn("developer", "seenrule"), QUESTION, ANSWER), 22),
    "system in the midst": ((QUESTION, ANSWER, turn("system", "seenrule"), *AGAIN), 32),
    "a result of a call in the text": ((QUESTION, ANSWER, result("seendegrees"), turn(ASSISTANT, "saidlast")), 28),
    "answers in a row": ((QUESTION, ANSWER, turn(ASSISTANT, "saidlast")), 34),
    "thought in a field": ((QUESTION, turn(ASSISTANT, "saidreply", reasoning_content="saidthought")), 17),
    "thoughts in a field": (
        (
            QUESTION,
            turn(ASSISTANT, "saidreply", thinking="saidthought"),
            turn(USER, "seenmore"),
            turn(ASSISTANT, "saidlast", thinking="saidanother"),
        ),
        17,
    ),
    "thoughts in the content": (
        (
            QUESTION,
            turn(ASSISTANT, "<think>\nsaidthought\n</think>\n\nsaidreply"),
            turn(USER, "seenmore"),
            turn(ASSISTANT, "<think>\nsaidanother\n</think>\n\nsaidlast"),
        ),
        39,
    ),
    "calls": (CALLED, 27),
    "a thought behind a call": (
        (
            QUESTION,
            calling("saidcity", reasoning_content="saidplan"),
            result("seendegrees"),
            turn(ASSISTANT, "saidreply", reasoning_content="saidthought"),
        ),
        17,
    ),
    "text beside a call": (
        (QUESTION, calling("saidcity", "saidbefore"), result("seendegrees"), turn(ASSISTANT, "saidreply")),
        24,
    ),
    "a call as context": (
        (QUESTION, calling("seencity", "seenbefore", weight=0), result("seendegrees"), ANSWER),
        33,
    ),
}
"""Conversations and how many of the models' templates take them, at least; what begins with `said` is to be learned."""


@functools.cache
def encoder(name: str, loss_on: LossOn = LossOn.COMPLETION) -> Encoder:
    """Of a model with this template."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    begins = max((begin for begin in STOPS if name.startswith(begin)), key=len, default="")
    stops = STOPS.get(begins, ("<|im_end|>",))
    special = rf"<\|[a-zA-Z_/]+\|?>|<{BAR}[^>'\"]+{BAR}>|<[a-z_]+\|>|<start_of_turn>|<end_of_turn>"
    tokens = sorted({*re.findall(special, template), *stops})
    made = tiny.make_tokenizer(chat_template=template)
    made.add_special_tokens({"bos_token": "<s>", "eos_token": stops[0], "additional_special_tokens": tokens})
    return Encoder(made, loss_on, 8192, made.convert_tokens_to_ids(list(stops)))


def texts(found: Encoder, turns: Sequence[dict[str, Any]]) -> list[str]:
    """What becomes of a conversation, with what is learned between ⟦ and ⟧; nothing where it is refused."""
    chat = Conversation(where="x", messages=parse_messages("x", list(turns)), tools=_tools(turns))
    try:
        (encoded,) = found.encode_all([chat])
    except DatasetError:
        return []
    return [marked(found, one.example) for one in encoded]


def _tools(turns: Sequence[dict[str, Any]]) -> Any:
    return parse_tools("x", [WEATHER] if any("tool_calls" in one for one in turns) else None)


@functools.cache
def made(name: str, talk: str) -> list[str]:
    """The texts of one of the conversations."""
    return texts(encoder(name), TALKS[talk][0])


def test_there_are_templates_to_look_at() -> None:
    """Of TRL 1.16, 41 and their changed ones."""
    assert len(ORIGINALS) >= 41
    assert len(NAMES) >= 70


@pytest.mark.parametrize("talk", tuple(TALKS))
@pytest.mark.parametrize("name", NAMES)
def test_all_of_a_conversation_is_seen_and_each_answer_learned_once_or_it_is_refused(name: str, talk: str) -> None:
    """A tool's results are never learned, nor is a turn that is context only."""
    found = made(name, talk)
    if not found:
        return
    words = re.findall(r"(?:said|seen)\w+", str(TALKS[talk][0]))
    learned = [span for text in found for span in re.findall("⟦(.*?)⟧", text, re.DOTALL)]
    whole = "".join(found)
    for word in words:
        assert word in whole or word in ("seencity", "seenbefore")
        assert sum(span.count(word) for span in learned) == word.startswith("said")


@pytest.mark.parametrize("talk", tuple(TALKS))
def test_no_more_is_refused_than_templates_leave_out(talk: str) -> None:
    """A refusal of good rows is as bad as a loss."""
    assert sum(bool(made(name, talk)) for name in ORIGINALS) >= TALKS[talk][1]


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_a_template_trims_or_escapes_are_no_loss(name: str) -> None:
    """Quotes, line ends, blanks, JSON in results and in arguments."""
    if not made(name, "calls"):
        return
    odd = ' \n"so" it\'s <b>&amp;</b>\\n {"a": [1, null]}\té🤖 \n'
    nested = {"city": odd, "days": [1, 2.5, "x"], "exact": True, "of": {"a": None, "b": [{"c": odd}]}, "none": ""}
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": nested}}
    turns = [
        turn(USER, odd),
        turn(ASSISTANT, "", tool_calls=[call]),
        result({"celsius": [21], "said": odd}),
        turn(ASSISTANT, odd),
    ]
    assert texts(encoder(name), turns)


def test_a_row_is_looked_at_whatever_the_rows_before_it_left_out() -> None:
    """A thought that is empty, or that the content has, too, or one that nobody learns, shows nothing of another."""
    lost = (QUESTION, turn(ASSISTANT, "saidreply", reasoning_content="saidthought"))
    for first in (
        turn(ASSISTANT, "saidreply", reasoning_content=""),
        turn(ASSISTANT, "I see: saidreply", reasoning_content="I see"),
    ):
        chats = [
            Conversation(where="x", messages=parse_messages("x", list(turns))) for turns in ((QUESTION, first), lost)
        ]
        made_anew = encoder.__wrapped__("llama3")
        with pytest.raises(DatasetError, match="leaves out the thoughts of answers"):
            made_anew.encode_all(chats)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("phi3")])
def test_a_turn_ends_with_its_first_end_of_turn_token_and_many_turns_are_one_text(name: str) -> None:
    """Phi-3's template ends each turn with one such token and the whole with another."""
    (text,) = made(name, "plain")
    assert re.findall("⟦(.*?)⟧", text, re.DOTALL) == ["saidreply<|end|>", "saidlast<|end|>"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("lfm2_2_5")])
def test_a_thought_that_later_turns_take_away_is_learned_from_a_text_of_its_own(name: str) -> None:
    """With the template's own marks (`{% generation %}`), too."""
    for talk in ("thoughts in a field", "thoughts in the content"):
        learned = [re.findall("⟦(.*?)⟧", text, re.DOTALL) for text in made(name, talk)]
        assert [len(spans) for spans in learned] == [1, 1]
        assert "saidthought" in learned[0][0]
        assert "saidanother" in learned[1][0]


@pytest.mark.parametrize("loss_on", LossOn)
def test_what_is_lost_is_named_with_what_to_do(loss_on: LossOn) -> None:
    """Whatever is learned."""
    for name, talk, sentence in (
        ("qwen3", "developer", "leaves out a turn of the role developer (turn 1), so it would be lost; use another "),
        ("llama3_1", "thought in a field", "leaves out the thoughts of answers (reasoning_content), so they would be "),
        ("llama3_1", "text beside a call", "leaves out what an answer says beside its tool calls, so it would be "),
        ("deepseek_r1_distill", "text beside a call", "has no place for tool calls beside text, so they would be lost"),
        ("deepseekv3", "calls", "it gets the arguments of tool calls as objects, not as text)"),
    ):
        chat = Conversation(where="x", messages=parse_messages("x", list(TALKS[talk][0])), tools=_tools(TALKS[talk][0]))
        with pytest.raises(DatasetError, match=re.escape(sentence)):
            encoder(name, loss_on).encode(chat)


def test_the_built_in_qwen_writes_tools_calls_and_results_as_the_models_own() -> None:
    """All but its own system prompt, which nobody asked for."""
    own = encoder("qwen2_5")
    built_in = Encoder(own.tokenizer, LossOn.COMPLETION, 8192, tuple(own.stop_ids), _QWEN)
    system = turn("system", "seenrule")
    called = calling("saidcity")
    twice = {**called, "tool_calls": called["tool_calls"] * 2}
    for turns in (
        (system, QUESTION, ANSWER, *AGAIN),
        (system, QUESTION, calling("saidcity", "saidbefore"), result("seendegrees"), ANSWER, *AGAIN),
        (system, QUESTION, twice, result("seendegrees"), result("seenothers"), ANSWER),
    ):
        assert texts(built_in, turns) == texts(own, turns) != []
    assert texts(built_in, CALLED)[0].startswith("<|im_start|>system\n# Tools\n")
    (text,) = texts(built_in, TALKS["thoughts in a field"][0])
    assert "\n⟦<think>\nsaidthought\n</think>\n\nsaidreply<|im_end|>⟧" in text
    assert "\n⟦<think>\nsaidanother\n</think>\n\nsaidlast<|im_end|>⟧" in text


_QWEN = Chosen(text=TEMPLATES["Qwen"], built_in=True)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% else %}"
    "{% set turns = messages %}{% endif %}{% for message in turns %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + (messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' else '') }}"
    "{{ message.content + '[/INST]' }}{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral 7B v0.3's: the system prompt stands in a last turn by the user, and nowhere once that was answered."""


@pytest.mark.parametrize("loss_on", LossOn)
def test_a_system_prompt_that_no_answer_stands_behind_is_refused(loss_on: LossOn) -> None:
    """With no advice that would lose it as well."""
    tokenizer = tiny.make_tokenizer(chat_template=MISTRAL)
    found = Encoder(tokenizer, loss_on, 512, (tokenizer.eos_token_id,), Chosen())
    chat = Conversation(where="x", messages=parse_messages("x", list(TALKS["system"][0])))
    with pytest.raises(DatasetError, match="role system") as caught:
        found.encode(chat)
    assert "lossOn" not in str(caught.value)
    found.encode(Conversation(where="x", messages=chat.messages[1:]))


def warned(name: str, turns: Sequence[dict[str, Any]], with_tools: int = 0) -> str:
    """What is said of the template by the first row."""
    chat = Conversation(where="x", messages=parse_messages("x", list(turns)))
    return "".join(encoder(name).warnings(encoder(name).encode(chat).input_ids, with_tools))


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_prompt_that_opens_a_thought_which_no_row_has_is_named(name: str) -> None:
    """Served, the model continues a prompt that it never saw; where answers have thoughts, it did."""
    said = warned(name, (QUESTION, ANSWER))
    opens = name.startswith(("deepseek", "nemotron"))
    assert said.startswith('inference begins an answer with "<think>\\n"') is opens
    assert ('enable_thinking: "false"' in said) is name.startswith("nemotron")
    if made(name, "thought in a field"):
        said = warned(name, TALKS["thought in a field"][0])
        assert ('enable_thinking: "true"' in said) is bool(said) is (name == "qwen3_5_nothink")


def test_tools_that_a_template_leaves_out_are_named() -> None:
    """Not refused: many data sets have the column for a few rows."""
    for name in ORIGINALS:
        lost = "9 rows have tools, which the chat template leaves out" in warned(name, (QUESTION, ANSWER), 9)
        word = {"name": "seentool", "description": "d", "parameters": {"type": "object", "properties": {}}}
        chat = Conversation(where="x", messages=parse_messages("x", [QUESTION, ANSWER]), tools=parse_tools("x", [word]))
        assert ("seentool" not in marked(encoder(name), encoder(name).encode(chat))) is lost
    assert not warned("llama3", (QUESTION, ANSWER))
