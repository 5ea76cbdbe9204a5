"""The model card: complete by construction, and valid for the Hub."""

import dataclasses
import enum
import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tests.trainer.conftest import make_config
from tests.trainer.test_manifest import make_manifest

from lora_trainer.host.success import success_sentence
from lora_trainer.result.card import model_card as card_of
from lora_trainer.result.hyperparameters import camel_case, cell, leaves
from lora_trainer.result.serving import TEMPLATE
from lora_trainer.spec import codec
from lora_trainer.spec.config import Init, TrainConfig
from lora_trainer.spec.summary import Results, Verification
from lora_trainer.storage.manifest import Form, Manifest, MergedModel, Serving

SERVING = Serving(servable=True, text="--enable-lora --max-lora-rank 16", rank=9)


def manifest(**changes: Any) -> Manifest:
    """A manifest with a rank and a servable adapter."""
    return dataclasses.replace(make_manifest("uid-1"), serving=SERVING, **changes)


def model_card(manifest: Manifest, *, curves: bool = True, template: bool = False, rows: bool = True) -> str:
    """The card of a run with its curves."""
    return card_of(manifest, curves=curves, template=template, rows=rows)


def on_hub() -> TrainConfig:
    """A run on a model and a data set of the Hub."""
    return make_config(model={"uri": "hf://org/tiny@main"}, dataset={"uri": "hf://org/chats"})


def front_matter(card: str) -> dict[str, Any]:
    """The metadata of a card."""
    _, matter, _ = card.split("---\n", 2)
    document: dict[str, Any] = yaml.safe_load(matter)
    return document


def rows(card: str) -> set[tuple[str, str]]:
    """The rows of all tables of two columns."""
    return set(re.findall(r"^\| (\S*) \| (.*) \|$", card, re.MULTILINE))


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {field.name: changed(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **values)
    if isinstance(value, enum.Enum):
        kinds = list(type(value))
        return kinds[(kinds.index(value) + 1) % len(kinds)]
    if isinstance(value, dict):
        return {**value, "more": 3}
    if isinstance(value, bool):
        return not value
    more: dict[type, Any] = {str: "-changed", tuple: ("more",), int: 7, float: 7.0}
    return 4711 if value is None else value + more[type(value)]


def test_every_hyperparameter_and_every_result_is_in_the_card() -> None:
    """Each leaf of the dataclasses, by its name, with the value that the run had, whatever is added to them."""
    card = manifest()
    other = dataclasses.replace(
        card,
        config=dataclasses.replace(changed(card.config), model=on_hub().model, dataset=on_hub().dataset),
        resolved=changed(card.resolved),
        measured=changed(card.measured),
        dataset=changed(card.dataset),
    )
    count = 0
    for case in (card, other):
        shown = rows(model_card(case))
        for part in (case.config, case.resolved, case.measured, case.dataset):
            for name, value in leaves(part):
                count += 1
                assert (name, cell(value)) in shown
    assert count > 2 * 80


def test_names_are_those_of_manifests() -> None:
    """Units are written out."""
    assert [camel_case(name) for name in ("rank", "target_modules", "interval_s", "loss_on")] == [
        "rank",
        "targetModules",
        "intervalSeconds",
        "lossOn",
    ]


def test_cells_cannot_break_the_table() -> None:
    """Neither by a bar nor by a line end."""
    assert [cell(value) for value in ("a|b\nc", {"x|": 1}, (), None, True, 0.0002)] == [
        "a\\|b c",
        '{"x\\|": 1}',
        "none",
        "none",
        "true",
        "0.0002",
    ]


def test_the_hub_accepts_the_front_matter() -> None:
    """As its own client reads it, with base model and data set."""
    card = model_card(manifest(config=on_hub()))
    data = vars(ModelCard(card).data)
    assert data["base_model"] == "org/tiny"
    assert data["base_model_relation"] == "adapter"
    assert data["datasets"] == ["org/chats"]
    assert (data["library_name"], data["pipeline_tag"]) == ("peft", "text-generation")


def test_addresses_that_are_none_of_the_hub_stay_out_of_the_front_matter() -> None:
    """The Hub refuses a card whose base model is no name of a repository."""
    matter = front_matter(model_card(manifest()))
    assert not {"base_model", "datasets"} & set(matter)


@pytest.mark.parametrize(
    ("form", "present", "absent"),
    [
        (
            Form.ADAPTER,
            (
                f"vllm serve org/tiny --revision {'c' * 40} --enable-lora --max-lora-rank 16 --lora-modules tiny=path/",
                "PeftModel",
            ),
            ("merged",),
        ),
        (
            Form.MERGED,
            ("vllm serve path/of/this/folder\n", "LoRA adapter of rank 9 merged"),
            ("PeftModel", "--enable-lora"),
        ),
        (Form.BOTH, ("--enable-lora", "vllm serve path/of/this/folder/merged\n", "PeftModel"), ()),
    ],
)
def test_the_card_says_how_to_load_and_serve(form: Form, present: tuple[str, ...], absent: tuple[str, ...]) -> None:
    """For each form that a result can have."""
    checked = MergedModel(loss=1.5, expected=1.25, tolerance=0.01)
    card = model_card(manifest(config=on_hub(), format=form, merged=None if form is Form.ADAPTER else checked))
    text = card.partition("## Hyperparameters")[0]
    assert [part for part in present if part not in text] == []
    assert [part for part in absent if part in text] == []
    assert ("gives a loss of 1.5000" in text) == (form is not Form.ADAPTER)


def test_an_adapter_that_vllm_cannot_serve_says_so() -> None:
    """In place of the command."""
    judged = Serving(servable=False, text="vLLM serves no DoRA adapters; merge it", rank=4)
    card = model_card(dataclasses.replace(manifest(), serving=judged))
    assert "vLLM cannot serve this adapter: vLLM serves no DoRA adapters; merge it." in card
    assert "vllm serve" not in card


@pytest.mark.parametrize(("variant", "form"), [("DoRA", Form.ADAPTER), ("LoRA", Form.ADAPTER), ("DoRA", Form.MERGED)])
def test_a_dora_adapter_is_to_be_loaded_with_peft(variant: str, form: Form) -> None:
    """Transformers' own loading of adapters gives other logits without a word."""
    card = model_card(manifest(config=make_config(lora={"rank": 4, "alpha": 8, "variant": variant}), format=form))
    assert ("Load it with PEFT, as above" in card) == (variant == "DoRA" and form is Form.ADAPTER)


@pytest.mark.parametrize("template", [True, False])
def test_a_template_that_the_base_model_lacks_is_explained(template: bool) -> None:
    """Without it a server refuses chats, or another one's headings meet the adapter."""
    card = model_card(manifest(), template=template)
    assert ("The base model has no chat template." in card) is template


def test_the_command_of_the_card_has_the_template_and_the_release_that_it_needs() -> None:
    """For an adapter whose modules have factors of their own, on a base without a template."""
    judged = Serving(servable=True, text=f"--enable-lora --chat-template {TEMPLATE}", rank=4, needs="vLLM 0.32")
    card = model_card(dataclasses.replace(manifest(config=on_hub()), serving=judged))
    assert "--chat-template path/of/this/folder/chat_template.jinja" in card
    assert "This needs vLLM 0.32 or later: older releases ignore patterns of rank and alpha.\n\n```sh\nvllm" in card


def test_a_converted_adapter_says_what_it_was_trained_as() -> None:
    """Its rank is not the one that was asked for."""
    config = on_hub()
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, init=Init.PISSA))
    assert "adapter of rank 9 for `org/tiny`" in model_card(manifest(config=config))
    assert "trained from PiSSA at rank 4 and converted" in model_card(manifest(config=config))


@pytest.mark.parametrize("curves", [True, False])
def test_files_that_do_not_lie_beside_the_card_are_not_named(curves: bool) -> None:
    """An adapter that was made of a checkpoint by hand has no curves."""
    card = model_card(manifest(), curves=curves)
    assert [name in card for name in ("loss.png", "metrics.jsonl", "train.log")] == [curves] * 3


@pytest.mark.parametrize("rows", [True, False])
def test_the_card_names_the_list_of_evaluated_rows(rows: bool) -> None:
    """An adapter that was made of a checkpoint by hand has none."""
    assert ("held_out_rows.json` says which" in model_card(manifest(), rows=rows)) is rows


@pytest.mark.parametrize(
    ("cost", "precision", "said"), [(0.15, "Auto", True), (0.04, "Auto", False), (0.15, "FP32", False)]
)
def test_what_rounding_loses_of_the_improvement_is_in_the_message_with_the_remedy(
    cost: float, precision: str, said: bool
) -> None:
    """A 16-bit base and large updates lost 15 % of it, which only the log said."""
    output = {"uri": "pvc://a/b", "merge": "Merged", "mergePrecision": precision}
    merged = MergedModel(loss=1.0 + cost, expected=1.0, tolerance=0.02)
    measured = dataclasses.replace(manifest().measured, eval_loss_before=2.0, eval_loss_after=1.0)
    made = manifest(format=Form.MERGED, config=make_config(output=output), merged=merged, measured=measured)
    rest = "; rounding the merged weights costs 15% of the improvement, which output.mergePrecision: FP32 keeps"
    assert success_sentence("pvc://a/b", made).partition("at pvc://a/b")[2] == (rest if said else "")


def test_a_standard_error_that_a_single_row_does_not_have_is_left_out() -> None:
    """It was 0.0000, as if the loss were exact: in the card, the sentence, the curve and for the operator."""
    errors = ("eval_loss_before_standard_error", "eval_loss_after_standard_error", "improvement_standard_error")
    none: dict[str, Any] = dict.fromkeys(errors)
    known: dict[str, Any] = dict.fromkeys(errors, 0.5)
    measured = dataclasses.replace(manifest().measured, **none)
    sure = manifest(measured=dataclasses.replace(measured, **known))
    alone = manifest(measured=measured)
    assert "| base model | 1.0000 |  |" in model_card(alone)
    assert "| base model | 1.0000 | 0.5000 |" in model_card(sure)
    assert "from 1.000 to 1.000; the verified" in success_sentence("pvc://a/b", alone)
    assert "from 1.000 to 1.000 (± 0.500); the verified" in success_sentence("pvc://a/b", sure)
    verification = Verification(loss=1.0, difference=0.0, tolerance=1.0)
    told = codec.encode(Results(**codec.encode(measured), verification=verification))
    assert "improvement_standard_error" not in told
