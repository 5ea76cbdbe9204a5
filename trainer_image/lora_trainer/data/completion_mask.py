"""Texts to token ids in which each answer follows the very tokens that inference makes of its prompt.

The tokens of a prompt alone need not be the first ones of prompt and answer, even where no token crosses the boundary:
GPT-2's makes two tokens of "\\n\\n" before a word, and one at the end of a text.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.assistant_spans import Text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """Token ids of a text, and whether each is learned; `apart` is whether it was not tokenized in one piece."""

    ids: NDArray[np.int64]
    completion_mask: NDArray[np.bool_]
    apart: bool


@dataclass(frozen=True, slots=True)
class _Anchor:
    """A place in a text: the character at which a special token begins, and how many tokens there are before it."""

    character: int = 0
    token: int = 0


class CompletionTokenizer:
    """Tokenizes texts for one tokenizer.

    A text is tokenized whole where that gives each answer's prompt the tokens that it has alone. Else the prompt is
    tokenized alone and the answer after it. Where a later prompt holds an earlier answer that as a part of it has other
    tokens than as an answer, no sequence of tokens serves both: the answer's stay, and what follows is tokenized alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer) if tokenizer.is_fast else {}
        self._contexts = self._choose_contexts()

    def tokenize(self, texts: Sequence[Text]) -> list[Tokens]:
        """The tokens of each text, without any that the tokenizer puts before or behind."""
        if not self._tokenizer.is_fast:
            return [self._apart(text) for text in texts]
        encodings = self._batch([text.text for text in texts])
        ids = [encoding.ids for encoding in encodings]
        anchors = [self._anchors(*found) for found in zip(texts, encodings, ids, strict=True)]
        # The chat template ends most prompts alike, so that they share the text behind their last special token.
        pieces = {
            text.text[anchor.character : place]
            for text, found in zip(texts, anchors, strict=True)
            for place, anchor in found.items()
        }
        alone = self._alone(pieces)
        return [self._tokens(*found, alone) for found in zip(texts, ids, anchors, strict=True)]

    def _tokens(self, text: Text, ids: list[int], anchors: dict[int, _Anchor], alone: dict[str, list[int]]) -> Tokens:
        counts = {0: 0, len(text.text): len(ids)}
        for place, anchor in anchors.items():
            piece = alone[text.text[anchor.character : place]]
            end = anchor.token + len(piece)
            if ids[anchor.token : end] != piece:
                return self._apart(text)
            counts[place] = end
        completion_mask = np.zeros(len(ids), np.bool_)
        for start, end in text.assistant_spans:
            completion_mask[counts[start] : counts[end]] = True
        return Tokens(ids=np.array(ids, np.int64), completion_mask=completion_mask, apart=False)

    def _anchors(self, text: Text, encoding: Any, ids: list[int]) -> dict[int, _Anchor]:
        """For each place within the text where an answer begins or ends, the last special token before it.

        Special tokens are cut out of a text before anything else is done, and what lies between them is tokenized for
        itself: what follows the place changes no token before that one.
        """
        places = [place for span in text.assistant_spans for place in span if 0 < place < len(text.text)]
        if not places:
            return {}
        special = [token for token, id_ in enumerate(ids) if id_ in self._special]
        # Of a text that no token stands for, models make a special token, too, which is then none.
        spans = [(token, *encoding.token_to_chars(token)) for token in special]
        spans = [
            (token, start, end)
            for token, start, end in spans
            if text.text[start:end].strip() == self._special[ids[token]]
        ]
        found = {}
        for place in places:
            before = bisect_right(spans, place, key=lambda span: span[2]) - 1
            found[place] = _Anchor(spans[before][1], spans[before][0]) if before >= 0 else _Anchor()
        return found

    def _apart(self, text: Text) -> Tokens:
        ids: list[int] = []
        completion_mask: list[bool] = []
        position = 0
        for start, end in text.assistant_spans:
            prompt = self._ids(text.text[:start])
            goes_on = prompt[: len(ids)] == ids
            prompt = prompt[len(ids) :] if goes_on else self._following(text.text[position:start])
            answer = self._following(text.text[start:end]) if start else self._ids(text.text[:end])
            ids += prompt + answer
            completion_mask += [False] * len(prompt) + [True] * len(answer)
            position = end
        rest = self._following(text.text[position:])
        return Tokens(
            ids=np.array(ids + rest, np.int64),
            completion_mask=np.array(completion_mask + [False] * len(rest), np.bool_),
            apart=True,
        )

    def _following(self, piece: str) -> list[int]:
        """The tokens of a text that is not the beginning of another one."""
        if not piece:
            return []
        for context in self._contexts:
            before, together = self._ids(context), self._ids(context + piece)
            if together[: len(before)] == before:
                return together[len(before) :]
        return self._ids(piece)

    def _choose_contexts(self) -> tuple[str, ...]:
        """What to tokenize a piece behind: some tokenizers put a blank before whatever comes first."""
        line_end, letter, both = (self._ids(text) for text in ("\n", "a", "\na"))
        # A piece that begins with a line's end may become one token with the context's.
        return ("\n", "a") if both[: len(line_end)] == line_end and both != line_end + letter else ("",)

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int]
        if self._tokenizer.is_fast:
            ids = self._batch([text])[0].ids
        else:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _alone(self, pieces: Iterable[str]) -> dict[str, list[int]]:
        listed = sorted(pieces)
        return {piece: encoding.ids for piece, encoding in zip(listed, self._batch(listed), strict=True)}

    def _batch(self, texts: list[str]) -> list[Any]:
        # The tokenizer's own call would make lists of every token's type, mask and offsets.
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings: list[Any] = backend.encode_batch(texts, add_special_tokens=False)
        return encodings


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids of the tokens that are found in a text as they stand, whatever stands beside them, and their text."""
    found = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {id_: token.content for id_, token in found.items() if not token.normalized and not token.single_word}
