"""The base model's files: found, pinned to a commit, checked to be safetensors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.errors import ConfigError, NotFoundError
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import ClaimUri, HubUri, S3Uri, parse_uri
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.lock import held
from lora_trainer.storage.model_folder import check_folder, claim_files, model_files
from lora_trainer.storage.roles import Role
from lora_trainer.storage.volumes import Volumes, readable


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
    files = claim_files(uri, volumes)
    return _checked(volumes.claim_path(uri), name=str(uri), revision=_digest_once(files, volumes), address=str(uri))


def _from_bucket(uri: S3Uri, hub: Hub) -> Base:
    from lora_trainer.storage.s3_source import fetch_folder  # noqa: PLC0415 - a quarter second that other runs do not pay

    fetched = fetch_folder(uri, Role.MODEL, lambda names: model_files(names, str(uri)), hub.environment)
    return _checked(fetched.folder, name=str(uri), revision=fetched.revision, address=str(uri))


def open_folder(folder: Path) -> Base:
    """A model folder on this machine. Raises as `find_base`."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a folder", Reason.MODEL_NOT_FOUND)
    files = tuple(sorted(path for path in folder.iterdir() if path.is_file()))
    model_files([file.name for file in files], str(folder))
    return _checked(folder, name=str(folder), revision=_digest(files), address=str(folder))


def _checked(folder: Path, *, name: str, revision: str, address: str) -> Base:
    return Base(folder=folder, name=name, revision=revision, model_type=check_folder(folder, address))


def _digest_once(files: Sequence[Path], volumes: Volumes) -> str:
    """As `_digest`, which one process of a pod computes for all of its stages: of a large model that takes minutes. A
    file that was replaced meanwhile is read again."""
    if volumes.notes is None:
        return _digest(files)
    stats = [(file.name, found.st_ino, found.st_size, found.st_mtime_ns) for file in files for found in (file.stat(),)]
    note = volumes.notes / f"digest-{hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}"
    if not note.exists():
        with held(note.with_suffix(".lock"), f"the digest of {files[0].parent}"):
            if not note.exists():
                draft = note.with_suffix(".partial")
                draft.write_text(_digest(files), encoding="ascii")
                draft.rename(note)
    return note.read_text(encoding="ascii")


def _digest(files: Sequence[Path]) -> str:
    """`sha256:` over names and bytes of the files: a folder on a volume has no commit that would pin it."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
