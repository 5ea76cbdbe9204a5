"""Conversations to text through a chat template, and which stretches of the text are learned."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.formats import Conversation, PlainText, Sample
from lora_trainer.data.messages import Message
from lora_trainer.data.stretches import Rendered, Span, place
from lora_trainer.data.time_limit import cpu_time
from lora_trainer.errors import DatasetError

FALLBACK_TEMPLATE = (
    "{% if tools %}{{ '### Tools:\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ '\\n' }}"
    "{% endif %}"
    "{% for message in messages %}{{ '### ' + message.role | capitalize + ':\\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '\\n' if message.content or not loop.first }}"
    "{{ call.function | tojson }}{% endfor %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For base models without a chat template: the headings of Stanford Alpaca, one for each role, calls as JSON."""

SECONDS, LARGEST_TEXT = 10, 2**25
"""Processor time of a conversation's renderings (a tenth of a second more for each) and characters of one: twice what a
row may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text and the stretches of it, from the first character to the one after the last, that are learned.

    `answers` is how many answers these hold; `empty` how many of the sample's are learned nowhere, having no text.
    """

    text: str
    learned: tuple[Span, ...]
    templated: bool
    answers: int = 1
    empty: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    """A rendering that is needed of a conversation: its first `turns`, with or without the generation prompt."""

    turns: int
    generation: bool


@dataclass(frozen=True, slots=True)
class _Rendering:
    """A text, and the stretches of it that the template marks as the assistant's (`{% generation %}`)."""

    text: str
    marks: tuple[Span, ...] = ()


_Renderings = dict[_Request, _Rendering]
_MARK = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")


class Renderer:
    """Renders samples as a chat template does: the chosen one, else the model's own, else the fallback.

    `template` is its text where it is not the model's own. `starts_with_bos` is whether the tokenizer puts a token
    before every text: then the fallback and built-in templates do so, too.
    """

    def __init__(
        self, tokenizer: Any, *, learn_all: bool, starts_with_bos: bool, stops: Sequence[str], chosen: Chosen
    ) -> None:
        self._tokenizer = tokenizer
        self._learn_all = learn_all
        self._stops = tuple(stops)
        self._arguments = chosen.arguments
        self.has_template = bool(chosen.text or tokenizer.chat_template)
        own = None if self.has_template else FALLBACK_TEMPLATE
        begin = "{{ bos_token }}" if starts_with_bos and (own or chosen.built_in) else ""
        self.template = begin + (chosen.text or own or "") or None
        self._named = "the model's chat template" if chosen.text is None else "dataset.chatTemplate"
        self._takes_calls = "tool_calls" in str(self.template or tokenizer.chat_template)

    def render(self, samples: Sequence[Sample]) -> list[list[Text]]:
        """The texts of each sample, one or more. Raises `DatasetError` for the first that cannot be rendered."""
        texts: dict[int, list[Text]] = {}
        chats: dict[int, Conversation] = {}
        for number, sample in enumerate(samples):
            if isinstance(sample, PlainText):
                texts[number] = [Text(text=sample.text, learned=((0, len(sample.text)),), templated=False)]
            elif sample.verbatim and not self.has_template:
                texts[number] = [_verbatim(sample)]
            else:
                self._check_calls(sample)
                chats[number] = sample
        for number, renderings in zip(chats, self._renderings(list(chats.values())), strict=True):
            texts[number] = self._texts(chats[number], renderings)
        return [texts[number] for number in range(len(samples))]

    def _renderings(self, chats: Sequence[Conversation]) -> list[_Renderings]:
        """Everything that is needed of each conversation, in two calls for all that have no tools."""
        plain = [chat for chat in chats if not chat.tools]
        try:
            found = iter(self._apply(plain))
        except Exception:  # a template may raise anything; taken one by one, the conversation is found and named
            found = iter([self._one(chat) for chat in plain])
        return [self._one(chat) if chat.tools else next(found) for chat in chats]

    def _one(self, chat: Conversation) -> _Renderings:
        try:
            return self._apply([chat], tools=chat.tools)[0]
        except Exception as error:  # as above
            raise DatasetError(
                f"{chat.where}: {self._named} refuses this conversation ({' '.join(str(error).split())})"
            ) from error

    def _check_calls(self, chat: Conversation) -> None:
        if not self._takes_calls and any(message.extra.get("tool_calls") for message in chat.messages):
            raise DatasetError(
                f"{chat.where}: {self._named} has no place for tool calls, so they would be lost; choose a "
                "model whose template has one, or write the calls into the content"
            )

    def _apply(self, chats: Sequence[Conversation], tools: Sequence[Any] = ()) -> list[_Renderings]:
        renderings: list[_Renderings] = [{} for _ in chats]
        for generation in (False, True):
            wanted = [
                (number, request)
                for number, chat in enumerate(chats)
                for request in self._requests(chat)
                if request.generation is generation
            ]
            turns = [
                [message.for_template() for message in chats[number].messages[: request.turns]]
                for number, request in wanted
            ]
            if not turns:
                continue
            for (number, request), found in zip(wanted, self._rendered(turns, tools, generation), strict=True):
                renderings[number][request] = found
        return renderings

    def _rendered(self, turns: list[Any], tools: Sequence[Any], generation: bool) -> list[_Rendering]:
        from transformers.utils import chat_template_utils  # noqa: PLC0415 - Transformers takes seconds to import

        render: Any = chat_template_utils.render_jinja_template
        template = self._tokenizer.get_chat_template(self.template, list(tools) or None)
        with cpu_time(SECONDS + len(turns) / 10):
            texts, marks = render(
                turns,
                tools=list(tools) or None,
                chat_template=template,
                add_generation_prompt=generation,
                return_assistant_tokens_mask=not generation and bool(_MARK.search(template)),
                **{**self._tokenizer.special_tokens_map, **self._arguments},
            )
        if any(len(text) > LARGEST_TEXT for text in texts):
            raise ValueError(f"its text has more than {LARGEST_TEXT} characters")
        return [_Rendering(text, tuple(found)) for text, found in zip(texts, marks or [()] * len(texts), strict=True)]

    @functools.cached_property
    def _heading(self) -> str:
        """What the template writes between a question and its answer; empty where it refuses to show it."""
        question = [[{"role": "user", "content": "?"}]]
        try:
            (asked,), (prompt,) = (self._rendered(question, (), generation) for generation in (False, True))
        except Exception:  # as in `_renderings`
            return ""
        return prompt.text.removeprefix(asked.text) if prompt.text.startswith(asked.text) else ""

    def _requests(self, chat: Conversation) -> set[_Request]:
        """The whole; or for each answer its prompt, and the text up to its end."""
        if self._learn_all:
            return {_Request(len(chat.messages), generation=False)}
        answers = _answers(chat.messages)
        ends = {_Request(turn + 1, generation=False) for turn in answers}
        return ends | {_Request(turn, generation=True) for turn in answers if turn}

    def _texts(self, chat: Conversation, renderings: _Renderings) -> list[Text]:
        """The whole where everything is learned, else the texts in which each answer is learned once."""
        answers = _answers(chat.messages)
        empty = sum(message.learned and message.role == "assistant" for message in chat.messages) - len(answers)
        if self._learn_all:
            text = renderings[_Request(len(chat.messages), generation=False)].text.rstrip()
            whole = Text(text=text, learned=((0, len(text)),), templated=True, answers=len(answers), empty=empty)
            return [whole]
        placed = place(_needed(chat, answers, renderings, self._heading), self._stops)
        if placed is None:
            raise DatasetError(
                f"{chat.where}: {self._named} does not let an answer follow its prompt, so the answer's "
                "tokens cannot be told apart; use training.lossOn: All or another dataset.chatTemplate"
            )
        return [
            Text(
                text=found.text,
                learned=found.learned,
                templated=True,
                answers=len(found.learned),
                empty=0 if number else empty,
            )
            for number, found in enumerate(placed)
        ]


def _answers(messages: Sequence[Message]) -> list[int]:
    return [turn for turn, message in enumerate(messages) if message.is_answer]


def _needed(chat: Conversation, answers: Sequence[int], renderings: _Renderings, heading: str) -> Rendered:
    texts = {turn: renderings[_Request(turn + 1, generation=False)].text for turn in answers}
    prompts = {turn: renderings[_Request(turn, generation=True)].text if turn else "" for turn in answers}
    marks = renderings[_Request(answers[-1] + 1, generation=False)].marks
    turns = chat.messages[: answers[-1] + 1]
    spoken = [turn for turn, message in enumerate(turns) if message.role == "assistant"]
    # A template may mark a turn twice or not at all; then nothing says which mark is whose.
    return Rendered(
        prompts=prompts,
        texts=texts,
        marks=dict(zip(spoken, marks, strict=True)) if len(marks) == len(spoken) else {},
        heading=heading,
    )


def _verbatim(sample: Conversation) -> Text:
    prompt, answer = (message.content for message in sample.messages)
    return Text(text=prompt + answer, learned=((len(prompt), len(prompt + answer)),), templated=False)
