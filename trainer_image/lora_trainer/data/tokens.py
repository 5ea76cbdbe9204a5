"""Samples to token ids and labels: the chat template, the end-of-turn token, the longest length."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.assistant_spans import Text
from lora_trainer.data.chat import Renderer
from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.clock import reads_clock
from lora_trainer.data.completion_mask import CompletionTokenizer, Tokens
from lora_trainer.data.formats import Sample
from lora_trainer.plan.families import Positions
from lora_trainer.spec.config import LossOn

IGNORED = -100
"""Label of a position whose token is not learned (the `ignore_index` of PyTorch's cross-entropy)."""


TOKENIZED_AT_ONCE = 2**20
"""Characters, but for a longer text: a fast tokenizer takes about 160 bytes for each while it works on it."""

_SHOWN, _SHOWN_PIECES = 200, 8
"""Characters of each end of a stretch in the log, and stretches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """What is learned at once and never divided over packs, processes and steps: one sequence, or as many as the
    objective compares, one after the other, of these `sizes` (none said for a single one).

    Token ids and, of equal length, labels: the id where the token is learned, else `IGNORED`. Both are int64.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    truncated: bool
    sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, sequences: Sequence["Example"]) -> "Example":
        """Several sequences, to be compared."""
        return cls(
            input_ids=np.concatenate([one.input_ids for one in sequences]),
            labels=np.concatenate([one.labels for one in sequences]),
            truncated=any(one.truncated for one in sequences),
            sizes=tuple(one.length for one in sequences),
        )

    def first(self, tokens: int) -> "Example":
        """Its first tokens, as a single sequence."""
        return replace(self, input_ids=self.input_ids[:tokens], labels=self.labels[:tokens], sizes=())

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each sequence."""
        return self.sizes or (self.length,)

    @property
    def targets(self) -> int:
        """Number of tokens that are learned; the first of a sequence has no prediction and never counts."""
        ends = np.cumsum((0, *self.sizes[:-1]))[1:]
        return sum(int(np.count_nonzero(one[1:] != IGNORED)) for one in np.split(self.labels, ends))

    def room(self, *, packed: bool) -> int:
        """Tokens that it takes of a micro-batch, padding among its own sequences included."""
        return self.length if packed else len(self.lengths) * max(self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An example and what did not fit into it: tokens, and those of them that would have been learned.

    `apart` is whether prompt and answer were not tokenized in one piece.
    Of the `answers` that it was made to learn, those whose beginning was cut off are missing in `learned_answers`, and
    those of the rest whose end-of-turn token is not learned are counted in `unended_answers`.
    """

    example: Example
    cut_tokens: int
    cut_targets: int
    apart: bool = False
    answers: int = 1
    learned_answers: int = 1
    unended_answers: int = 0


Encode = Callable[["Encoder", Sequence[Sample]], list[list[Encoded]]]
"""The examples of each of some samples."""


def one_by_one(encoder: "Encoder", samples: Sequence[Sample]) -> list[list[Encoded]]:
    """Each text that a sample gives is an example."""
    return encoder.encode_texts(samples)


class Encoder:
    """Turns samples into examples with one tokenizer and the `chosen` chat template, if any; `has_template` is whether
    there is one, chosen or the model's own; `template` the text to serve with, where the model's own will not do.
    `digest` is of the files that make tokens of texts; `positions` is what the model has, None where nothing limits
    the length of a row."""

    def __init__(
        self,
        tokenizer: Any,
        loss_on: LossOn,
        max_length: int,
        stop_ids: Sequence[int],
        chosen: Chosen = Chosen(),  # noqa: B008 - frozen
        *,
        encode: Encode = one_by_one,
        digest: str = "",
        positions: Positions | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.positions = positions
        self._digest = digest
        self._encode = encode
        self.loss_on = loss_on
        self.max_length = max_length
        self.stop_ids = frozenset(stop_ids)
        self.starts_with_bos = _starts_with_bos(tokenizer)
        self._completion_tokenizer = CompletionTokenizer(tokenizer)
        self._renderer = Renderer(
            tokenizer,
            learn_all=loss_on is LossOn.ALL,
            starts_with_bos=self.starts_with_bos,
            stops=[str(token) for token in tokenizer.convert_ids_to_tokens(list(stop_ids)) if token],
            chosen=chosen,
        )
        self.has_template = self._renderer.has_template
        self.template = self._renderer.beside
        self.chosen = chosen

    def facts(self) -> dict[str, Any]:
        """What the tokens of a row depend on beside the row, as JSON has it."""
        template = self._template
        return {
            "tokenizer": self._digest,
            "loss_on": self.loss_on.value,
            "examples": self._encode.__qualname__,
            "max_length": self.max_length,
            "stop_ids": sorted(self.stop_ids),
            "template": hashlib.sha256(template.encode(errors="surrogatepass")).hexdigest(),
            "arguments": dict(self.chosen.arguments),
            "date": None if self.day is None else self.day.isoformat(),
        }

    @property
    def day(self) -> date | None:
        """The day that the template may write into rows; None of a template that reads no clock."""
        return self._renderer.clock.day if reads_clock(self._template) else None

    @property
    def _template(self) -> str:
        return str(self._renderer.template or self.tokenizer.chat_template)

    def prompt(self, question: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The tokens of a question to a model as inference shows it, behind earlier questions with their answers.
        Raises what its chat template raises."""
        text = self._renderer.prompt(question, before)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode(self, sample: Sample) -> Example:
        """The example of a sample that gives one, cut at the end to the longest length. Raises `DatasetError`."""
        (encoded,) = self.encode_all([sample])[0]
        return encoded.example

    def encode_all(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """The examples of each of many samples, as the objective has them. Raises `DatasetError` for the first that
        cannot be encoded."""
        return self._encode(self, samples)

    def encode_texts(self, samples: Sequence[Sample]) -> list[list[Encoded]]:
        """The texts of each of many samples, an example each, in several threads. Raises `DatasetError`."""
        texts = self._renderer.render(samples)
        found = (
            self._encoded(text, tokens)
            for some in _groups(text for several in texts for text in several)
            for text, tokens in zip(some, self._completion_tokenizer.tokenize(some), strict=True)
        )
        return [list(islice(found, len(several))) for several in texts]

    def show(self, example: Example) -> str:
        """The text of an example in one line of JSON, bounded, with what is learned between >>> and <<<."""
        changes = np.flatnonzero(np.diff(example.labels != IGNORED)) + 1
        pieces = []
        for run in np.split(np.arange(example.length), changes)[:_SHOWN_PIECES]:
            text = self.tokenizer.decode(example.input_ids[run], clean_up_tokenization_spaces=False)
            text = text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} […] {text[-_SHOWN:]}"
            pieces.append(f">>>{text}<<<" if example.labels[run[0]] != IGNORED else text)
        return json.dumps("".join(pieces) + (" […]" if len(changes) >= _SHOWN_PIECES else ""), ensure_ascii=False)

    def warnings(self, first: NDArray[np.int64], with_tools: int) -> list[str]:
        """What of the rows the template does not show as a user would think, by the tokens of the `first` example and
        the number of rows `with_tools`."""
        found = []
        if with_tools and self._renderer.leaves_out_tools:
            found.append(
                f"{with_tools} rows have tools, which the chat template leaves out: the model is not shown them; use "
                "another dataset.chatTemplate, or write them into the system prompt"
            )
        text = self.tokenizer.decode(first, clean_up_tokenization_spaces=False)
        thought = self._renderer.unseen(text) if self.has_template else ""
        if thought:
            switch = "false" if thought.count("<") == 1 else "true"
            remedy = f'dataset.templateArguments: {{enable_thinking: "{switch}"}}'
            remedy = remedy if "enable_thinking" in self._template else "a dataset.chatTemplate without it"
            found.append(
                f"inference begins an answer with {json.dumps(thought)}, and the first row does not: served, the model "
                f"continues a prompt that it was not trained on; train and serve with {remedy}"
            )
        return found

    def _encoded(self, text: Text, tokens: Tokens) -> Encoded:
        ids, completion_mask = tokens.ids, tokens.completion_mask
        begins = not text.templated and self.starts_with_bos
        # Texts that a template wrote before they came here bring the token along.
        brought = begins and len(ids) > 0 and int(ids[0]) == self.tokenizer.bos_token_id
        before = [self.tokenizer.bos_token_id] if begins and not brought else []
        # Without an end-of-sequence token from the template one is added, so that the model learns to stop.
        eos = self.tokenizer.eos_token_id
        after = [eos] if len(ids) and int(ids[-1]) not in self.stop_ids and eos is not None else []
        if before or after:
            ids = np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])
            completion_mask = np.concatenate(
                [np.zeros(len(before), np.bool_), completion_mask, np.ones(len(after), np.bool_)]
            )
        if self.loss_on is LossOn.ALL:
            completion_mask = np.ones(len(ids), np.bool_)
        keep = self.max_length
        example = Example(
            # A view would keep all that was cut off.
            input_ids=ids if len(ids) <= keep else ids[:keep].copy(),
            labels=np.where(completion_mask[:keep], ids[:keep], IGNORED),
            truncated=len(ids) > keep,
        )
        runs = _runs(completion_mask)
        begun = [(start, end) for start, end in runs if start < keep]
        unended = [end for _, end in begun if end > keep or int(ids[end - 1]) not in self.stop_ids]
        return Encoded(
            example=example,
            cut_tokens=len(ids) - example.length,
            cut_targets=int(np.count_nonzero(completion_mask[keep:])),
            apart=tokens.apart,
            answers=text.answers + text.empty,
            learned_answers=text.answers - len(runs) + len(begun),
            unended_answers=len(unended),
        )


def _groups(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Texts that are tokenized at once, in order. A conversation may become many of them, each as long as it is."""
    group: list[Text] = []
    characters = 0
    for text in texts:
        if group and characters + len(text.text) > TOKENIZED_AT_ONCE:
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text.text)
    if group:
        yield group


def _runs(completion_mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The learned stretches, by their first token and the one after their last."""
    if not len(completion_mask):
        return []
    # As lists: the functions of numpy cost more than a row has tokens.
    changes = (np.flatnonzero(completion_mask[1:] != completion_mask[:-1]) + 1).tolist()
    bounds = [*([0] if completion_mask[0] else []), *changes, *([len(completion_mask)] if completion_mask[-1] else [])]
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def _starts_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def stop_token_ids(tokenizer: Any, generation_eos: Sequence[int]) -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's and the generation configuration's end-of-sequence tokens."""
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return tuple(dict.fromkeys((*own, *generation_eos)))
