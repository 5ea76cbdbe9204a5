"""Where a conversation's answers stand in what a chat template renders, and how many texts it takes to learn them all.

The rules, for each answer:

1. Its prompt is the template's text for the turns before it with the generation prompt: what inference shows. What
   follows the prompt, up to and with the end-of-turn token, is learned, since the model has to generate it.
2. Where the template writes the answer without what its generation prompt ends in, that end is left out of the prompt:
   first blanks, then a thought that the generation prompt opens (`<think>`), or opens and closes at once.
3. An answer that follows neither (none comes before it, or another answer, which the template writes differently at the
   end of a prompt) begins behind the heading that the generation prompt is behind a question; without one of its own,
   where the turn that it goes on with would have ended.
4. Where the template marks what the assistant says (`{% generation %}`), the marks count, without a heading that the
   generation prompt has already written; but not those of an answer with a thought that later turns change.
5. A text holds as many answers as stand in it as they would if nothing came after them. An answer that later turns
   change (templates of reasoning models drop earlier thoughts), or one that is not followed by an end-of-turn token
   there, is learned from a text of its own, which ends with it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""The first character of a stretch, and the one after its last."""

_THOUGHT = re.compile(
    r"(?:<\|?(?:\w+:)?think(?:ing)?\|?>|\[THINK\])\s*(?:(?:</(?:\w+:)?think(?:ing)?>|\[/THINK\])\s*)?\Z"
    r"|<\|channel>thought\s*(?:<channel\|>\s*)?\Z",
    re.IGNORECASE,
)
"""The thought that a generation prompt opens, or opens and closes: DeepSeek, Qwen, Seed, Magistral; Gemma 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What is needed of a conversation. `prompts` and `texts` are, for the turn of each answer, the text before it with
    the generation prompt, empty before the first turn, and the text up to it; `marks` are the template's own in the
    last text, and `heading` is its generation prompt by itself. Answers in `thoughtful` have a thought."""

    prompts: Mapping[int, str]
    texts: Mapping[int, str]
    marks: Mapping[int, Span]
    heading: str
    thoughtful: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text and the stretches of it that are learned.

    `answers` is how many answers these hold; `empty` how many of the sample's are learned nowhere, having no text.
    """

    text: str
    assistant_spans: tuple[Span, ...]
    templated: bool
    answers: int = 1
    empty: int = 0


def place(rendered: Rendered, stops: Sequence[str]) -> list[Text] | None:
    """Texts in which every answer is learned once; `stops` are the texts of the tokens that end a turn.

    None where an answer does not follow its prompt even in a text of its own.
    """
    left = sorted(rendered.texts)
    found: list[Text] = []
    marks = rendered.marks
    while left:
        last = left[-1]
        spans = {turn: _span(rendered, turn, rendered.texts[last], marks.get(turn), stops) for turn in left}
        if spans[last] is None:
            return None
        text = rendered.texts[last]
        here = {
            turn: span
            for turn, span in spans.items()
            if span is not None and (turn == last or _ends_turn(text[: span[1]], stops))
        }
        # What the template adds after the end-of-turn token (a newline in ChatML) is never generated.
        placed = Text(
            text=text[: here[last][1]], assistant_spans=tuple(here.values()), templated=True, answers=len(here)
        )
        found.append(placed)
        left = [turn for turn in left if turn not in here]
        marks = {}
    return found[::-1]


def _span(rendered: Rendered, turn: int, text: str, mark: Span | None, stops: Sequence[str]) -> Span | None:
    """Where the answer of a turn stands in a text, None where it does not as it would without later turns."""
    prompt, alone = rendered.prompts[turn], rendered.texts[turn]
    begin = _begin(prompt, text) if prompt else None
    if begin is None:
        begin = _behind(rendered.heading, prompt, alone)
    if begin is None:
        begin = _going_on(rendered.heading, prompt, alone, stops)
    if mark is not None and not (turn in rendered.thoughtful and not text.startswith(_ended(alone, stops))):
        begin, end = (begin if begin is not None and mark[0] < begin < mark[1] else mark[0]), mark[1]
    elif begin is None:
        return None
    else:
        end = begin + len(_ended(alone[begin:], stops))
        if not text.startswith(alone[:end]):
            return None
    if begin >= end:
        return None
    end = _with_stop(text, begin, end, stops)
    return (begin, end) if begin < end else None


def _begin(prompt: str, text: str) -> int | None:
    """How much of a text is an answer's prompt, by the second of the rules above."""
    return next(
        (len(part) for part in (*_shown(prompt), *map(str.rstrip, _shown(prompt))) if text.startswith(part)), None
    )


def _behind(heading: str, prompt: str, text: str) -> int | None:
    """Where the heading of an answer ends, by the third: in a text without a prompt the first one, else the last of
    those before which the text is most like the end of the prompt, if nothing behind it is as in the prompt."""
    part = next((part for part in _shown(heading) if part.strip() and part in text), None)
    if part is None:
        return None if prompt else 0
    ends = [found.end() for found in re.finditer(re.escape(part), text)]
    # Behind a thought some templates write the heading again (gpt-oss): the prompt tells which one is the first.
    shown = prompt.removesuffix(heading) + part
    end = max(ends, key=lambda end: (_alike(text[:end], shown), end)) if prompt else ends[0]
    return None if prompt.removesuffix(heading).startswith(text[:end]) else end


def _alike(text: str, other: str) -> int:
    """How many characters both end with."""
    pairs = zip(reversed(text), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _going_on(heading: str, prompt: str, text: str, stops: Sequence[str]) -> int | None:
    """Where an answer begins that the template writes into the turn before it: Gemma 4's does, behind the text beside a
    call, whose result it writes before that text."""
    said = prompt.removesuffix(heading).rstrip()
    stop = next((stop for stop in stops if said.endswith(stop)), "")
    begin = len(said) - len(stop)
    return begin if stop and text.startswith(said[:begin]) and not text.startswith(stop, begin) else None


def opened(prompt: str) -> str:
    """The thought that a prompt ends with, opened or opened and closed; empty where it has none."""
    thought = _THOUGHT.search(prompt)
    return thought.group() if thought else ""


def _shown(prompt: str) -> tuple[str, ...]:
    """A prompt, and without the thought that it opens."""
    thought = opened(prompt)
    return (prompt, prompt.removesuffix(thought)) if thought else (prompt,)


def _with_stop(text: str, begin: int, end: int, stops: Sequence[str]) -> int:
    """The end of an answer without what is behind its end-of-turn token, or with that token where it follows at once:
    that of GLM is the beginning of the next turn, and marks may leave it out."""
    trimmed = begin + len(_ended(text[begin:end], stops))
    if _ends_turn(text[begin:trimmed], stops):
        return trimmed
    return next((at + len(stop) for at in (trimmed, end) for stop in stops if text.startswith(stop, at)), trimmed)


def _ended(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the end-of-turn tokens that it ends with, blanks between them or not: Phi-3's template
    ends a turn with one and the whole with another, which no model would generate."""
    ended = rest = text.rstrip()
    while stop := next((stop for stop in stops if rest.endswith(stop)), ""):
        ended, rest = rest, rest.removesuffix(stop).rstrip()
    return ended


def _ends_turn(text: str, stops: Sequence[str]) -> bool:
    return text.endswith(tuple(stops))
