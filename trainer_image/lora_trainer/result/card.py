"""The model card, README.md: base model, data, every hyperparameter, results, how to load and serve.

The tables are generated from the dataclasses themselves, so that no field can be forgotten.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lora_trainer.result.curves import LOSS_CURVE
from lora_trainer.result.hyperparameters import cell, leaves
from lora_trainer.result.serving import TEMPLATE, command, merged_command
from lora_trainer.spec.config import TrainConfig, Variant
from lora_trainer.spec.uri import HubUri, parse_uri
from lora_trainer.storage.curve_records import METRICS
from lora_trainer.storage.held_out_rows import HELD_OUT_ROWS
from lora_trainer.storage.manifest import LOG, MERGED_FOLDER, Form, Manifest, Serving, loadable

CARD = "README.md"
_FOLDER = "path/of/this/folder"
_ABOUT_TEMPLATE = (
    f"The base model has no chat template. Conversations were written with that of `{TEMPLATE}`, which a server needs "
    "for chats. Plain text, prompts and completions were learned as they are."
)
_ABOUT_CHOSEN_TEMPLATE = (
    f"Conversations were written with the chat template of `{TEMPLATE}`, which is not the base model's own: to serve "
    f"chats, add `--chat-template {_FOLDER}/{TEMPLATE}`."
)

_ABOUT_DORA = (
    "Load it with PEFT, as above: `load_adapter` of Transformers 5.24, and its `from_pretrained` of this folder, give "
    "other answers with a DoRA adapter, without an error.\n"
)


def _about_template(config: TrainConfig) -> str:
    changed = config.dataset.chat_template is not None or config.dataset.template_arguments
    return _ABOUT_CHOSEN_TEMPLATE if changed else _ABOUT_TEMPLATE


def card_of(folder: Path, manifest: Manifest) -> str:
    """The card of the result in a folder, which names what lies there."""
    return model_card(
        manifest,
        curves=(folder / LOSS_CURVE).is_file(),
        # A merged model's own template is found by itself.
        template=manifest.format is not Form.MERGED and (folder / TEMPLATE).is_file(),
        rows=(folder / HELD_OUT_ROWS).is_file(),
    )


def model_card(manifest: Manifest, *, curves: bool, template: bool, rows: bool) -> str:
    """The card of a result, in Markdown with the Hub's front matter; `curves` says whether these lie beside it,
    `template` whether a chat template does, which is not the base model's own, and `rows` whether the list of the
    evaluated rows does."""
    config, measured = manifest.config, manifest.measured
    evaluated = "held-out rows" if measured.held_out else "rows of the training data (none were held out)"
    gain = measured.eval_loss_before - measured.eval_loss_after
    sections = (
        f"---\n{_front_matter(manifest)}---\n\n# {config.run.name}\n",
        f"{_what(manifest)}\n",
        "## Results\n",
        f"| | loss per learned token on {evaluated}, in nats | standard error |",
        "|---|---|---|",
        f"| base model | {measured.eval_loss_before:.4f} | {_error(measured.eval_loss_before_standard_error)} |",
        f"| fine-tuned | {measured.eval_loss_after:.4f} | {_error(measured.eval_loss_after_standard_error)} |",
        f"| improvement | {gain:.4f} | {_error(measured.improvement_standard_error)} |\n",
        *_merged_loss(manifest),
        *((f"![Loss over the optimizer steps]({LOSS_CURVE})\n",) if curves else ()),
        "## Load it\n",
        f"```python\n{_load(manifest)}\n```\n",
        *((_ABOUT_DORA,) if _is_dora(manifest) else ()),
        "## Serve it\n",
        f"{_serve(manifest)}\n",
        *((f"{_about_template(config)}\n",) if template else ()),
        "## Data\n",
        f"{_data(manifest, rows=rows)}\n",
        _table(manifest.dataset, "count"),
        "## Hyperparameters\n",
        "What the run was asked for, every field of it:\n",
        _table(config, "value"),
        "What it resolved to:\n",
        _table(manifest.resolved, "value"),
        "## Measurements\n",
        _table(measured, "value"),
        "## Made with\n",
        _mapping(manifest.versions, "version"),
        f"{_files(curves=curves)}\n",
    )
    return "\n".join(sections)


def _is_dora(manifest: Manifest) -> bool:
    return manifest.format is not Form.MERGED and manifest.config.lora.variant is Variant.DORA


def _data(manifest: Manifest, *, rows: bool) -> str:
    resolved = manifest.resolved
    data = f"`{manifest.config.dataset.uri}`, format {resolved.dataset_format}"
    listed = f" `{HELD_OUT_ROWS}` says which of its rows the losses are of." if rows else ""
    return f"{data}, fingerprint `{resolved.dataset_fingerprint}`.{listed}"


def _files(*, curves: bool) -> str:
    text = "`manifest.json` holds all of this for machines, with the sha256 of each file."
    if curves:
        text += f" `{METRICS}` has a line for each optimizer step and each evaluation; `{LOG}` is the log of the run."
    return text


def _front_matter(manifest: Manifest) -> str:
    """YAML that the Hub accepts: it refuses base models and data sets that are no names of repositories."""
    config = manifest.config
    matter: dict[str, Any] = {"library_name": "transformers" if manifest.format is Form.MERGED else "peft"}
    if isinstance(parse_uri(config.model.uri), HubUri):
        relation = "finetune" if manifest.format is Form.MERGED else "adapter"
        matter |= {"base_model": manifest.base_model, "base_model_relation": relation}
    dataset = parse_uri(config.dataset.uri)
    if isinstance(dataset, HubUri):
        matter["datasets"] = [dataset.repo]
    matter |= {"pipeline_tag": "text-generation", "tags": ["lora", "lora-finetune-operator"]}
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)


def _what(manifest: Manifest) -> str:
    lora, base = manifest.config.lora, f"`{manifest.base_model}` at `{manifest.base_revision}`"
    adapter = f"{lora.variant.value} adapter of rank {manifest.serving.rank}"
    if manifest.format is Form.MERGED:
        return f"{base} with a {adapter} merged into its weights."
    text = f"A {adapter} for {base}."
    if lora.init.changes_base:
        text += (
            f" It was trained from {lora.init.value} at rank {lora.rank} and converted, so that it applies to the "
            "unchanged base model."
        )
    if manifest.format is Form.BOTH:
        text += f" The folder `{MERGED_FOLDER}` holds the base model with the adapter merged into its weights."
    return text


def _merged_loss(manifest: Manifest) -> tuple[str, ...]:
    merged = manifest.merged
    if manifest.merge_failure is not None:
        return (f"There is no merged model beside the adapter: {manifest.merge_failure}.\n",)
    if merged is None:
        return ()
    sentence = (
        f"The merged model, loaded from its files, gives a loss of {merged.loss:.4f}; the unquantized base model with "
        f"the adapter beside it gives {merged.expected:.4f}: rounding the merged weights costs "
        f"{merged.loss - merged.expected:+.4f}.\n"
    )
    return (sentence,)


def _load(manifest: Manifest) -> str:
    name = manifest.resolved.model_class
    imported = f"from transformers import {name}"
    if manifest.format is Form.MERGED:
        return f'{imported}\n\nmodel = {name}.from_pretrained("{_FOLDER}")'
    return (
        f"from peft import PeftModel\n{imported}\n\n"
        f"base = {name}.from_pretrained({loadable(manifest.base_model, manifest.base_revision)})\n"
        f'model = PeftModel.from_pretrained(base, "{_FOLDER}")'
    )


def _serve(manifest: Manifest) -> str:
    blocks = []
    if manifest.format is not Form.MERGED:
        blocks.append(_serve_adapter(manifest, manifest.serving))
    if manifest.format is not Form.ADAPTER:
        folder = _FOLDER if manifest.format is Form.MERGED else f"{_FOLDER}/{MERGED_FOLDER}"
        blocks.append(f"```sh\n{merged_command(folder)}\n```")
    return "\n\nOr the merged model:\n\n".join(blocks)


def _serve_adapter(manifest: Manifest, serving: Serving) -> str:
    typed = command(
        serving,
        base_model=manifest.base_model,
        base_revision=manifest.base_revision,
        name=manifest.config.run.name,
        path=_FOLDER,
    )
    if typed is None:
        return f"vLLM cannot serve this adapter: {serving.text}."
    needs = f"This needs {serving.needs} or later: older releases ignore patterns of rank and alpha.\n\n"
    return (needs if serving.needs else "") + f"```sh\n{typed}\n```"


def _table(value: object, header: str) -> str:
    return _mapping(dict(leaves(value)), header)


def _mapping(values: Mapping[str, object], header: str) -> str:
    rows = "\n".join(f"| {name} | {cell(value)} |" for name, value in values.items())
    return f"| | {header} |\n|---|---|\n{rows}\n"


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f"{standard_error:.4f}"
