"""A base model's folder: what of it a model needs, and what is wrong with it that its files show.

Standard library only: supervisor and commands look before a stage spends seconds on its imports.
"""

import contextlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from lora_trainer.errors import ConfigError, NotFoundError
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import ClaimUri, parse_uri
from lora_trainer.storage.tensor_files import Entry, entries_of, header_bytes
from lora_trainer.storage.volumes import Volumes, plain_files, readable

_WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_SMALL = (".json", ".jinja", ".model", ".txt")
_TERMS = re.compile(r"(.*[-_ ])?(licen[cs]es?|notices?|copying|copyright|use[-_ ]policy)([-_. ].*)?", re.IGNORECASE)
_TERMS_SUFFIX = re.compile(r"(\.(md|pdf|rst|rtf|html|[\d.]+))?", re.IGNORECASE)
MORE_TEMPLATES = "additional_chat_templates"
"""The folder in which Transformers looks for chat templates beside the default one, as for conversations with tools."""


def check_on_claim(uri_text: str, volumes: Volumes) -> None:
    """Look at a model on a claim; one that lies elsewhere is looked at when it is fetched. Raises `ConfigError`,
    `NotFoundError`, `StorageError`."""
    uri = parse_uri(uri_text)
    if isinstance(uri, ClaimUri):
        with readable(f"model.uri is {uri}"):
            claim_files(uri, volumes)
            check_folder(volumes.claim_path(uri), str(uri))


def claim_files(uri: ClaimUri, volumes: Volumes) -> tuple[Path, ...]:
    """The files of a model on a claim. Raises `NotFoundError`, `ConfigError`."""
    path = volumes.claim_path(uri)
    if not path.is_dir():
        what = volumes.not_mounted(uri) if volumes.claim_missing(uri) else "there is no such folder"
        raise NotFoundError(f"model.uri is {uri}: {what}", Reason.MODEL_NOT_FOUND)
    files = plain_files(path, str(uri))
    if (path / MORE_TEMPLATES).is_dir():
        plain_files(path / MORE_TEMPLATES, f"{uri}/{MORE_TEMPLATES}")
    model_files([file.name for file in files], str(uri))
    return files


def model_files(names: Sequence[str], address: str) -> tuple[str, ...]:
    """Of a repository's files those that a model needs: configuration, tokenizer, safetensors, and the terms that it is
    passed on with. Raises where none."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if "config.json" not in top:
        raise NotFoundError(
            f"model.uri is {address}: it has no config.json, so it is not a Transformers model; name another one",
            Reason.MODEL_NOT_FOUND,
        )
    if "adapter_config.json" in top:
        # Transformers would load the adapter along, or the weights of the model that it names instead of these.
        raise ConfigError(
            f"model.uri is {address}: it holds an adapter (adapter_config.json), so it would not be the base model "
            "alone; name the base model, or merge the adapter into it and remove its files"
        )
    if not weights:
        pickles = [name for name in top if PurePosixPath(name).suffix in _PICKLES]
        what = (
            f"only pickled weights ({pickles[0]}), which can run code when read"
            if pickles
            else "no safetensors weights"
        )
        raise ConfigError(f"model.uri is {address}: it has {what}; convert the model to safetensors")
    small = [name for name in top if name.endswith(_SMALL)]
    templates = [name for name in names if PurePosixPath(name).parent == PurePosixPath(MORE_TEMPLATES)]
    found = {*weights, *small, *(name for name in templates if name.endswith(".jinja")), *filter(is_terms, top)}
    # First what only those get who are granted access, which is tried with it: a license may be for everyone.
    return "config.json", *sorted(found - {"config.json"})


def is_terms(name: str) -> bool:
    """Whether a file holds a license or notice, which most licenses want beside the weights, and which is not a part of
    the model. Those that end in .txt have always counted as a part."""
    suffix = PurePosixPath(name).suffix
    return _TERMS.fullmatch(name) is not None and _TERMS_SUFFIX.fullmatch(suffix) is not None


def files_in(folder: Path) -> list[str]:
    """The files of a model's folder by name, with its further chat templates."""
    files = (path for path in (*folder.iterdir(), *(folder / MORE_TEMPLATES).glob("*.jinja")) if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def small_files(folder: Path) -> list[str]:
    """Of these all but weights and terms: what makes rows of text tokens is among them."""
    return [name for name in files_in(folder) if name.endswith(_SMALL)]


def check_folder(folder: Path, address: str) -> str:
    """The model's type, by its configuration; the weights must be whole and unquantized. Raises `ConfigError`."""
    model_type = check_configuration(folder, address, [path.name for path in folder.iterdir() if path.is_file()])
    for path in sorted(folder.glob("*.safetensors")):
        read_tensors(path, address)
    return model_type


def check_configuration(folder: Path, address: str, names: Collection[str]) -> str:
    """The model's type, by its configuration; `names` are all its files, which need not be in `folder`. Raises
    `ConfigError`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"model.uri is {address}: its config.json is not a configuration with a model_type"
        raise ConfigError(message) from error
    if config.get("quantization_config"):
        raise ConfigError(
            f"model.uri is {address}: its weights are already quantized; name a copy whose weights are in 16 bits, "
            "with quantization: Auto"
        )
    _check_shards(folder, config.get("transformers_weights"), address, names)
    return str(model_type)


def _check_shards(folder: Path, explicit: object, address: str, names: Collection[str]) -> None:
    """Weights that configuration and indexes point to must be safetensors beside them: what is elsewhere was not
    checked, and is not pinned. Raises `ConfigError`."""
    pointers = [("config.json", explicit)] if explicit is not None else []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"model.uri is {address}: its {index.name} is not an index of weights") from error
        pointers += [(index.name, shard) for shard in shards]
    for source, name in pointers:
        if not isinstance(name, str) or "/" in name or not name.endswith((".safetensors", ".safetensors.index.json")):
            raise ConfigError(
                f"model.uri is {address}: its {source} names the weights {str(name)[:100]!r}; "
                "they must be safetensors files in the same folder"
            )
        if name not in names:
            raise ConfigError(
                f"model.uri is {address}: its {source} names {name}, which is not there; copy or upload the whole model"
            )


def read_tensors(path: Path, address: str) -> tuple[Entry, ...]:
    """What a file of weights holds, by its header. Raises `ConfigError`."""
    header = b""
    with path.open("rb") as stream, contextlib.suppress(ValueError):
        header = header_bytes(stream)
    return tensors_in(header, path.name, path.stat().st_size, address)


def tensors_in(header: bytes, name: str, size_bytes: int | None, address: str) -> tuple[Entry, ...]:
    """The tensors of a file of weights, which must be as long as its header says, if its size is known. Raises
    `ConfigError`."""
    try:
        entries = entries_of(header)
    except ValueError as error:
        raise ConfigError(
            f"model.uri is {address}: its {name} is not a safetensors file, or cut off in its header; copy or upload "
            "it again"
        ) from error
    expected = len(header) + sum(entry.size_bytes for entry in entries)
    if size_bytes is not None and size_bytes != expected:
        raise ConfigError(
            f"model.uri is {address}: its {name} has {size_bytes} bytes, its header says {expected}: it is cut off or "
            "damaged; copy or upload it again"
        )
    return entries


def weight_files(folder: Path, names: Collection[str]) -> tuple[str, ...]:
    """Of a model's files, `names`, those that Transformers reads weights from: one, or those of the index in `folder`.

    The index has been checked.
    """
    index = folder / f"{_WEIGHTS}.index.json"
    if _WEIGHTS not in names and index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return tuple(sorted(set(shards)))
    every = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("consolidated"))
    return (_WEIGHTS,) if _WEIGHTS in every else tuple(every)


def weights_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that Transformers reads a model's weights from, and not those that repeat them."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return tuple(folder / name for name in weight_files(folder, names))
