"""The tokenizer of a base model, from its files. Without PyTorch, which preflight does without."""

import contextlib
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from lora_trainer.data.chosen_template import Chosen
from lora_trainer.data.tokens import Encode, Encoder, one_by_one, stop_token_ids
from lora_trainer.distributed.libraries import importing_libraries
from lora_trainer.errors import ConfigError, one_sentence
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import Base
from lora_trainer.storage.base_architecture import positions_in
from lora_trainer.storage.model_folder import small_files
from lora_trainer.storage.sealed import entry_of

# Not SentencePiece's `tokenizer.model`: its library is in neither image.
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt")


def load_encoder(
    base: Base,
    loss_on: LossOn,
    max_length: int,
    chosen: Chosen = Chosen(),  # noqa: B008 - frozen
    *,
    encode: Encode = one_by_one,
) -> Encoder:
    """The base model's tokenizer, with a chosen chat template. Raises `ConfigError`."""
    # They stay what they are for a process that has them already.
    with contextlib.nullcontext() if "transformers" in sys.modules else importing_libraries():
        from transformers import AutoTokenizer  # noqa: PLC0415 - Transformers takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"model.uri is {base.name}: its tokenizer cannot be read ({one_sentence(error)[:300]})"
        ) from error
    # The run cuts rows itself and counts what it cut; the tokenizer's own limit would only warn.
    tokenizer.model_max_length = 2**31
    stops, digest = stop_token_ids(tokenizer, _generation_eos(base)), _digest(base.folder)
    limit = positions_in(base.folder)
    return Encoder(tokenizer, loss_on, max_length, stops, chosen, encode=encode, digest=digest, positions=limit)


def _digest(folder: Path) -> str:
    """Of all files but the weights: those of a large model on a claim take minutes, and no token depends on them."""
    entries = [asdict(entry_of(folder, name)) for name in small_files(folder)]
    return hashlib.sha256(json.dumps(entries).encode(errors="surrogatepass")).hexdigest()


def _generation_eos(base: Base) -> tuple[int, ...]:
    """End-of-turn ids that the model's generation configuration names (Gemma's `<end_of_turn>` stands only there)."""
    path = base.folder / "generation_config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"model.uri is {base.name}: its generation_config.json cannot be read") from error
    if isinstance(value, int):
        return (value,)
    return tuple(item for item in value if isinstance(item, int)) if isinstance(value, list) else ()


def check_tokenizer(base: Base, address: str) -> None:
    """The files of a tokenizer, as far as they can be checked without its library. Raises `ConfigError`."""
    if not any((base.folder / name).is_file() for name in _TOKENIZERS):
        raise ConfigError(
            f"model.uri is {address}: it has no tokenizer.json; add the one that save_pretrained of its fast tokenizer "
            "writes"
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        _check_json(base.folder / name, address)


def _check_json(path: Path, address: str) -> None:
    try:
        if path.is_file():
            json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"model.uri is {address}: its {path.name} is not JSON; copy or upload it again"
        raise ConfigError(message) from error
