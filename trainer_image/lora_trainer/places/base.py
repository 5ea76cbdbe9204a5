"""The base model's files: found, pinned to a commit, checked to be safetensors."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_trainer.artifact.tensor_files import entries_of, header_bytes
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.uri import ClaimUri, HubUri, S3Uri, parse_uri
from lora_trainer.errors import ConfigError, NotFoundError
from lora_trainer.places.hub import Hub
from lora_trainer.places.roles import Role
from lora_trainer.places.volumes import Volumes, plain_files, readable

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_SMALL = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A model folder. `name` is the repository or the folder's address, `revision` its commit or its files' digest."""

    folder: Path
    name: str
    revision: str
    model_type: str


def find_base(uri_text: str, volumes: Volumes, hub: Hub) -> Base:
    """Locate and, for `hf://`, download. Raises `ConfigError`, `NotFoundError` and the errors of the Hub."""
    uri = parse_uri(uri_text)
    if isinstance(uri, HubUri):
        repository = hub.repository(uri, Role.MODEL)
        wanted = model_files(repository.files, str(uri))
        folder = hub.download(uri, repository, wanted)
        return _checked(folder, name=uri.repo, revision=repository.commit, address=str(uri))
    if isinstance(uri, S3Uri):
        return _from_bucket(uri, hub)
    if not isinstance(uri, ClaimUri):
        raise ConfigError(f"model.uri is {uri}: must start with hf://, s3:// or pvc://")
    with readable(f"model.uri is {uri}"):
        return _from_claim(uri, volumes)


def _from_claim(uri: ClaimUri, volumes: Volumes) -> Base:
    path = volumes.claim_path(uri)
    if not path.is_dir():
        what = volumes.not_mounted(uri) if volumes.claim_missing(uri) else "there is no such folder"
        raise NotFoundError(f"model.uri is {uri}: {what}", Reason.MODEL_NOT_FOUND)
    files = plain_files(path, str(uri))
    model_files([file.name for file in files], str(uri))
    return _checked(path, name=str(uri), revision=_digest(files), address=str(uri))


def _from_bucket(uri: S3Uri, hub: Hub) -> Base:
    from lora_trainer.places.s3_source import fetch_folder  # noqa: PLC0415 - a quarter second that other runs do not pay

    fetched = fetch_folder(uri, Role.MODEL, lambda names: model_files(names, str(uri)), hub.environment)
    return _checked(fetched.folder, name=str(uri), revision=fetched.revision, address=str(uri))


def open_folder(folder: Path) -> Base:
    """A model folder on this machine. Raises as `find_base`."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is no folder", Reason.MODEL_NOT_FOUND)
    files = tuple(sorted(path for path in folder.iterdir() if path.is_file()))
    model_files([file.name for file in files], str(folder))
    return _checked(folder, name=str(folder), revision=_digest(files), address=str(folder))


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


def _checked(folder: Path, *, name: str, revision: str, address: str) -> Base:
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
    return Base(folder=folder, name=name, revision=revision, model_type=str(model_type))


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


def _digest(files: Sequence[Path]) -> str:
    """`sha256:` over names and bytes of the files: a folder on a volume has no commit that would pin it."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
