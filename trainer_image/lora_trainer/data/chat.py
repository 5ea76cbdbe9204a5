"""Conversations to text through a chat template, and which stretches of the text are learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_trainer.data.formats import Conversation, PlainText, Sample
from lora_trainer.data.messages import Message
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text and the stretches of it, from the first character to the one after the last, that are learned."""

    text: str
    learned: tuple[tuple[int, int], ...]
    templated: bool


@dataclass(frozen=True, slots=True)
class _Request:
    """A rendering that is needed of a conversation: its first `turns`, with or without the generation prompt."""

    turns: int
    generation: bool


_Renderings = dict[_Request, str]


class Renderer:
    """Renders samples as a model's chat template does; `template` is the fallback's text for a model without one.

    `starts_with_bos` is whether the tokenizer puts a token before every text: then the fallback does so, too.
    """

    def __init__(self, tokenizer: Any, *, learn_all: bool, starts_with_bos: bool) -> None:
        self._tokenizer = tokenizer
        self._learn_all = learn_all
        self.has_template = bool(tokenizer.chat_template)
        fallback = ("{{ bos_token }}" if starts_with_bos else "") + FALLBACK_TEMPLATE
        self.template = None if self.has_template else fallback
        self._takes_calls = "tool_calls" in str(self.template or tokenizer.chat_template)

    def render(self, samples: Sequence[Sample]) -> list[Text]:
        """The text of each sample. Raises `DatasetError` for the first that cannot be rendered."""
        texts: dict[int, Text] = {}
        chats: dict[int, Conversation] = {}
        for number, sample in enumerate(samples):
            if isinstance(sample, PlainText):
                texts[number] = Text(text=sample.text, learned=((0, len(sample.text)),), templated=False)
            elif sample.verbatim and not self.has_template:
                texts[number] = _verbatim(sample)
            else:
                self._check_calls(sample)
                chats[number] = sample
        for number, renderings in zip(chats, self._renderings(list(chats.values())), strict=True):
            texts[number] = self._text(chats[number], renderings)
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
                f"{chat.where}: the model's chat template refuses this conversation ({' '.join(str(error).split())})"
            ) from error

    def _check_calls(self, chat: Conversation) -> None:
        if not self._takes_calls and any(message.extra.get("tool_calls") for message in chat.messages):
            raise DatasetError(
                f"{chat.where}: the model's chat template has no place for tool calls, so they would be lost; choose a "
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
            texts = self._tokenizer.apply_chat_template(
                turns,
                tools=list(tools) or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=generation,
            )
            for (number, request), text in zip(wanted, texts, strict=True):
                renderings[number][request] = text
        return renderings

    def _requests(self, chat: Conversation) -> list[_Request]:
        """The whole; and for each answer its prompt, and the text up to its end."""
        whole = _Request(len(chat.messages), generation=False)
        if self._learn_all:
            return [whole]
        answers = _answers(chat.messages)
        ends = [_Request(turn + 1, generation=False) for turn in answers if turn + 1 < len(chat.messages)]
        return [whole, *ends, *(_Request(turn, generation=True) for turn in answers if turn)]

    def _text(self, chat: Conversation, renderings: _Renderings) -> Text:
        """Alternate prompt and answer, each answer up to and with its end-of-turn token.

        The prompt of an answer is the template's text for the turns before it with the generation prompt, as at
        inference. Templates that rewrite earlier turns (reasoning models drop old thoughts) leave no common beginning;
        then the last answer alone is learned.
        """
        full = renderings[_Request(len(chat.messages), generation=False)]
        if self._learn_all:
            text = full.rstrip()
            return Text(text=text, learned=((0, len(text)),), templated=True)
        answers = _answers(chat.messages)
        spans = _spans(full, renderings, answers) or _spans(full, renderings, answers[-1:])
        if spans is None:
            raise DatasetError(
                f"{chat.where}: the model's chat template renders the last answer differently from its prompt, so "
                "the answer's tokens cannot be told apart; use training.lossOn: All or another model"
            )
        return Text(text=full[: spans[-1][1]], learned=tuple(spans), templated=True)


def _answers(messages: Sequence[Message]) -> list[int]:
    return [turn for turn, message in enumerate(messages) if message.learned and message.role == "assistant"]


def _spans(full: str, renderings: _Renderings, answers: Sequence[int]) -> list[tuple[int, int]] | None:
    spans = []
    for turn in answers:
        prompt = renderings[_Request(turn, generation=True)] if turn else ""
        answer = renderings[_Request(turn + 1, generation=False)]
        if not full.startswith(prompt) or not full.startswith(answer) or len(answer) <= len(prompt):
            return None
        # What the template adds after the end-of-turn token (a newline in ChatML) is never generated.
        spans.append((len(prompt), len(prompt) + len(answer[len(prompt) :].rstrip())))
    return spans


def _verbatim(sample: Conversation) -> Text:
    prompt, answer = (message.content for message in sample.messages)
    return Text(text=prompt + answer, learned=((len(prompt), len(prompt + answer)),), templated=False)
