"""What a base model is, by its configuration and the headers of its weights: no weight is read or fetched for it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.errors import ConfigError
from lora_trainer.spec.uri import ClaimUri, HubUri, S3Uri, parse_uri
from lora_trainer.storage.base import Base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.model_folder import (
    check_configuration,
    check_folder,
    claim_files,
    model_files,
    read_tensors,
    tensors_in,
    weight_files,
)
from lora_trainer.storage.network import RemoteFile
from lora_trainer.storage.roles import Role
from lora_trainer.storage.tensor_files import PREFIX_BYTES, Entry, header_length
from lora_trainer.storage.volumes import Volumes, readable

MOST_HEADER_BYTES = 2**24
"""Of a header that is fetched: some 100,000 tensors in one file. A longer one is refused unread."""

_AT_ONCE = 8
"""Files whose headers are fetched at the same time."""

_CONFIG = ("config.json",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHeaders:
    """A model without its weights. `base` has its small files in its folder, and an empty revision where the model lies
    on a claim: only the digest of all its bytes would be one. `tensors` are those of each file of weights."""

    base: Base
    tensors: Mapping[str, tuple[Entry, ...]]

    @property
    def parameters(self) -> int:
        """Numbers that the files hold."""
        return sum(entry.values for entries in self.tensors.values() for entry in entries)

    @property
    def weight_bytes(self) -> int:
        """Bytes of these numbers."""
        return sum(entry.size_bytes for entries in self.tensors.values() for entry in entries)


def read_headers(address: str, volumes: Volumes, hub: Hub, *, tokenizer: bool = True) -> ModelHeaders:
    """Look at the model at an address, of which only small files are fetched; without `tokenizer` only those that say
    what the weights are. Raises as `find_base`."""
    uri = parse_uri(address)
    wanted = _small if tokenizer else _describing
    if isinstance(uri, HubUri):
        return _of_hub(uri, hub, wanted)
    if isinstance(uri, S3Uri):
        return _of_bucket(uri, hub, wanted)
    if not isinstance(uri, ClaimUri):
        raise ConfigError(f"model.uri is {uri}: must start with hf://, s3:// or pvc://")
    with readable(f"model.uri is {uri}"):
        return _of_claim(uri, volumes)


def _small(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.endswith(".safetensors"))


def _describing(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in _CONFIG or name.endswith(".safetensors.index.json"))


def _of_claim(uri: ClaimUri, volumes: Volumes) -> ModelHeaders:
    folder = volumes.claim_path(uri)
    names = [file.name for file in claim_files(uri, volumes)]
    base = Base(folder=folder, name=str(uri), revision="", model_type=check_folder(folder, str(uri)))
    tensors = {name: read_tensors(folder / name, str(uri)) for name in weight_files(folder, names)}
    return ModelHeaders(base=base, tensors=tensors)


def _of_hub(uri: HubUri, hub: Hub, wanted: Callable[[Sequence[str]], Sequence[str]]) -> ModelHeaders:
    repository = hub.repository(uri, Role.MODEL)
    names = model_files(repository.files, str(uri))
    folder = hub.download(uri, repository, wanted(names), complete=False)
    found = _Found(folder=folder, names=names, name=uri.repo, revision=repository.commit, address=str(uri))
    return _look(found, lambda name: hub.remote_file(uri, repository, name))


def _of_bucket(uri: S3Uri, hub: Hub, wanted: Callable[[Sequence[str]], Sequence[str]]) -> ModelHeaders:
    from lora_trainer.storage import s3_source  # noqa: PLC0415 - a quarter second that other runs do not pay

    connection, listed = s3_source.list_folder(uri, Role.MODEL, hub.environment)
    items = {name: listed[name] for name in model_files(sorted(listed), str(uri))}
    small = {name: items[name] for name in wanted(tuple(items))}
    folder = s3_source.fetch(connection, uri, small, hub.environment).folder
    revision, address = s3_source.revision_of(items), str(uri)
    found = _Found(folder=folder, names=tuple(items), name=address, revision=revision, address=address)
    return _look(found, lambda name: connection.remote_file(uri, items[name]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A remote model: `names` of all its files, of which the small ones are in `folder`."""

    folder: Path
    names: Collection[str]
    name: str
    revision: str
    address: str


def _look(model: _Found, locate: Callable[[str], RemoteFile]) -> ModelHeaders:
    model_type = check_configuration(model.folder, model.address, model.names)

    def tensors(file: str) -> tuple[Entry, ...]:
        # In a cache that was filled, or where the Hub may not be asked, the file itself lies beside the others.
        if (model.folder / file).is_file():
            return read_tensors(model.folder / file, model.address)
        remote = locate(file)
        return tensors_in(fetch_header(remote, file, model.address), file, remote.size_bytes, model.address)

    files = weight_files(model.folder, model.names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = dict(zip(files, pool.map(tensors, files), strict=True))
    base = Base(folder=model.folder, name=model.name, revision=model.revision, model_type=model_type)
    return ModelHeaders(base=base, tensors=found)


def fetch_header(file: RemoteFile, name: str, address: str) -> bytes:
    """The header of a remote file with the eight bytes before it, and nothing of the tensors. Raises `ConfigError`
    where it says that it is longer than it can be."""
    size_bytes = MOST_HEADER_BYTES + PREFIX_BYTES if file.size_bytes is None else file.size_bytes
    prefix = file.read(0, min(PREFIX_BYTES, size_bytes))
    try:
        length = header_length(prefix)
    except ValueError as error:
        raise ConfigError(
            f"model.uri is {address}: its {name} is not a safetensors file; copy or upload it again"
        ) from error
    most = min(size_bytes - PREFIX_BYTES, MOST_HEADER_BYTES)
    if length > most:
        raise ConfigError(
            f"model.uri is {address}: its {name} says that its header has {length:,} bytes: it must have at most "
            f"{most:,}, as no file of this size has more; copy or upload it again"
        )
    return prefix + file.read(PREFIX_BYTES, length)
