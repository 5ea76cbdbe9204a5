"""Each answer after the very tokens that inference makes of its prompt, for tokenizers of several kinds."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.trainer import tiny
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hub.model import cache_root, ensure_model
from lora_trainer.data.assistant_spans import Text
from lora_trainer.data.completion_mask import CompletionTokenizer, Tokens
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import open_folder

MARK = "<|im_end|>"
CORPUS = ["Where is my parcel?\n\nHere  it is, 12,500 times.", "It's a naïve e\u0301tude\t\n", *tiny.QUESTIONS]


def fast(tokenizer: Tokenizer, kind: Any) -> Any:
    """A tokenizer trained on a few sentences, with an end-of-turn token."""
    trainer = kind(vocab_size=400, special_tokens=["<unk>", MARK], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(MARK, normalized=False, special=True)])
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=tokenizer, eos_token=MARK)


@cache
def smollm2() -> Any:
    """The real one of SmolLM2: bytes, digits alone, GPT-2's words."""
    return load_encoder(open_folder(ensure_model(cache_root())), LossOn.COMPLETION, 4096).tokenizer


@cache
def qwen_like() -> Any:
    """Bytes behind the pattern of GPT-4 and Qwen, which takes blanks and line ends together, and NFC."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"'s|'t|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer
    return fast(tokenizer, lambda **rest: trainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **rest))


@cache
def llama_like() -> Any:
    """Pieces with a blank before whatever comes first, as of Llama 2 and Mistral; what is unknown becomes bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer: Any = trainers.BpeTrainer
    made = fast(tokenizer, lambda **rest: trainer(limit_alphabet=40, **rest))
    document = json.loads(made.backend_tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=Tokenizer.from_str(json.dumps(document)), eos_token=MARK)


@cache
def poor() -> Any:
    """What it has no token for becomes `<unk>`, which is a special token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer: Any = trainers.BpeTrainer
    return fast(tokenizer, lambda **rest: trainer(limit_alphabet=20, **rest))


KINDS: list[Callable[[], Any]] = [smollm2, qwen_like, llama_like, poor]
TEMPTING = st.sampled_from(
    [
        "\n",
        "\n\n",
        " ",
        "  ",
        "\t",
        "\r\n",
        "a",
        "parc",
        "el",
        "'",
        "'s",
        "1",
        "250",
        ".",
        ",",
        "é",
        "e",
        "\u0301",
        "日",
    ]
)
TEXTS = st.one_of(
    st.lists(TEMPTING, max_size=8).map("".join),
    st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc", "Co", "Cn"])),
)


def alone(tokenizer: Any, text: str) -> list[int]:
    """The tokens at inference."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def spans(tokens: Tokens) -> list[tuple[int, int]]:
    """Where what is learned begins and ends."""
    learned = [False, *tokens.completion_mask.tolist(), False]
    changes = [i for i in range(1, len(learned)) if learned[i] != learned[i - 1]]
    return [(start - 1, end - 1) for start, end in zip(changes[::2], changes[1::2], strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(prompt=TEXTS, answer=TEXTS.filter(bool))
@example(prompt="Q?\n\n", answer="A")
@example(prompt="parc", answer="el")
@example(prompt="e", answer="\u0301tude")
@example(prompt="", answer="A")
@example(prompt="\n", answer="\n")
def test_an_answer_follows_the_tokens_of_its_prompt(kind: Callable[[], Any], prompt: str, answer: str) -> None:
    """With nothing between them that keeps them apart, and nothing lost on either side."""
    tokenizer = kind()
    text = Text(text=prompt + answer, assistant_spans=((len(prompt), len(prompt + answer)),), templated=False)
    (tokens,) = CompletionTokenizer(tokenizer).tokenize([text])
    ids = tokens.ids.tolist()
    start = len(alone(tokenizer, prompt))
    assert ids[:start] == alone(tokenizer, prompt)
    assert tokens.completion_mask.tolist() == [False] * start + [True] * (len(ids) - start)
    assert tokens.apart == (alone(tokenizer, prompt + answer) != ids)
    if kind is not poor:
        said = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert normalize("NFC", said) == normalize("NFC", prompt + answer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("marks", [("", MARK), ("\n", "\n\n"), (MARK, MARK)])
@settings(deadline=None)
@given(turns=st.lists(st.tuples(TEXTS.filter(bool), TEXTS.filter(bool)), min_size=1, max_size=3))
def test_every_answer_of_several_follows_the_tokens_of_its_prompt(
    kind: Callable[[], Any], marks: tuple[str, str], turns: list[tuple[str, str]]
) -> None:
    """Unless the earlier answer has other tokens as a part of a prompt than it had as an answer; then these stay."""
    tokenizer = kind()
    text, learned = "", []
    for question, answer in turns:
        text += question + marks[0]
        learned.append((len(text), len(text) + len(answer + marks[1].rstrip())))
        text += answer + marks[1]
    (tokens,) = CompletionTokenizer(tokenizer).tokenize(
        [Text(text=text, assistant_spans=tuple(learned), templated=True)]
    )
    ids = tokens.ids.tolist()
    said: list[int] = []
    for (place, _), (start, end) in zip(learned, spans(tokens), strict=True):
        prompt = alone(tokenizer, text[:place])
        if prompt[: len(said)] != said:
            assert tokens.apart
            break
        assert ids[:start] == prompt
        said = ids[:end]


def test_what_two_texts_share_does_not_join_them() -> None:
    """Texts are tokenized many at a time, and their pieces together."""
    texts = [
        Text(text=text, assistant_spans=((place, len(text)),), templated=False)
        for text, place in (("Q?\n\nA", 4), ("Q?\n\n\nB", 5), (f"x{MARK}y\n\nC", len(MARK) + 4), ("Q?\n\nA", 4))
    ]
    completion_tokenizer = CompletionTokenizer(smollm2())
    together = completion_tokenizer.tokenize(texts)
    for text, tokens in zip(texts, together, strict=True):
        (single,) = completion_tokenizer.tokenize([text])
        assert tokens.ids.tolist() == single.ids.tolist()
        assert tokens.apart
