"""Chat templates that a run chooses: built-in ones, those of a ConfigMap, their variables and their bounds."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import templates
from tests.trainer.conftest import make_config
from tests.trainer.test_learned import BRIEF, LONGER, marked, talk
from tokenizers import processors

from lora_trainer.data import chat
from lora_trainer.data.chosen_template import LARGEST_BYTES, TEMPLATES, Chosen, chosen_template
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import DatasetError, TrainerError
from lora_trainer.spec.config import LossOn
from lora_trainer.spec.template_fields import BUILT_IN
from lora_trainer.storage.volumes import Volumes

ENDS = {
    "ChatML": "<|im_end|>",
    "Llama3": "<|eot_id|>",
    "Mistral": "</s>",
    "Gemma": "<end_of_turn>",
    "Qwen": "<|im_end|>",
    "Alpaca": "</s>",
}
CONFIG_MAP = "configmap://templates/chat.jinja"


def encoder_with(chosen: Chosen, eos: str, *, own: str | None = None, bos: bool = False) -> Encoder:
    """An encoder of a model that stops at `eos` and has the template `own`; with `bos` its texts begin with a token."""
    tokenizer = templates.tokenizer(own, eos)
    if bos:
        begin = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=begin
        )
    return Encoder(tokenizer, LossOn.COMPLETION, 2048, (tokenizer.eos_token_id,), chosen)


def chosen_by(config_maps: Path, template: str, **arguments: str) -> Chosen:
    """What a run chooses whose ConfigMaps lie in this folder."""
    dataset: dict[str, Any] = {"chatTemplate": template, **({"templateArguments": arguments} if arguments else {})}
    return chosen_template(make_config(dataset=dataset).dataset, Volumes(config_maps=config_maps))


def in_config_map(root: Path, content: str | bytes) -> Path:
    """A ConfigMap with a template."""
    (root / "templates").mkdir(exist_ok=True)
    (root / "templates/chat.jinja").write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("stops_at_own", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_template_learns_every_answer_from_one_text(*, name: str, stops_at_own: bool, bos: bool) -> None:
    """Also where the model stops at another token than the template's own, which then follows it."""
    eos = ENDS[name] if stops_at_own else "<|return|>"
    encoder = encoder_with(Chosen(text=TEMPLATES[name], built_in=True), eos, own=templates.GLM4, bos=bos)
    (encoded,) = encoder.encode_all([talk(("system", "Be brief."), *LONGER)])
    (one,) = encoded
    text = marked(encoder, one.example)
    said = [answer.strip() for answer in re.findall("⟦(.*?)⟧", text, re.DOTALL)]
    own = "" if name in ("Mistral", "Alpaca") else ENDS[name]
    end = own if own == eos else own + eos
    assert said == [f"Ahoy!{end}", f"Fair winds.{end}"]
    assert text.startswith("<s>") is bos
    assert text.count("<s>") == bos
    assert "Be brief." in text
    assert (one.learned_answers, one.unended_answers) == (2, 0)
    assert encoder.template is not None
    assert encoder.template.endswith(TEMPLATES[name])


def test_the_built_in_templates_are_those_of_the_contract() -> None:
    """By the same names."""
    assert tuple(TEMPLATES) == BUILT_IN


def test_a_template_of_a_config_map_gets_its_variables(tmp_path: Path) -> None:
    """As the values that their texts stand for."""
    root = in_config_map(tmp_path, templates.QWEN3)
    plain, quiet = (chosen_by(root, CONFIG_MAP, **given) for given in ({}, {"enable_thinking": "false"}))
    asked = "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n"
    thought = "<think>\n\n</think>\n\n"
    encoder = encoder_with(plain, "<|im_end|>")
    assert marked(encoder, encoder.encode(talk(*BRIEF))) == f"{asked}⟦{thought}Ahoy!<|im_end|>⟧"
    assert (encoder.template, encoder.has_template) == (templates.QWEN3, True)
    assert encoder_with(plain, "<|im_end|>", bos=True).template == templates.QWEN3
    encoder = encoder_with(quiet, "<|im_end|>")
    assert marked(encoder, encoder.encode(talk(*BRIEF))) == f"{asked}{thought}⟦Ahoy!<|im_end|>⟧"
    assert plain.digest == quiet.digest != chosen_by(in_config_map(tmp_path, templates.PHI4), CONFIG_MAP).digest
    assert Chosen().digest is None


def test_the_models_own_template_gets_variables_too() -> None:
    """It is written beside the adapter then, with these: a server knows them from there alone."""
    encoder = encoder_with(Chosen(arguments={"enable_thinking": False}), "<|im_end|>", own=templates.QWEN3)
    assert marked(encoder, encoder.encode(talk(*BRIEF))).endswith("</think>\n\n⟦Ahoy!<|im_end|>⟧")
    assert encoder.template == "{% set enable_thinking = enable_thinking | default(false) %}" + templates.QWEN3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "the ConfigMap has no key chat.jinja"),
        ("x" * (LARGEST_BYTES + 1), "it has 262145 bytes, and a template at most 262144; shorten it"),
        (b"\xff", "it is not UTF-8; save it as UTF-8"),
        (" \n", "it is empty; write a template into the key, or remove the field"),
    ],
)
def test_a_config_map_that_holds_no_template_is_refused(
    tmp_path: Path, content: str | bytes | None, sentence: str
) -> None:
    """With field, value, rule and remedy."""
    root = tmp_path if content is None else in_config_map(tmp_path, content)
    with pytest.raises(TrainerError) as caught:
        chosen_by(root, CONFIG_MAP)
    assert str(caught.value).startswith(f"dataset.chatTemplate is {CONFIG_MAP}: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        (
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}"
                "{% endfor %}"
            ),
            "it takes more than 0.2 s of processor time",
        ),
        ("{% for a in range(5000) %}{{ 'x' * 9000 }}{% endfor %}", "its text has more than 33554432 characters"),
    ],
)
def test_a_template_that_goes_wrong_or_never_ends_is_refused_with_the_row(
    monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    """It runs in Jinja's sandbox, for a bounded time and to a bounded length."""
    monkeypatch.setattr(chat, "SECONDS", 0.1)
    encoder = encoder_with(Chosen(text=text), "<|im_end|>")
    with pytest.raises(DatasetError) as caught:
        encoder.encode(talk(*BRIEF))
    assert str(caught.value).startswith("x: dataset.chatTemplate refuses this conversation (")
    assert sentence in str(caught.value)
