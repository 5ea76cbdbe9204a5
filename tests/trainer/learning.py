"""What has to be learned of a conversation: of each answer what a model generates, behind what inference shows."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tests.trainer.templates import Family

from lora_trainer.data.formats import Conversation
from lora_trainer.data.tokens import IGNORED, Encoded, Encoder, Example


def assert_exactly_the_answers_are_learned(encoder: Encoder, family: Family, chat: Conversation) -> None:
    """Each once, with its end, behind the very text and tokens that inference shows; nothing else is."""
    (encoded,) = encoder.encode_all([chat])
    wanted = answers(encoder, family, chat)
    found = [span for one in encoded for span in spans(encoder, one.example)]
    assert Counter(said for _, said in found) == Counter(said for _, said in wanted)
    assert {(before, said) for before, said in wanted if before is not None} <= set(found)
    assert sum(one.learned_answers for one in encoded) == len(wanted)
    assert sum(one.unended_answers for one in encoded) == 0
    for one in encoded:
        _assert_tokens_of_inference(encoder, one)


def answers(encoder: Encoder, family: Family, chat: Conversation) -> list[tuple[str | None, str]]:
    """What inference shows before each answer, and what a model generates that answers so."""
    wanted = []
    for turn, message in enumerate(chat.messages):
        if message.is_answer:
            # Behind another answer the template may write that one differently than at the end of a prompt.
            asked = turn > 0 and chat.messages[turn - 1].role != "assistant"
            before = _prompt(encoder, chat, turn).removesuffix(family.cut) if asked else None
            wanted.append((before, family.said(message.content)))
    return wanted


def _assert_tokens_of_inference(encoder: Encoder, encoded: Encoded) -> None:
    """Each prompt has the tokens that it has alone; unless an earlier answer has others in it than as an answer, which
    then keeps its own."""
    ids = encoded.example.input_ids.tolist()
    said: list[int] = []
    for start, end in bounds(encoded.example):
        prompt = _ids(encoder, _text(encoder, ids[:start]))
        if prompt[: len(said)] != said:
            assert encoded.apart
            break
        assert ids[:start] == prompt
        said = ids[:end]
    if not encoded.apart:
        assert ids == _ids(encoder, _text(encoder, ids))


def bounds(example: Example) -> list[tuple[int, int]]:
    """The first token of each stretch that is learned, and the one after its last."""
    changes = np.flatnonzero(np.diff(example.labels != IGNORED, prepend=False, append=False))
    return [(int(start), int(end)) for start, end in changes.reshape(-1, 2)]


def spans(encoder: Encoder, example: Example) -> list[tuple[str, str]]:
    """What is learned in an example, each stretch with all that stands before it."""
    ids = example.input_ids.tolist()
    return [(_text(encoder, ids[:start]), _text(encoder, ids[start:end])) for start, end in bounds(example)]


def _prompt(encoder: Encoder, chat: Conversation, turn: int) -> str:
    earlier = [message.for_template() for message in chat.messages[:turn]]
    render: Any = functools.partial(encoder.tokenizer.apply_chat_template, earlier, chat_template=encoder.template)
    return str(render(tokenize=False, add_generation_prompt=True))


def _text(encoder: Encoder, ids: Sequence[int]) -> str:
    return str(encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _ids(encoder: Encoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
