"""Samples to token ids and labels: the chat template, the end-of-turn token, the longest length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_trainer.contract.config import LossOn
from lora_trainer.data.boundaries import Boundaries, Tokens
from lora_trainer.data.chat import Renderer, Text
from lora_trainer.data.formats import Sample

IGNORED = -100
"""Label of a position whose token is not learned (the `ignore_index` of PyTorch's cross-entropy)."""


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
class Encoded:
    """An example and what did not fit into it: tokens, and those of them that would have been learned.

    `apart` is whether prompt and answer were not tokenized in one piece.
    """

    example: Example
    cut_tokens: int
    cut_targets: int
    apart: bool = False


class Encoder:
    """Turns samples into examples with one tokenizer; `has_template` is whether the model brought a chat template."""

    def __init__(self, tokenizer: Any, loss_on: LossOn, max_length: int, stop_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.loss_on = loss_on
        self.max_length = max_length
        self.stop_ids = frozenset(stop_ids)
        self.starts_with_bos = _starts_with_bos(tokenizer)
        self._boundaries = Boundaries(tokenizer)
        self._renderer = Renderer(tokenizer, learn_all=loss_on is LossOn.ALL, starts_with_bos=self.starts_with_bos)
        self.has_template = self._renderer.has_template
        self.template = self._renderer.template

    def encode(self, sample: Sample) -> Example:
        """The example of a sample, cut at the end to the longest length. Raises `DatasetError`."""
        return self.encode_all([sample])[0].example

    def encode_all(self, samples: Sequence[Sample]) -> list[Encoded]:
        """The same for many samples, in several threads. Raises `DatasetError` for the first that cannot be encoded."""
        texts = self._renderer.render(samples)
        found = self._boundaries.tokenize(texts)
        return [self._encoded(text, tokens) for text, tokens in zip(texts, found, strict=True)]

    def learns_to_stop(self, example: Example) -> bool:
        """Whether the last token is learned and ends a turn."""
        return int(example.labels[-1]) in self.stop_ids

    def _encoded(self, text: Text, tokens: Tokens) -> Encoded:
        ids, learned = tokens.ids, tokens.learned
        before = [self.tokenizer.bos_token_id] if not text.templated and self.starts_with_bos else []
        # Without an end-of-sequence token from the template one is added, so that the model learns to stop.
        eos = self.tokenizer.eos_token_id
        after = [eos] if len(ids) and int(ids[-1]) not in self.stop_ids and eos is not None else []
        if before or after:
            ids = np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])
            learned = np.concatenate([np.zeros(len(before), np.bool_), learned, np.ones(len(after), np.bool_)])
        if self.loss_on is LossOn.ALL:
            learned = np.ones(len(ids), np.bool_)
        keep = self.max_length
        example = Example(
            input_ids=ids[:keep], labels=np.where(learned[:keep], ids[:keep], IGNORED), truncated=len(ids) > keep
        )
        return Encoded(
            example=example,
            cut_tokens=len(ids) - example.length,
            cut_targets=int(np.count_nonzero(learned[keep:])),
            apart=tokens.apart,
        )


def _starts_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def stop_token_ids(tokenizer: Any, generation_eos: Sequence[int]) -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's and the generation configuration's end-of-sequence tokens."""
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return tuple(dict.fromkeys((*own, *generation_eos)))
