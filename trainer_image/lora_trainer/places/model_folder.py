"""A base model's folder: what of it a model needs, and what is wrong with it that its files show.

Standard library only: supervisor and commands look before a stage spends seconds on its imports.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lora_trainer.artifact.tensor_files import entries_of, header_bytes
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.uri import ClaimUri, parse_uri
from lora_trainer.errors import ConfigError, NotFoundError
from lora_trainer.places.volumes import Volumes, plain_files, readable

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_SMALL = (".json", ".jinja", ".model", ".txt")


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
    model_files([file.name for file in files], str(uri))
    return files


def model_files(names: Sequence[str], address: str) -> tuple[str, ...]:
    """Of a repository's files those that a model needs: configuration, tokenizer, safetensors. Raises where none."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if "config.json" not in top:
        raise NotFoundError(
            f"model.uri is {address}: it has no config.json, so it is no Transformers model; name another one",
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
    return tuple(sorted({*weights, *small}))


def check_folder(folder: Path, address: str) -> str:
    """The model's type, by its configuration; the weights must be whole and unquantized. Raises `ConfigError`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.uri is {address}: its config.json is no configuration with a model_type") from error
    if config.get("quantization_config"):
        raise ConfigError(
            f"model.uri is {address}: its weights are already quantized; "
            "name the original model and use quantization: NF4"
        )
    _check_shards(folder, config.get("transformers_weights"), address)
    _check_whole(folder, address)
    return str(model_type)


def _check_shards(folder: Path, explicit: object, address: str) -> None:
    """Weights that configuration and indexes point to must be safetensors beside them: what is elsewhere was not
    checked, and is not pinned. Raises `ConfigError`."""
    pointers = [("config.json", explicit)] if explicit is not None else []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"model.uri is {address}: its {index.name} is no index of weights") from error
        pointers += [(index.name, shard) for shard in shards]
    for source, name in pointers:
        if not isinstance(name, str) or "/" in name or not name.endswith((".safetensors", ".safetensors.index.json")):
            raise ConfigError(
                f"model.uri is {address}: its {source} names the weights {str(name)[:100]!r}; "
                "they must be safetensors files in the same folder"
            )
        if not (folder / name).is_file():
            raise ConfigError(
                f"model.uri is {address}: its {source} names {name}, which is not there; copy or upload the whole model"
            )


def _check_whole(folder: Path, address: str) -> None:
    """Each file of weights must be as long as its header says. Raises `ConfigError`."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as stream:
                header = header_bytes(stream)
            entries = entries_of(header)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"model.uri is {address}: its {path.name} is no safetensors file, or cut off in its header; copy or "
                "upload it again"
            ) from error
        expected = len(header) + sum(entry.size_bytes for entry in entries)
        found = path.stat().st_size
        if found != expected:
            raise ConfigError(
                f"model.uri is {address}: its {path.name} has {found} bytes, its header says {expected}: it is cut "
                "off or damaged; copy or upload it again"
            )
