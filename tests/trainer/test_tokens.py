"""Which tokens are learned: the exact boundary, the end of a turn, truncation."""

from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny

from lora_trainer.data.formats import Conversation, PlainText
from lora_trainer.data.messages import Message
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import IGNORED, Encoder, Example, stop_token_ids
from lora_trainer.errors import DatasetError
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import Base, open_folder


def talk(*turns: tuple[str, str], verbatim: bool = False) -> Conversation:
    """A conversation of (role, content) pairs."""
    return Conversation(where="x", messages=tuple(Message(role=r, content=c) for r, c in turns), verbatim=verbatim)


def learned(encoder: Encoder, example: Example) -> str:
    """The target tokens as text, unlearned stretches as `~`."""
    text = ""
    for label in example.labels.tolist():
        if label != IGNORED:
            text += encoder.tokenizer.decode([label])
        elif not text.endswith("~"):
            text += "~"
    return text


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny model without a chat template."""
    return open_folder(tiny.make_model(tmp_path_factory.mktemp("models") / "plain", chat_template=None))


def test_only_the_answers_of_a_conversation_are_learned_each_with_its_end_of_turn(encoder: Encoder) -> None:
    """System and user turns and the template's headings are not; the newline after an end of turn is not."""
    example = encoder.encode(
        talk(
            ("system", "Be brief."),
            ("user", "Hi"),
            ("assistant", "Ahoy!"),
            ("user", "Bye"),
            ("assistant", "Fair winds."),
        )
    )
    assert learned(encoder, example) == "~Ahoy!<|im_end|>~Fair winds.<|im_end|>"
    assert example.labels[-1] in encoder.stop_ids


def test_the_prompt_has_the_very_tokens_of_inference(encoder: Encoder) -> None:
    """The unlearned beginning equals the tokenized template with the generation prompt."""
    example = encoder.encode(talk(("user", "Where is my parcel?"), ("assistant", "Here.")))
    text = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is my parcel?"}], tokenize=False, add_generation_prompt=True
    )
    prompt = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    boundary = next(i for i, label in enumerate(example.labels) if label != IGNORED)
    assert list(example.input_ids[:boundary]) == prompt


def test_the_end_token_is_learned_although_it_may_be_the_pad_token(tiny_base: Base) -> None:
    """Masking by token id would teach the model never to stop."""
    encoder = load_encoder(tiny_base, LossOn.COMPLETION, 256)
    encoder.tokenizer.pad_token = encoder.tokenizer.eos_token
    example = encoder.encode(talk(("user", "Hi"), ("assistant", "Ahoy!")))
    assert example.labels[-1] == encoder.tokenizer.eos_token_id


def test_a_base_model_reads_prompt_and_completion_as_they_stand(plain_base: Base) -> None:
    """Without a template: no headings, and an end-of-sequence token after the answer."""
    encoder = load_encoder(plain_base, LossOn.COMPLETION, 256)
    example = encoder.encode(talk(("user", "2 + 2 ="), ("assistant", " 4"), verbatim=True))
    assert encoder.tokenizer.decode(example.input_ids) == "2 + 2 = 4<|im_end|>"
    assert learned(encoder, example) == "~ 4<|im_end|>"


def test_a_token_across_the_boundary_is_split_where_inference_would_split_it(plain_base: Base) -> None:
    """The prompt "parc" + "el" has the tokens of "parc" alone, not the one token of "parcel"."""
    encoder = load_encoder(plain_base, LossOn.COMPLETION, 256)
    assert len(encoder.tokenizer(" parcel", add_special_tokens=False)["input_ids"]) == 1
    example = encoder.encode(talk(("user", " parc"), ("assistant", "el"), verbatim=True))
    prompt = encoder.tokenizer(" parc", add_special_tokens=False)["input_ids"]
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert learned(encoder, example) == "~el<|im_end|>"


def test_a_base_model_gets_the_documented_headings_for_conversations(plain_base: Base) -> None:
    """The fallback template, with the end-of-sequence token after each answer."""
    encoder = load_encoder(plain_base, LossOn.COMPLETION, 256)
    example = encoder.encode(talk(("user", "Hi"), ("assistant", "Ahoy!")))
    assert encoder.tokenizer.decode(example.input_ids) == "### User:\nHi\n\n### Assistant:\nAhoy!<|im_end|>"
    assert learned(encoder, example) == "~Ahoy!<|im_end|>"


def test_text_is_learned_whole(encoder: Encoder) -> None:
    """Every token but the first has a prediction."""
    example = encoder.encode(PlainText(where="x", text="Once upon a time"))
    assert learned(encoder, example) == "Once upon a time<|im_end|>"
    assert example.targets == example.length - 1


def test_loss_on_all_learns_the_prompt_too(tiny_base: Base) -> None:
    """`training.lossOn: All`."""
    encoder = load_encoder(tiny_base, LossOn.ALL, 256)
    example = encoder.encode(talk(("user", "Hi"), ("assistant", "Ahoy!")))
    assert example.labels.tolist() == example.input_ids.tolist()


def test_a_long_row_is_cut_at_the_end_and_marked(tiny_base: Base) -> None:
    """A cut answer does not end: nothing is appended to it."""
    whole = load_encoder(tiny_base, LossOn.COMPLETION, 256).encode(PlainText(where="x", text="winds " * 40))
    cut = load_encoder(tiny_base, LossOn.COMPLETION, 16).encode(PlainText(where="x", text="winds " * 40))
    assert cut.truncated
    assert not whole.truncated
    assert cut.input_ids.tolist() == whole.input_ids[:16].tolist()


def test_a_template_that_rewrites_earlier_answers_gives_each_an_example_of_its_own(tmp_path: Path) -> None:
    """Reasoning models drop the thoughts of earlier turns: there these cannot be learned as they were said."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role != 'assistant' else '...' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    base = open_folder(tiny.make_model(tmp_path / "m", chat_template=template))
    encoder = load_encoder(base, LossOn.COMPLETION, 256)
    (found,) = encoder.encode_all(
        [talk(("user", "Hi"), ("assistant", "Ahoy!"), ("user", "Bye"), ("assistant", "Fair winds."))]
    )
    assert [learned(encoder, one.example) for one in found] == ["~Ahoy!<|im_end|>", "~Fair winds.<|im_end|>"]


def test_loss_on_all_learns_a_conversation_whole_whatever_its_template_rewrites(tmp_path: Path) -> None:
    """It needs no boundary."""
    template = tiny.CHATML.replace("assistant\n{% endif", "assistant\nNow answer:{% endif")
    base = open_folder(tiny.make_model(tmp_path / "m", chat_template=template))
    encoder = load_encoder(base, LossOn.ALL, 256)
    example = encoder.encode(talk(("user", "Hi"), ("assistant", "Ahoy!")))
    assert learned(encoder, example) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nAhoy!<|im_end|>"


def test_a_template_that_refuses_a_conversation_is_reported(tmp_path: Path) -> None:
    """As Gemma's does for a system turn."""
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tiny.CHATML
    )
    base = open_folder(tiny.make_model(tmp_path / "m", chat_template=template))
    encoder = load_encoder(base, LossOn.COMPLETION, 256)
    with pytest.raises(DatasetError, match=r"x: the model's chat template refuses .* \(System role not supported\)"):
        encoder.encode(talk(("system", "s"), ("user", "Hi"), ("assistant", "Ahoy!")))


def test_stop_tokens_come_from_tokenizer_and_generation_configuration(encoder: Encoder) -> None:
    """Gemma's end of turn stands only in the latter."""
    tokenizer: Any = encoder.tokenizer
    assert stop_token_ids(tokenizer, (7, tokenizer.eos_token_id)) == (tokenizer.eos_token_id, 7)
