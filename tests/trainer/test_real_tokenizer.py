"""The boundaries of answers with SmolLM2's tokenizer and template, on texts that tempt a token to cross them."""

from functools import cache
from itertools import product

import pytest

from hub.model import cache_root, ensure_model
from lora_trainer.data.formats import Conversation
from lora_trainer.data.messages import Message
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import IGNORED, Encoder
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import open_folder

TEXTS = ("Bern", " Bern ", "\n\nBern\n", "", "12,5 %", "naïve 日本 👩‍👩‍👧 \u2028", "\t\tx", "</s> [INST]", "e" * 300)


@cache
def encoder() -> Encoder:
    """The model's tokenizer."""
    return load_encoder(open_folder(ensure_model(cache_root())), LossOn.COMPLETION, 4096)


@pytest.mark.parametrize(("question", "answer"), [pair for pair in product(TEXTS, TEXTS) if pair[1]])
def test_prompt_and_answer_have_the_tokens_of_inference(question: str, answer: str) -> None:
    """Before each answer the prompt's tokens, then the answer and the end of the turn, and no more.

    One turn where an answer begins with a blank: a later prompt would have it as one token with the line end before it,
    which the answer, when it was given, could not be.
    """
    turns = [("user", question), ("assistant", answer), ("user", answer), ("assistant", question + answer)]
    turns = turns[: 2 if answer[0].isspace() else 4]
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    tokenizer = encoder().tokenizer
    example = encoder().encode(Conversation(where="x", messages=messages))
    ids, labels = example.input_ids.tolist(), example.labels.tolist()
    starts = [i for i in range(1, len(ids)) if labels[i] != IGNORED and labels[i - 1] == IGNORED]
    ends = [i for i in range(1, len(ids) + 1) if labels[i - 1] != IGNORED and (i == len(ids) or labels[i] == IGNORED)]
    for turn, start, end in zip(range(1, len(turns), 2), starts, ends, strict=True):
        prompt = tokenizer.apply_chat_template(
            [message.for_template() for message in messages[:turn]], tokenize=False, add_generation_prompt=True
        )
        assert ids[:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids[start:end]) == f"{messages[turn].content}<|im_end|>"
