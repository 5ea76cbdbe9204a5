"""Samples to token ids and labels: the chat template, the boundary between prompt and answer, the end-of-turn token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_trainer.contract.config import LossOn
from lora_trainer.errors import DatasetError
from lora_trainer.formats import Conversation, Message, PlainText, Sample

IGNORED = -100
"""Label of a position whose token is not learned (the `ignore_index` of PyTorch's cross-entropy)."""

FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message.role | capitalize + ':\\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For base models without a chat template: the headings of Stanford Alpaca, one for each role."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """Token ids and, of equal length, labels: the id where the token is learned, else `IGNORED`. Both are int64."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    truncated: bool

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def targets(self) -> int:
        """Number of tokens that are learned; the first of a row has no prediction and never counts."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of text that is learned or not."""

    text: str
    learned: bool


class Encoder:
    """Turns samples into examples with one tokenizer; `has_template` is whether the model brought a chat template."""

    def __init__(self, tokenizer: Any, loss_on: LossOn, max_length: int, stop_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.loss_on = loss_on
        self.max_length = max_length
        self.stop_ids = frozenset(stop_ids)
        self.has_template = bool(tokenizer.chat_template)
        self.template = None if self.has_template else FALLBACK_TEMPLATE
        self.starts_with_bos = _starts_with_bos(tokenizer)

    def encode(self, sample: Sample) -> Example:
        """The example of a sample, cut at the end to the longest length. Raises `DatasetError`."""
        if isinstance(sample, PlainText):
            pieces, templated = [Piece(text=sample.text, learned=True)], False
        elif sample.verbatim and not self.has_template:
            pieces, templated = _verbatim(sample), False
        else:
            pieces, templated = self._render(sample), True
        tokens = self._tokenize(pieces)
        if not templated and self.starts_with_bos:
            tokens.insert(0, (self.tokenizer.bos_token_id, False))
        tokens = self._ended(tokens)
        keep = tokens[: self.max_length]
        learn_all = self.loss_on is LossOn.ALL
        return Example(
            input_ids=np.array([token for token, _ in keep], dtype=np.int64),
            labels=np.array([token if learned or learn_all else IGNORED for token, learned in keep], dtype=np.int64),
            truncated=len(tokens) > self.max_length,
        )

    def learns_to_stop(self, example: Example) -> bool:
        """Whether the last token is learned and ends a turn."""
        return int(example.labels[-1]) in self.stop_ids

    def _render(self, sample: Conversation) -> list[Piece]:
        """Alternate prompt and answer, each answer up to and with its end-of-turn token.

        The prompt of an answer is the template's text for the turns before it with the generation prompt, as at
        inference. Templates that rewrite earlier turns (reasoning models drop old thoughts) leave no common beginning;
        then the last answer alone is learned.
        """
        full = self._apply(sample, sample.messages)
        spans = self._spans(sample, full, range(len(sample.messages)))
        if spans is None:
            spans = self._spans(sample, full, range(len(sample.messages) - 1, len(sample.messages)))
        if spans is None and self.loss_on is LossOn.ALL:
            return [Piece(text=full.rstrip(), learned=True)]
        if spans is None:
            raise DatasetError(
                f"{sample.where}: the model's chat template renders the last answer differently from its prompt, so "
                "the answer's tokens cannot be told apart; use training.lossOn: All or another model"
            )
        pieces, position = [], 0
        for start, end in spans:
            pieces += [Piece(text=full[position:start], learned=False), Piece(text=full[start:end], learned=True)]
            position = end
        return pieces

    def _spans(self, sample: Conversation, full: str, turns: range) -> list[tuple[int, int]] | None:
        spans = []
        for turn in turns:
            if sample.messages[turn].role != "assistant":
                continue
            prompt = self._apply(sample, sample.messages[:turn], generation=True)
            answer = self._apply(sample, sample.messages[: turn + 1])
            if not full.startswith(prompt) or not full.startswith(answer) or len(answer) <= len(prompt):
                return None
            # What the template adds after the end-of-turn token (a newline in ChatML) is never generated.
            spans.append((len(prompt), len(prompt) + len(answer[len(prompt) :].rstrip())))
        return spans

    def _apply(self, sample: Conversation, messages: Sequence[Message], *, generation: bool = False) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if not turns:
            return ""
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, add_generation_prompt=generation
            )
        except Exception as error:  # a template is the model's own program and may raise anything
            raise DatasetError(
                f"{sample.where}: the model's chat template refuses this conversation ({' '.join(str(error).split())})"
            ) from error
        return text

    def _tokenize(self, pieces: Sequence[Piece]) -> list[tuple[int, bool]]:
        """Tokens and whether each is learned.

        The text is tokenized whole where no token crosses a boundary; where one would (an answer that begins with the
        rest of a prompt's last token), each piece is tokenized alone, since at inference the prompt is, too.
        """
        whole = "".join(piece.text for piece in pieces)
        if self.tokenizer.is_fast:
            encoding = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            learned = _aligned(pieces, encoding["offset_mapping"])
            if learned is not None:
                return list(zip(encoding["input_ids"], learned, strict=True))
        return [
            (token, piece.learned)
            for piece in pieces
            if piece.text
            for token in self.tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        ]

    def _ended(self, tokens: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
        """With an end-of-sequence token where the template gives none, so that the model learns to stop."""
        if tokens and tokens[-1][0] not in self.stop_ids and self.tokenizer.eos_token_id is not None:
            return [*tokens, (self.tokenizer.eos_token_id, True)]
        return tokens


def _verbatim(sample: Conversation) -> list[Piece]:
    return [Piece(text=message.content, learned=message.role == "assistant") for message in sample.messages]


def _starts_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _aligned(pieces: Sequence[Piece], offsets: Sequence[tuple[int, int]]) -> list[bool] | None:
    """Whether each token is learned, or None where a token crosses from one piece into the next."""
    ends, position = [], 0
    for piece in pieces:
        position += len(piece.text)
        ends.append(position)
    learned, index = [], 0
    for start, end in offsets:
        while index < len(ends) - 1 and start >= ends[index]:
            index += 1
        if end > ends[index]:
            return None
        learned.append(pieces[index].learned)
    return learned


def stop_token_ids(tokenizer: Any, generation_eos: Sequence[int]) -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's and the generation configuration's end-of-sequence tokens."""
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return tuple(dict.fromkeys((*own, *generation_eos)))


Log = Callable[[str], None]
"""Takes one line for the run's log."""
