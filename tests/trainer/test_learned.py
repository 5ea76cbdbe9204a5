"""Which tokens are learned with the templates of many families: masks written by hand, and any conversations."""

import functools
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer import templates
from tests.trainer.learning import assert_exactly_the_answers_are_learned, bounds
from tests.trainer.templates import FAMILIES, Family

from lora_trainer.data.formats import Conversation
from lora_trainer.data.messages import Message
from lora_trainer.data.tokens import IGNORED, Encoder, Example
from lora_trainer.errors import DatasetError
from lora_trainer.spec.config import LossOn

USER, ASSISTANT = "user", "assistant"
BRIEF = ((USER, "Who are you"), (ASSISTANT, "Ahoy!"))
LONGER = (*BRIEF, (USER, "Bye"), (ASSISTANT, "Fair winds."))
GLM4 = Family(template=templates.GLM4, eos="</s>", stops=("<|user|>", "<|observation|>"), before="\n", after="")


def talk(*turns: Message | tuple[str, str], tools: Sequence[Any] = ()) -> Conversation:
    """A conversation of messages, or (role, content) pairs."""
    messages = tuple(turn if isinstance(turn, Message) else Message(role=turn[0], content=turn[1]) for turn in turns)
    return Conversation(where="x", messages=messages, tools=tuple(tools))


def marked(encoder: Encoder, example: Example) -> str:
    """The text of an example with what is learned between ⟦ and ⟧."""
    runs: list[list[int]] = [[]]
    for before, (token, label) in pairwise([(0, IGNORED), *zip(example.input_ids, example.labels, strict=True)]):
        if (before[1] == IGNORED) != (label == IGNORED):
            runs.append([])
        runs[-1].append(int(token))
    texts = [encoder.tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]
    return "".join(f"⟦{text}⟧" if number % 2 else text for number, text in enumerate(texts))


def tokens(encoder: Encoder, text: str) -> tuple[list[int], list[int]]:
    """Ids and labels of a text whose learned stretches stand between ⟦ and ⟧."""
    ids: list[int] = []
    labels: list[int] = []
    for number, piece in enumerate(re.split("[⟦⟧]", text)):
        found = encoder.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
        ids += found
        labels += found if number % 2 else [IGNORED] * len(found)
    return ids, labels


BY_HAND = {
    "ChatML": [
        (
            "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n⟦Ahoy!<|im_end|>⟧\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦Fair winds.<|im_end|>⟧"
        )
    ],
    "Hermes": [
        (
            "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n⟦Ahoy!<|im_end|>⟧\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦Fair winds.<|im_end|>⟧"
        )
    ],
    "Llama-3": [
        (
            "<s><|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Ahoy!<|eot_id|>⟧"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Fair winds.<|eot_id|>⟧"
        )
    ],
    "Mistral": ["<s>[INST] Who are you [/INST]⟦ Ahoy!</s>⟧[INST] Bye [/INST]⟦ Fair winds.</s>⟧"],
    "Gemma": [
        (
            "<s><start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\n⟦Ahoy!<end_of_turn>⟧\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n⟦Fair winds.<end_of_turn>⟧"
        )
    ],
    "Qwen3": [
        "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nAhoy!<|im_end|>⟧",
        (
            "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\nAhoy!<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nFair winds.<|im_end|>⟧"
        ),
    ],
    "Thinking": [
        "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n<think>\n⟦\n</think>\n\nAhoy!<|im_end|>⟧",
        (
            "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\nAhoy!<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n⟦\n</think>\n\nFair winds.<|im_end|>⟧"
        ),
    ],
    "DeepSeek-R1": ["<s><|User|>Who are you<|Assistant|>⟦Ahoy!</s>⟧<|User|>Bye<|Assistant|>⟦Fair winds.</s>⟧"],
    "SmolLM3": [
        (
            "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n⟦Ahoy!<|im_end|>⟧\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n⟦Fair winds.<|im_end|>⟧"
        )
    ],
    "marked": [
        (
            "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n⟦Ahoy!<|im_end|>⟧\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦Fair winds.<|im_end|>⟧"
        )
    ],
    "gpt-oss": [
        "<|start|>user<|message|>Who are you<|end|><|start|>assistant⟦<|channel|>final<|message|>Ahoy!<|return|>⟧",
        (
            "<|start|>user<|message|>Who are you<|end|><|start|>assistant<|channel|>final<|message|>Ahoy!<|end|>"
            "<|start|>user<|message|>Bye<|end|><|start|>assistant⟦<|channel|>final<|message|>Fair winds.<|return|>⟧"
        ),
    ],
    "Phi-4": [
        (
            "<|im_start|>user<|im_sep|>Who are you<|im_end|><|im_start|>assistant<|im_sep|>⟦Ahoy!<|im_end|>⟧"
            "<|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>⟦Fair winds.<|im_end|>⟧"
        )
    ],
    "Vicuna": ["<s>USER: Who are you ASSISTANT:⟦ Ahoy!</s>⟧USER: Bye ASSISTANT:⟦ Fair winds.</s>⟧"],
    "no end": [
        "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n⟦Ahoy!<|im_end|></s>⟧",
        (
            "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\nAhoy!<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦Fair winds.<|im_end|></s>⟧"
        ),
    ],
    "no template": [
        "### User:\nWho are you\n\n### Assistant:\n⟦Ahoy!</s>⟧\n\n### User:\nBye\n\n### Assistant:\n⟦Fair winds.</s>⟧"
    ],
    "GLM-4": ["<s><|user|>\nWho are you<|assistant|>⟦\nAhoy!<|user|>⟧\nBye<|assistant|>⟦\nFair winds.</s>⟧"],
}
"""What each family's template makes of `LONGER`, and what of it is learned; where it is two texts, the first is all of
`BRIEF`."""


@functools.cache
def encoder_of(name: str, *, trims: bool = False, joins: bool = False) -> Encoder:
    """One encoder a family: making its tokenizer takes a while."""
    return templates.encoder({**FAMILIES, "GLM-4": GLM4}[name], trims=trims, joins=joins)


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("name", BY_HAND)
def test_masks_equal_those_written_by_hand(*, name: str, trims: bool) -> None:
    """Token by token, and every answer is counted, with its end."""
    encoder = encoder_of(name, trims=trims)
    (encoded,) = encoder.encode_all([talk(*LONGER)])
    assert [marked(encoder, one.example) for one in encoded] == BY_HAND[name]
    for one, text in zip(encoded, BY_HAND[name], strict=True):
        assert (one.example.input_ids.tolist(), one.example.labels.tolist()) == tokens(encoder, text)
    assert sum(one.answers for one in encoded) == sum(one.learned_answers for one in encoded) == 2
    assert sum(one.unended_answers for one in encoded) == 0


@pytest.mark.parametrize("name", BY_HAND)
def test_a_conversation_of_one_question_is_one_example(name: str) -> None:
    """The beginning of the longer one."""
    encoder = encoder_of(name)
    ends = {"GLM-4": "\nAhoy!</s>⟧"}
    wanted = BY_HAND[name][0].partition("⟧")[0] + "⟧"
    wanted = wanted if name not in ends else wanted.partition("⟦")[0] + "⟦" + ends[name]
    assert marked(encoder, encoder.encode(talk(*BRIEF))) == wanted


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOLS = (
    Message(role="system", content="Be brief."),
    Message(role=USER, content="Hi"),
    Message(role=ASSISTANT, content="Ahoy!"),
    Message(role=USER, content="Weather?"),
    Message(role=ASSISTANT, content="", extra={"tool_calls": [CALL], "reasoning_content": "Ask."}),
    Message(role="tool", content="21"),
    Message(role=ASSISTANT, content="Fine.", extra={"reasoning_content": "Warm."}),
)


@pytest.mark.parametrize(("name", "opened"), [("Qwen3", "⟦<think>\n"), ("Thinking", "<think>\n⟦")])
def test_thoughts_and_tool_calls_are_learned_where_the_template_shows_them(name: str, opened: str) -> None:
    """The turns after one question keep their thoughts and are learned from one text; the answer before it has its
    own."""
    encoder = encoder_of(name)
    (encoded,) = encoder.encode_all([talk(*TOOLS, tools=[WEATHER])])
    tool = '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}'
    head = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>system\n{tool}\n<|im_end|>\n"
    head += "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>'
    assert [marked(encoder, one.example) for one in encoded] == [
        f"{head}{opened}\n</think>\n\nAhoy!<|im_end|>⟧",
        (
            f"{head}Ahoy!<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
            f"<|im_start|>assistant\n{opened}Ask.\n</think>\n\n{call}⟧\n"
            "<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n"
            f"<|im_start|>assistant\n{opened}Warm.\n</think>\n\nFine.<|im_end|>⟧"
        ),
    ]
    assert [one.learned_answers for one in encoded] == [1, 2]


def test_a_thought_of_gpt_oss_is_learned_with_its_answer() -> None:
    """Earlier turns have none."""
    encoder = encoder_of("gpt-oss")
    turns = [
        Message(role=role, content=content, extra={"thinking": content.lower()} if role == ASSISTANT else {})
        for role, content in LONGER
    ]
    (encoded,) = encoder.encode_all([talk(*turns)])
    assert [marked(encoder, one.example).partition("⟦")[2] for one in encoded] == [
        f"<|channel|>analysis<|message|>{said.lower()}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{said}<|return|>⟧"
        for said in ("Ahoy!", "Fair winds.")
    ]


def test_an_empty_thought_that_the_generation_prompt_writes_is_not_learned() -> None:
    """`enable_thinking: false`; where the data has a thought after all, it is learned instead."""
    template = "{% set enable_thinking = false %}" + templates.QWEN3
    encoder = templates.encoder(Family(template=template, eos="<|im_end|>", after="<|im_end|>"))
    asked = "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n"
    assert marked(encoder, encoder.encode(talk(*BRIEF))) == f"{asked}<think>\n\n</think>\n\n⟦Ahoy!<|im_end|>⟧"
    thoughtful = Message(role=ASSISTANT, content="Ahoy!", extra={"reasoning_content": "Hm."})
    assert marked(encoder, encoder.encode(talk(BRIEF[0], thoughtful))) == (
        f"{asked}⟦<think>\nHm.\n</think>\n\nAhoy!<|im_end|>⟧"
    )


@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "Mistral"])
def test_an_answer_that_begins_its_conversation_is_learned_without_its_heading(name: str) -> None:
    """There is no prompt before it, and yet no model generates the heading."""
    encoder = encoder_of(name)
    (encoded,) = encoder.encode_all([talk((ASSISTANT, "Ahoy!"), *LONGER[2:])])
    learned = [span for one in encoded for span in re.findall("⟦(.*?)⟧", marked(encoder, one.example), re.DOTALL)]
    ends = {"GLM-4": ["\nAhoy!<|user|>", "\nFair winds.</s>"]}
    family = FAMILIES.get(name, GLM4)
    assert learned == ends.get(name, [family.said("Ahoy!"), family.said("Fair winds.")])


def test_a_thought_that_begins_its_conversation_is_learned_from_its_first_heading_on() -> None:
    """The second one stands behind the thought, and the model writes it."""
    encoder = encoder_of("gpt-oss")
    answer = Message(role=ASSISTANT, content="Ahoy!", extra={"thinking": "Hm."})
    assert marked(encoder, encoder.encode(talk(answer))) == (
        "<|start|>assistant⟦<|channel|>analysis<|message|>Hm.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Ahoy!<|return|>⟧"
    )


def test_marks_are_those_of_the_whole_and_not_of_an_answer_that_needs_a_text_of_its_own() -> None:
    """There it stands elsewhere."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ '<think></think>' if loop.last }}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    whole = templates.encoder(Family(template=template, eos="<|im_end|>", after="<|im_end|>"))
    assert re.findall("⟦(.*?)⟧", marked(whole, whole.encode(talk(*LONGER)))) == [
        "Ahoy!<|im_end|>",
        "<think></think>Fair winds.<|im_end|>",
    ]
    unended = templates.encoder(Family(template=template, eos="</s>", after="</s>"))
    (encoded,) = unended.encode_all([talk(*LONGER)])
    assert [marked(unended, one.example).partition("⟦")[2] for one in encoded] == [
        "<think></think>Ahoy!<|im_end|></s>⟧",
        "<think></think>Fair winds.<|im_end|></s>⟧",
    ]


def test_a_template_that_no_answer_follows_is_refused() -> None:
    """The generation prompt says something that no answer has; `lossOn: All`, as advised, needs no boundary."""
    template = FAMILIES["ChatML"].template
    assert template is not None
    odd = template.replace("assistant\n{% endif", "assistant\nNow answer:{% endif")
    family = Family(template=odd, eos="<|im_end|>", after="<|im_end|>")
    with pytest.raises(DatasetError, match=r"^x: .* does not let an answer follow its prompt.* training\.lossOn: All"):
        templates.encoder(family).encode(talk(*BRIEF))
    encoder = templates.encoder(family, loss_on=LossOn.ALL)
    (encoded,) = encoder.encode_all([talk(*LONGER)])[0]
    assert "~" not in marked(encoder, encoded.example).strip("⟦⟧")
    assert (encoded.answers, encoded.learned_answers, encoded.unended_answers) == (2, 2, 0)


def test_answers_that_are_cut_off_or_empty_are_counted() -> None:
    """One whose beginning does not fit is not learned, one whose end does not fit is learned without its end."""
    whole = encoder_of("ChatML")
    full = whole.encode(talk(*LONGER)).length

    def counts(longest: int, *turns: tuple[str, str]) -> tuple[int, int, int]:
        (one,) = templates.encoder(FAMILIES["ChatML"], longest=longest).encode_all([talk(*turns)])[0]
        return one.answers, one.learned_answers, one.unended_answers

    assert counts(full, *LONGER) == (2, 2, 0)
    assert counts(full - 1, *LONGER) == (2, 2, 1)
    said = len(whole.tokenizer("Fair winds.<|im_end|>")["input_ids"])
    assert counts(full - said + 1, *LONGER) == (2, 2, 1)
    assert counts(full - said, *LONGER) == (2, 1, 0)
    assert counts(2048, (USER, "Hi"), (ASSISTANT, " "), *LONGER) == (3, 2, 0)


CONTENTS = st.text(max_size=12) | st.sampled_from(
    [
        *("", " ", "\n", "\na", "\n\n\nb", "a\n\n", "  b", "\u3000a\u3000", "Ahoy, captain!", "x" * 300),
        *("é🙂", "e\u0301", "👩\u200d👩\u200d👧", "שלום\u202e", "\ufeffa", "a\u2028b", "\r\n\tx", "\x00", "\U0010ffff"),
        *("{{ bos_token }}", "{% generation %}", "### Assistant:\n", "### User:\nHi", "assistant", "ASSISTANT: "),
    ]
)
"""Blanks of every kind, characters of several code points, directions and planes, and what looks like a template."""


@st.composite
def conversations(draw: st.DrawFn, family: Family) -> Conversation:
    """Turns in any order, or in turns where the template asks for it; the last one is an answer."""
    messages = []
    count = draw(st.integers(1, 6))
    for turn in range(count):
        role = (
            (USER, ASSISTANT)[turn % 2]
            if family.alternates
            else draw(st.sampled_from((*family.roles, USER, ASSISTANT)))
        )
        messages.append(Message(role=role, content=draw(CONTENTS), learned=role != ASSISTANT or draw(st.booleans())))
    if family.alternates and count % 2 == 0:
        messages.append(Message(role=USER, content=draw(CONTENTS)))
    last = draw(CONTENTS.filter(str.strip))
    return Conversation(where="x", messages=(*messages, Message(role=ASSISTANT, content=last)))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_exactly_the_answers_are_learned_however_turns_are_mixed(*, name: str, data: st.DataObject) -> None:
    """Each once, with its end, behind the very text and tokens that inference shows; nothing else is."""
    family, encoder = FAMILIES[name], encoder_of(name, joins=data.draw(st.booleans()))
    assert_exactly_the_answers_are_learned(encoder, family, data.draw(conversations(family)))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_limit_cuts_an_example_and_changes_nothing_of_it(*, name: str, data: st.DataObject) -> None:
    """Wherever it falls: what is left is the beginning, and what is gone is counted."""
    whole = encoder_of(name, joins=True)
    chat = data.draw(conversations(FAMILIES[name]))
    (encoded,) = whole.encode_all([chat])
    limit = data.draw(st.integers(1, max(one.example.length for one in encoded) + 1))
    (cut,) = Encoder(whole.tokenizer, LossOn.COMPLETION, limit, tuple(whole.stop_ids)).encode_all([chat])
    for before, after in zip(encoded, cut, strict=True):
        ids, labels = before.example.input_ids, before.example.labels
        assert after.example.input_ids.tolist() == ids[:limit].tolist()
        assert after.example.labels.tolist() == labels[:limit].tolist()
        assert after.example.truncated == (len(ids) > limit)
        assert after.cut_tokens == max(0, len(ids) - limit)
        assert after.cut_targets == int(np.count_nonzero(labels[limit:] != IGNORED))
        kept = [(start, end) for start, end in bounds(before.example) if start < limit]
        assert after.answers == before.answers
        assert after.learned_answers == len(kept)
        assert after.unended_answers == sum(end > limit for _, end in kept)
