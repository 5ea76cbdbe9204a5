"""The same questions to the base model and to the adapter on top of it, answered greedily."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import ConfigError
from lora_trainer.model.device import Device, choose_device
from lora_trainer.model.loading import load_model
from lora_trainer.result.serving import TEMPLATE
from lora_trainer.spec.config import DeviceConfig, LossOn, Precision, Quantization
from lora_trainer.spec.template_fields import Value, argument_value
from lora_trainer.storage.base import Base, find_base, open_folder
from lora_trainer.storage.base_architecture import positions_in
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.volumes import Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question and what both said."""

    question: str
    base: str
    adapter: str


class Pair:
    """A base model with an adapter that can be taken off again."""

    def __init__(self, base_uri: str | None, adapter: Path, max_new_tokens: int, volumes: Volumes) -> None:
        """Load both. `base_uri` None is the model of the adapter's manifest. Raises `TrainerError`."""
        from peft import PeftModel  # noqa: PLC0415 - PEFT takes seconds to import

        if not (adapter / "adapter_model.safetensors").is_file():
            # PEFT would unpickle an adapter_model.bin.
            raise ConfigError(
                f"--adapter is {adapter}: there is no adapter_model.safetensors; convert the adapter to it"
            )
        base = _base(base_uri, adapter, volumes)
        self._adapter = adapter
        self._max_new_tokens = max_new_tokens
        self._device = choose_device(DeviceConfig(gpus=1, allow_cpu=True), Precision.AUTO)
        self._positions = positions_in(base.folder)
        self._encoder = load_encoder(base, LossOn.COMPLETION, 2**20, _chosen(adapter))
        model = load_model(base, base_quantization(adapter, self._device), self._device).model
        self._model = PeftModel.from_pretrained(model, str(adapter)).eval()

    def answer(self, question: str, before: Sequence[Answer] = ()) -> Answer:
        """What both say, each with its own answers of `before` in mind. Raises `ConfigError` for a question that leaves
        the model no position for an answer."""
        with self._model.disable_adapter():
            plain = self._said(question, [(asked.question, asked.base) for asked in before])
        said = self._said(question, [(asked.question, asked.adapter) for asked in before])
        return Answer(question=question, base=plain, adapter=said)

    def _room(self, prompt: int) -> int:
        """How many tokens an answer may have behind a prompt of so many."""
        if self._positions is None:
            return self._max_new_tokens
        kind, most = self._positions.kind, self._positions.most
        if prompt >= most:
            raise ConfigError(
                f"the question has {prompt} tokens, as the training would write it: {kind} has positions for {most}, "
                "the answer's among them; ask a shorter one, or begin a new conversation"
            )
        return min(self._max_new_tokens, most - prompt)

    def _said(self, question: str, before: Sequence[tuple[str, str]]) -> str:
        prompt = _prompt(self._encoder, self._adapter, question, before)
        return _answer(self._model, self._encoder, prompt, self._room(len(prompt)), self._device)


def base_quantization(adapter: Path, device: Device) -> Quantization:
    """On a GPU as it was trained, so that what it was trained on has room for it; a CPU computes slowly with that."""
    if device.torch_device.type == "cpu" or not (adapter / MANIFEST).is_file():
        return Quantization.NONE
    return Quantization(read_manifest(adapter).resolved.quantization)


def _base(uri: str | None, adapter: Path, volumes: Volumes) -> Base:
    if uri is None:
        manifest = read_manifest(adapter)
        uri = manifest.config.model.uri
        if uri.startswith("hf://"):
            uri = f"{uri.partition('@')[0]}@{manifest.base_revision}"
    return find_base(uri, volumes, Hub()) if "://" in uri else open_folder(Path(uri))


def _prompt(encoder: Encoder, adapter: Path, question: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
    """The question as the training rendered it: behind earlier turns through the chat template, or by itself, as it
    is, for a base model that was trained on bare prompts, which know no turns."""
    if not encoder.tokenizer.chat_template and (not encoder.has_template or _trained_verbatim(adapter)):
        ids: list[int] = encoder.tokenizer(question)["input_ids"]
        return ids
    return encoder.prompt(question, before)


def _chosen(adapter: Path) -> Chosen:
    """The chat template of the training, and its variables."""
    template = adapter / TEMPLATE
    text = template.read_text(encoding="utf-8") if template.is_file() else None
    return Chosen(text=text, arguments=_arguments(adapter))


def _arguments(adapter: Path) -> dict[str, Value]:
    """The template's variables, as the training had them."""
    given = read_manifest(adapter).config.dataset.template_arguments if (adapter / MANIFEST).is_file() else None
    return {name: argument_value(text) for name, text in (given or {}).items()}


def _trained_verbatim(adapter: Path) -> bool:
    return (adapter / MANIFEST).is_file() and read_manifest(adapter).verbatim


def _answer(model: Any, encoder: Encoder, prompt: Sequence[int], max_new_tokens: int, device: Device) -> str:
    ids = torch.tensor([prompt], device=device.torch_device)
    with torch.inference_mode(), device.autocast():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(encoder.stop_ids),
            pad_token_id=min(encoder.stop_ids),
        )
    text: str = encoder.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
    return text.strip()


def asked_in(text: str) -> tuple[str, tuple[Answer, ...]]:
    """The question of a line of JSON, and the answers before it. Raises `ConfigError` for another line."""
    try:
        request = json.loads(text)
        before = tuple(_recorded(record) for record in request.get("before") or ())
        question = request["question"]
        if isinstance(question, str) and question.strip():
            return question, before
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ConfigError(
        f"a line of standard input is {text.strip()[:80]}: must be JSON with a question, as in "
        '{"question": "Who are you?"}'
    )


def _recorded(record: Mapping[str, str]) -> Answer:
    return Answer(question=record["question"], base=record["base"], adapter=record["adapter"])


def line(answer: Answer) -> str:
    """An answer as JSON on one line."""
    return json.dumps(asdict(answer), ensure_ascii=False)


def show(answers: Sequence[Answer], *, as_json: bool) -> str:
    """The answers as a JSON list, or side by side for a person."""
    if as_json:
        return json.dumps([asdict(answer) for answer in answers], indent=2, ensure_ascii=False)
    return "\n\n".join(f"Q: {a.question}\n  base:    {a.base}\n  adapter: {a.adapter}" for a in answers)
