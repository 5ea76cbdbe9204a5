"""Conversations to text through a chat template, and which stretches of the text are learned."""

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from lora_trainer.data.assistant_spans import Rendered, Span, Text, opened, place
from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.clock import Clock, today
from lora_trainer.data.formats import Conversation, PlainText, Sample
from lora_trainer.data.messages import Message
from lora_trainer.data.template_coverage import objection, probe_of, shape_of
from lora_trainer.data.time_limit import cpu_time
from lora_trainer.errors import DatasetError

log = logging.getLogger(__name__)

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
_SAID = "Is anybody here?"
_TOOL = "zqtoolqz"
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
        self._chosen = chosen
        self._looked_at: frozenset[Any] = frozenset()
        self.clock = Clock(chosen.day or today())
        self.has_template = bool(chosen.text or tokenizer.chat_template)
        own = None if self.has_template else FALLBACK_TEMPLATE
        begin = "{{ bos_token }}" if starts_with_bos and (own or chosen.built_in) else ""
        self.template = begin + (chosen.text or own or "") or None
        self._named = "the model's chat template" if chosen.text is None else "dataset.chatTemplate"

    @property
    def beside(self) -> str | None:
        """The template to serve the model with, None where its own will do: with the run's variables as defaults."""
        own = self.template or self._tokenizer.chat_template
        if not self._chosen.arguments:
            return self.template
        if not isinstance(own, str):
            log.warning(
                "the base model has several chat templates, so that none is stored beside the adapter with "
                "dataset.templateArguments: give these to the server"
            )
            return self.template
        return self._chosen.served(own)

    def prompt(self, question: str, before: Sequence[tuple[str, str]] = ()) -> str:
        """What inference shows of a question behind earlier ones with their answers. Raises what the template
        raises."""
        said = [text for turn in before for text in turn] + [question]
        turns = [Message(role=role, content=text) for role, text in zip(cycle(("user", "assistant")), said)]
        (found,) = self._rendered([[t.for_template(in_parts=self._in_parts) for t in turns]], (), generation=True)
        return found.text

    @functools.cached_property
    def leaves_out_tools(self) -> bool:
        """Whether the template writes nothing of the tools of a conversation."""
        asked = Message(role="user", content=_SAID).for_template(in_parts=self._in_parts)
        try:
            (found,) = self._rendered([[asked]], [{"name": _TOOL, "parameters": {}}], generation=True)
        except Exception:  # as in `_renderings`; there the conversation itself is refused
            return False
        return _TOOL not in found.text

    def unseen(self, text: str) -> str:
        """The thought that inference opens before an answer, where no answer in the text of a sample has it."""
        found = opened(self._heading)
        return "" if found and self._heading in text else found

    def render(self, samples: Sequence[Sample]) -> list[list[Text]]:
        """The texts of each sample, one or more. Raises `DatasetError` for the first that cannot be rendered."""
        texts: dict[int, list[Text]] = {}
        chats: dict[int, Conversation] = {}
        for number, sample in enumerate(samples):
            if isinstance(sample, PlainText):
                texts[number] = [Text(text=sample.text, assistant_spans=((0, len(sample.text)),), templated=False)]
            elif sample.verbatim and not self.has_template:
                texts[number] = [_verbatim(sample)]
            else:
                chats[number] = sample
        for number, renderings in zip(chats, self._renderings(list(chats.values())), strict=True):
            self._check_arrival(chats[number])
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
            called = "dict" in str(error) and any("tool_calls" in message.extra for message in chat.messages)
            hint = "; it gets the arguments of tool calls as objects, not as text" if called else ""
            raise DatasetError(
                f"{chat.where}: {self._named} refuses this conversation ({' '.join(str(error).split())}{hint})"
            ) from error

    def _check_arrival(self, chat: Conversation) -> None:
        """Refuse what the template does not write, where no conversation of the same shape was looked at."""
        shape = shape_of(chat)
        if shape <= self._looked_at:
            return
        probe, answers = probe_of(chat), _answers(chat.messages)
        turns = [[one.for_template(in_parts=self._in_parts) for one in probe.messages[: turn + 1]] for turn in answers]
        try:
            found = self._rendered(turns, chat.tools, generation=False)
        except Exception:  # as in `_renderings`: of words alone; the conversation itself was rendered
            log.debug("%s: the conversation cannot be rendered as text", chat.where, exc_info=True)
            found = []
        for turn, rendering in zip(answers, found, strict=False):
            lost = objection(probe, turn, rendering.text)
            if lost:
                raise DatasetError(f"{chat.where}: {self._named} {lost}")
        self._looked_at |= shape

    def _check_thoughts(self, chat: Conversation, answers: Sequence[int], renderings: _Renderings) -> None:
        for turn in answers:
            found = renderings.get(_Request(turn + 1, generation=False))
            if found is not None and _loses_thought(chat.messages[turn], found.text):
                raise DatasetError(
                    f"{chat.where}: {self._named} leaves out the thoughts of answers (<think>), so they would be lost; "
                    "use another dataset.chatTemplate, or take them out of the content"
                )

    def _says_nothing(self, learned: str) -> bool:
        """Whether nothing is left of an answer but the token that ends it."""
        end = next((stop for stop in self._stops if learned.endswith(stop)), "")
        return not learned.removesuffix(end).strip()

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
                [message.for_template(in_parts=self._in_parts) for message in chats[number].messages[: request.turns]]
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
            self.clock.put_into(template)
            texts, marks = render(
                turns,
                tools=[_enveloped(tool) for tool in tools] or None,
                chat_template=template,
                add_generation_prompt=generation,
                return_assistant_tokens_mask=not generation and bool(_MARK.search(template)),
                **{**self._tokenizer.special_tokens_map, **self._chosen.arguments},
            )
        if any(len(text) > LARGEST_TEXT for text in texts):
            raise ValueError(f"its text has more than {LARGEST_TEXT} characters")
        return [_Rendering(text, tuple(found)) for text, found in zip(texts, marks or [()] * len(texts), strict=True)]

    @functools.cached_property
    def _in_parts(self) -> bool:
        """Whether the template writes a text only where it comes as a part, as those of some models that see do."""
        plain, in_parts = (Message(role="user", content=_SAID).for_template(in_parts=parts) for parts in (False, True))
        return not self._writes(plain) and self._writes(in_parts)

    def _writes(self, message: dict[str, Any]) -> bool:
        try:
            (found,) = self._rendered([[message]], (), generation=False)
        except Exception:  # as in `_renderings`
            return False
        return _SAID in found.text

    @functools.cached_property
    def _heading(self) -> str:
        """What the template writes between a question and its answer; empty where it refuses to show it."""
        question = Message(role="user", content="?").for_template(in_parts=self._in_parts)
        try:
            (asked,) = self._rendered([[question]], (), generation=False)
            prompt = self.prompt("?")
        except Exception:  # as in `_renderings`
            return ""
        return prompt.removeprefix(asked.text) if prompt.startswith(asked.text) else ""

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
        self._check_thoughts(chat, answers, renderings)
        empty = sum(message.learned and message.role == "assistant" for message in chat.messages) - len(answers)
        if self._learn_all:
            text = renderings[_Request(len(chat.messages), generation=False)].text.rstrip()
            whole = Text(
                text=text, assistant_spans=((0, len(text)),), templated=True, answers=len(answers), empty=empty
            )
            return [whole]
        placed = place(_needed(chat, answers, renderings, self._heading), self._stops)
        if placed is None:
            raise DatasetError(
                f"{chat.where}: {self._named} does not let an answer follow its prompt, so the answer's "
                "tokens cannot be distinguished; use training.lossOn: All or another dataset.chatTemplate"
            )
        if any(self._says_nothing(found.text[begin:end]) for found in placed for begin, end in found.assistant_spans):
            raise DatasetError(
                f"{chat.where}: {self._named} leaves out what an answer says, so that only its end would be learned; "
                "use another dataset.chatTemplate"
            )
        return [replace(placed[0], empty=empty), *placed[1:]]


def _loses_thought(message: Message, text: str) -> bool:
    """Whether a thought in the content of an answer is not in the text that ends with the answer."""
    thought, found, _ = message.content.rpartition("</think>")
    return bool(found) and _squeezed(thought) not in _squeezed(text)


def _squeezed(text: str) -> str:
    """Without blanks and the beginnings of thoughts, which templates write themselves."""
    return "".join(text.replace("<think>", "").split())


def _enveloped(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """In OpenAI's form, which servers give to templates; data sets may describe the function alone."""
    if "function" in tool or "name" not in tool:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


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
        # Text beside a call is a thought to gpt-oss.
        thoughtful=frozenset(turn for turn in answers if turns[turn].thinks or turns[turn].calls_beside_text),
    )


def _verbatim(sample: Conversation) -> Text:
    prompt, answer = (message.content for message in sample.messages)
    return Text(text=prompt + answer, assistant_spans=((len(prompt), len(prompt + answer)),), templated=False)
