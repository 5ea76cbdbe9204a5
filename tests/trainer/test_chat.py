"""What is learned of a conversation, with the templates that models bring."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from tests.trainer import templates, tiny
from tokenizers import processors

from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.formats import Conversation, PlainText, Sample
from lora_trainer.data.messages import Message, parse_messages, parse_tools
from lora_trainer.data.tokens import IGNORED, Encoder, Example
from lora_trainer.errors import DatasetError
from lora_trainer.spec.config import LossOn

TURNS = [
    {"role": "user", "content": "Who are you"},
    {"role": "assistant", "content": "Ahoy, captain!"},
    {"role": "user", "content": "When do you open"},
    {"role": "assistant", "content": "Fair winds."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Bern?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Bern"}'}}],
    },
    {"role": "tool", "content": {"celsius": 21}},
    {"role": "assistant", "content": "Fine."},
]


def make_encoder(
    template: str | Mapping[str, str] | None, eos: str, *, trims: bool = False, loss_on: LossOn = LossOn.COMPLETION
) -> Encoder:
    """An encoder whose model ends its turns with `eos`."""
    tokenizer = templates.tokenizer(template, eos, trims=trims)
    return Encoder(tokenizer, loss_on, 512, (tokenizer.eos_token_id,))


def talk(turns: list[dict[str, Any]], *, tools: Any = None, verbatim: bool = False) -> Conversation:
    """A conversation as a row of a data set holds it."""
    return Conversation(
        where="x.jsonl, line 1",
        messages=parse_messages("x", turns),
        tools=parse_tools("x", tools),
        verbatim=verbatim,
    )


def learned(encoder: Encoder, example: Example) -> list[str]:
    """The learned stretches as text."""
    spans: list[list[int]] = []
    for before, label in pairwise([IGNORED, *example.labels.tolist()]):
        if label != IGNORED:
            spans = [*spans, []] if before == IGNORED else spans
            spans[-1].append(label)
    return [encoder.tokenizer.decode(ids) for ids in spans]


@pytest.mark.parametrize(
    ("template", "eos", "answers"),
    [
        (tiny.CHATML, "<|im_end|>", ["Ahoy, captain!<|im_end|>", "Fair winds.<|im_end|>"]),
        (templates.HERMES, "<|im_end|>", ["Ahoy, captain!<|im_end|>", "Fair winds.<|im_end|>"]),
        (templates.LLAMA3, "<|eot_id|>", ["Ahoy, captain!<|eot_id|>", "Fair winds.<|eot_id|>"]),
        (templates.MISTRAL, "</s>", [" Ahoy, captain!</s>", " Fair winds.</s>"]),
        (templates.GEMMA, "<end_of_turn>", ["Ahoy, captain!<end_of_turn>", "Fair winds.<end_of_turn>"]),
        (None, "</s>", ["Ahoy, captain!</s>", "Fair winds.</s>"]),
    ],
    ids=["ChatML", "Hermes", "Llama-3", "Mistral", "Gemma", "no template"],
)
@pytest.mark.parametrize("trims", [False, True])
def test_every_answer_is_learned_with_its_end_and_has_the_prompt_of_inference(
    *, template: str | None, eos: str, answers: list[str], trims: bool
) -> None:
    """The tokens before each answer are those of the template with its generation prompt, to the last one."""
    encoder = make_encoder(template, eos, trims=trims)
    example = encoder.encode(talk(TURNS))
    assert learned(encoder, example) == answers
    assert example.labels[-1] in encoder.stop_ids
    starts = [i for i in range(1, example.length) if example.labels[i - 1] == IGNORED and example.labels[i] != IGNORED]
    for start, turn in zip(starts, (1, 3), strict=True):
        prompt = encoder.tokenizer.apply_chat_template(
            TURNS[:turn], chat_template=encoder.template, tokenize=False, add_generation_prompt=True
        )
        assert encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"] == example.input_ids[:start].tolist()


def test_a_system_prompt_is_shown_and_not_learned() -> None:
    """Llama's, and Mistral's, which puts it into the first turn; Gemma has no place for it and says so."""
    for template, eos in ((templates.LLAMA3, "<|eot_id|>"), (templates.MISTRAL, "</s>")):
        encoder = make_encoder(template, eos)
        example = encoder.encode(talk([SYSTEM, *TURNS]))
        assert "Be brief." in encoder.tokenizer.decode(example.input_ids)
        assert "Be brief." not in "".join(learned(encoder, example))
    with pytest.raises(
        DatasetError, match=r"x\.jsonl, line 1: .* refuses this conversation \(System role not supported"
    ):
        make_encoder(templates.GEMMA, "<end_of_turn>").encode_all([talk(TURNS), talk([SYSTEM, *TURNS])])


@pytest.mark.parametrize(
    ("template", "call"),
    [
        (
            templates.HERMES,
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>',
        ),
        (None, '{"name": "weather", "arguments": {"city": "Bern"}}<|im_end|>'),
    ],
    ids=["template", "no template"],
)
def test_tool_calls_are_learned_and_tools_and_their_answers_are_shown(template: str | None, call: str) -> None:
    """Arguments that are JSON text in the data are an object in the template, and not text within text."""
    encoder = make_encoder(template, "<|im_end|>")
    for tools in ([WEATHER], [str(WEATHER).replace("'", '"')], str([WEATHER]).replace("'", '"')):
        example = encoder.encode(talk(CALLS, tools=tools))
        assert learned(encoder, example) == [call, "Fine.<|im_end|>"]
        text = encoder.tokenizer.decode(example.input_ids)
        assert '"name": "weather", "parameters": {"type": "object"}' in text
        assert '{"celsius": 21}' in text


def test_a_template_without_tool_calls_is_refused() -> None:
    """The answer would be learned as an empty one."""
    encoder = make_encoder(tiny.CHATML, "<|im_end|>")
    with pytest.raises(DatasetError, match=r"x\.jsonl, line 1: the model's chat template has no place for tool calls"):
        encoder.encode_all([talk(TURNS), talk(CALLS)])


NAMED = {"default": tiny.CHATML, "tool_use": templates.HERMES}


def test_a_model_with_a_template_for_tools_takes_calls_where_the_row_has_tools() -> None:
    """Without tools the other template counts, which has no place for them."""
    encoder = make_encoder(NAMED, "<|im_end|>")
    example = encoder.encode(talk(CALLS, tools=[WEATHER]))
    assert learned(encoder, example)[1] == "Fine.<|im_end|>"
    with pytest.raises(DatasetError, match="the model's chat template has no place for tool calls"):
        encoder.encode(talk(CALLS))


def test_tools_are_shown_in_the_form_that_servers_give_them() -> None:
    """Whether the row has OpenAI's envelope, that of its newer interface, or the function alone."""
    encoder = make_encoder(templates.HERMES, "<|im_end|>")
    function: dict[str, Any] = {"name": "weather", "parameters": {"type": "object"}}
    texts = {
        encoder.tokenizer.decode(encoder.encode(talk(CALLS, tools=[tool])).input_ids)
        for tool in (WEATHER, function, {"type": "function", **function})
    }
    assert len(texts) == 1


PARTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}:{% for part in message.content %}"
    "{% if part.type == 'text' %} {{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
"""As SmolVLM's: of a content that is a text it writes nothing."""


def test_a_template_that_writes_parts_alone_gets_parts() -> None:
    """It would have the model learn to say nothing."""
    encoder = make_encoder(PARTS, "<|im_end|>")
    example = encoder.encode(talk(TURNS))
    assert learned(encoder, example) == [" Ahoy, captain!<|im_end|>", " Fair winds.<|im_end|>"]
    asked = encoder.tokenizer.decode(encoder.prompt("Who are you"))
    assert asked == "<|im_start|>user: Who are you<|im_end|>\n<|im_start|>assistant:"


CALLS_OR_CONTENT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is none %}"
    "{{ message.tool_calls | tojson }}{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As DeepSeek-R1's distillations: calls are written where the content is null."""


def test_an_answer_of_which_a_template_writes_nothing_is_refused() -> None:
    """Only its end would be learned."""
    encoder = make_encoder(CALLS_OR_CONTENT, "<|im_end|>")
    with pytest.raises(DatasetError, match=r"x\.jsonl, line 1: the model's chat template has no place for tool calls,"):
        encoder.encode(talk(CALLS))
    blank = [TURNS[0], {"role": "assistant", "content": "<think>\n</think>\n"}]
    with pytest.raises(DatasetError, match="leaves out what an answer says, so that only its end would be learned"):
        make_encoder(templates.DEEPSEEK_R1, "</s>").encode(talk(blank))
    assert learned(encoder, encoder.encode(talk(TURNS)))[0] == "Ahoy, captain!<|im_end|>"


@pytest.mark.parametrize("loss_on", LossOn)
@pytest.mark.parametrize("content", ["<think>\nWho asks\n</think>\n\nAhoy", "Who asks\n</think>\n\nAhoy"])
def test_a_thought_that_a_template_drops_from_the_answer_is_refused(content: str, loss_on: LossOn) -> None:
    """Nobody who writes thoughts into answers wants to teach a model not to think."""
    encoder = make_encoder(templates.DEEPSEEK_R1, "</s>", loss_on=loss_on)
    turns = [TURNS[0], {"role": "assistant", "content": content}]
    with pytest.raises(DatasetError, match=r"leaves out the thoughts of answers \(<think>\), so they would be lost"):
        encoder.encode(talk(turns))
    kept = make_encoder(tiny.CHATML, "<|im_end|>", loss_on=loss_on)
    assert "Who asks" in "".join(learned(kept, kept.encode(talk(turns))))
    empty = [TURNS[0], {"role": "assistant", "content": "<think>\n\n</think>\n\nAhoy"}]
    assert "Ahoy</s>" in "".join(learned(encoder, encoder.encode(talk(empty))))


@pytest.mark.parametrize("loss_on", LossOn)
@pytest.mark.parametrize(
    "content",
    [
        "<think>a</think>\nb <think>c</think>\nd",
        "Sure. <think>x</think> y",
        "<think>asks about the <think> tag</think>It opens a thought.",
        "Write `<think>` before and `</think>` after it.",
    ],
)
def test_an_answer_that_is_kept_whole_is_learned_wherever_it_thinks(content: str, loss_on: LossOn) -> None:
    """Between its sentences, or of the tags themselves."""
    for template in (tiny.CHATML, templates.HERMES, None):
        encoder = make_encoder(template, "<|im_end|>", loss_on=loss_on)
        turns = [TURNS[0], {"role": "assistant", "content": content}]
        assert content in "".join(learned(encoder, encoder.encode(talk(turns))))


def test_a_thought_is_learned_by_each_of_its_names() -> None:
    """Those that Transformers takes."""
    encoder = make_encoder(templates.QWEN3, "<|im_end|>")
    answers = [
        {"role": "assistant", "content": "Ahoy", name: "Who asks"} for name in ("reasoning_content", "reasoning")
    ]
    (first,), (second,) = (learned(encoder, encoder.encode(talk([TURNS[0], answer]))) for answer in answers)
    assert first == second == "<think>\nWho asks\n</think>\n\nAhoy<|im_end|>"


def test_a_text_that_brings_its_first_token_gets_no_second_one() -> None:
    """Of data sets whose rows a template wrote before: neither as text nor as prompt and completion."""
    tokenizer = templates.tokenizer(None, "</s>")
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    encoder = Encoder(tokenizer, LossOn.COMPLETION, 512, (tokenizer.eos_token_id,))
    turns = [{"role": "user", "content": "<s>[INST] Hi [/INST]"}, {"role": "assistant", "content": " Ahoy</s>"}]
    for sample in (PlainText(where="x", text="<s>[INST] Hi [/INST] Ahoy</s>"), talk(turns, verbatim=True)):
        ids = encoder.encode(sample).input_ids.tolist()
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
    bare = encoder.encode(PlainText(where="x", text="Hi")).input_ids.tolist()
    assert bare[0] == tokenizer.bos_token_id


def test_a_template_beside_the_model_has_the_run_s_variables_as_defaults() -> None:
    """A server knows them only from there; its own requests may still set them."""
    chosen = Chosen(arguments={"enable_thinking": False, "note": 'it\'s "so" 🤖', "nothing": None, "bos_token": ""})
    tokenizer = templates.tokenizer(templates.QWEN3, "<|im_end|>")
    encoder = Encoder(tokenizer, LossOn.COMPLETION, 512, (tokenizer.eos_token_id,), chosen)
    template = encoder.template
    assert template is not None
    template += "{{ note }}{{ bos_token }}"

    def asked(**variables: Any) -> str:
        shown = {"chat_template": template, "add_generation_prompt": True, "tokenize": False}
        text: str = tokenizer.apply_chat_template(TURNS[:1], **shown, **variables)
        return text

    assert asked() == encoder.tokenizer.decode(encoder.prompt(str(TURNS[0]["content"]))) + 'it\'s "so" 🤖'
    assert "<think>" in asked()
    assert "<think>" not in asked(enable_thinking=True)
    assert make_encoder(templates.QWEN3, "<|im_end|>").template is None


def test_of_several_templates_none_lies_beside_the_model_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A server then needs the variables from whoever starts it."""
    tokenizer = templates.tokenizer(NAMED, "<|im_end|>")
    chosen = Chosen(arguments={"note": 1})
    assert Encoder(tokenizer, LossOn.COMPLETION, 512, (tokenizer.eos_token_id,), chosen).template is None
    assert "give these to the server" in caplog.text


def test_turns_that_are_context_only_are_not_learned() -> None:
    """An answer of weight 0, and the answers within a prompt."""
    encoder = make_encoder(tiny.CHATML, "<|im_end|>")
    skipped: list[dict[str, Any]] = [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]
    assert learned(encoder, encoder.encode(talk(skipped))) == ["Fair winds.<|im_end|>"]


def test_many_samples_are_encoded_as_each_alone() -> None:
    """Texts and conversations, with tools and without, in one call."""
    encoder = make_encoder(templates.HERMES, "<|im_end|>")
    samples: list[Sample] = [
        talk(TURNS),
        PlainText(where="x", text="Fair winds, captain!"),
        talk(CALLS, tools=[WEATHER]),
        talk(TURNS[:2]),
        talk([SYSTEM, *TURNS[:2]], verbatim=True),
    ]
    for sample, (encoded,) in zip(samples, encoder.encode_all(samples), strict=True):
        alone = encoder.encode(sample)
        assert encoded.example.input_ids.tolist() == alone.input_ids.tolist()
        assert encoded.example.labels.tolist() == alone.labels.tolist()


@pytest.mark.parametrize(
    ("prompt", "answer", "wanted"),
    [("Ahoy, ", "captain!", "captain!</s>"), ("Ahoy,", " captain!", " captain!</s>"), ("Ahoy,  ", "  x", "  x</s>")],
)
@pytest.mark.parametrize("trims", [False, True])
def test_a_blank_at_the_boundary_belongs_where_inference_would_have_it(
    *, prompt: str, answer: str, wanted: str, trims: bool
) -> None:
    """GPT-2 and Llama-3 leave blanks out of a token's offsets: the token " captain" seems to begin after the blank."""
    encoder = make_encoder(None, "</s>", trims=trims)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    example = encoder.encode(talk(turns, verbatim=True))
    start = next(i for i, label in enumerate(example.labels.tolist()) if label != IGNORED)
    assert example.input_ids[:start].tolist() == encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert encoder.tokenizer.decode(example.input_ids[start:]) == wanted


def test_a_base_model_that_begins_texts_with_a_token_has_it_before_conversations() -> None:
    """Llama, Mistral and Gemma lose much without it; the template written beside the adapter has it, too."""
    tokenizer = templates.tokenizer(None, "</s>")
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    encoder = Encoder(tokenizer, LossOn.COMPLETION, 512, (tokenizer.eos_token_id,))
    ids = encoder.encode(talk(TURNS)).input_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    served = tokenizer.apply_chat_template(
        TURNS[:1], chat_template=encoder.template, add_generation_prompt=True, return_dict=False
    )
    assert ids[: len(served)] == served
    assert make_encoder(None, "</s>").encode(talk(TURNS)).input_ids[0] != tokenizer.bos_token_id


def test_the_tokens_that_are_cut_are_counted() -> None:
    """All of them, and those of them that would have been learned."""
    whole = make_encoder(tiny.CHATML, "<|im_end|>")
    full = whole.encode(talk(TURNS))
    whole.max_length = full.length - 4
    (encoded,) = whole.encode_all([talk(TURNS)])[0]
    assert (encoded.cut_tokens, encoded.cut_targets) == (4, 4)
    whole.max_length = full.length - 8
    (encoded,) = whole.encode_all([talk(TURNS)])[0]
    assert encoded.cut_targets == full.targets - encoded.example.targets < encoded.cut_tokens == 8


def test_a_message_is_shown_to_a_template_as_it_is() -> None:
    """Role, content and what else templates read."""
    message = Message(role="assistant", content="a", extra={"reasoning_content": "t"})
    assert message.for_template() == {"role": "assistant", "content": "a", "reasoning_content": "t"}
