"""The adapter as a folder: its manifest, its digests, the temporary folder it grows in, and its place on the volume.

Standard library only: the supervisor publishes without loading PyTorch.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.contract import codec
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.names import run_suffix
from lora_trainer.contract.summary import Artifact, DatasetStats, ResolvedRun
from lora_trainer.contract.uri import ClaimUri
from lora_trainer.errors import StorageError, VerificationError, storage_error
from lora_trainer.volumes import Volumes

MANIFEST = "manifest.json"
MANIFEST_VERSION = "lora-operator.io/adapter/v1"
MAX_SERVABLE_RANK = 512
"""The largest value of vLLM's `--max-lora-rank`."""
_MARKER = ".run"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the adapter."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What training and evaluation measured; the fields are those of the contract's `Results`."""

    steps: int
    trained_tokens: int
    train_loss: float
    eval_loss_before: float
    eval_loss_after: float
    eval_loss_before_standard_error: float
    eval_loss_after_standard_error: float
    improvement_standard_error: float
    held_out: bool
    duration_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`manifest.json`: what the adapter is, what it was made of and how, and the digest of each of its files."""

    version: str = MANIFEST_VERSION
    base_model: str
    base_revision: str
    config: TrainConfig
    resolved: ResolvedRun
    dataset: DatasetStats
    measured: Measured
    versions: Mapping[str, str]
    files: tuple[FileEntry, ...]

    def to_json(self) -> str:
        """Stable text."""
        return json.dumps(codec.encode(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an adapter. Raises `VerificationError`."""
    try:
        return codec.decode(Manifest, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise VerificationError(f"{folder.name}/{MANIFEST} cannot be read: {error}") from error


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Digest and size of every file of the adapter but the manifest itself."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in (MANIFEST, _MARKER))
    return tuple(_entry(folder, name) for name in names)


def _entry(folder: Path, name: str) -> FileEntry:
    with (folder / name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(path=name, sha256=digest, size_bytes=(folder / name).stat().st_size)


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest. Raises `VerificationError` for what is changed, missing or added."""
    found = {entry.path: entry for entry in file_entries(folder)}
    for wanted in manifest.files:
        entry = found.pop(wanted.path, None)
        if entry is None:
            raise VerificationError(f"{wanted.path} is missing from the adapter: the manifest lists it")
        if entry != wanted:
            raise VerificationError(
                f"{wanted.path} has sha256 {entry.sha256[:12]}… and {entry.size_bytes} bytes, the manifest says "
                f"{wanted.sha256[:12]}… and {wanted.size_bytes}: the file was changed or damaged after it was written"
            )
    if found:
        raise VerificationError(f"{', '.join(sorted(found))} is not in the adapter's manifest: it was added later")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run's adapter goes: the address asked for, its path, and the temporary folder beside it."""

    uri: ClaimUri
    path: Path
    partial: Path
    suffix: str
    uid: str

    @property
    def own(self) -> tuple[ClaimUri, Path]:
        """The address that this run alone has, taken where the one asked for holds something already."""
        name = f"{self.path.name}-{self.suffix}"
        return ClaimUri(claim=self.uri.claim, path=f"{self.uri.path}-{self.suffix}"), self.path.with_name(name)


def find_place(config: TrainConfig, uri: ClaimUri, volumes: Volumes) -> Place:
    """Resolve the output address. Raises `StorageError` where its claim is not mounted, `ConfigError` for links."""
    path = volumes.claim_path(uri)
    if volumes.claim_missing(uri):
        raise StorageError(f"output.uri is {uri}: {volumes.not_mounted(uri)}")
    suffix = run_suffix(config.run.uid)
    partial = path.with_name(f".{path.name}.{suffix}.partial")
    return Place(uri=uri, path=path, partial=partial, suffix=suffix, uid=config.run.uid)


def start_partial(place: Place) -> None:
    """Make the temporary folder, empty. What an earlier attempt of this run left is removed, nothing else ever is."""
    try:
        place.partial.parent.mkdir(parents=True, exist_ok=True)
        discard_partial(place)
        place.partial.mkdir()
        (place.partial / _MARKER).write_text(place.uid, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, f"output.uri {place.uri}") from error


def discard_partial(place: Place) -> None:
    """Remove this run's temporary folder. Raises `StorageError` where the folder is not this run's."""
    if not place.partial.is_dir() or place.partial.is_symlink():
        return
    if not _is_own(place):
        raise StorageError(f"{place.partial.name} beside {place.uri} belongs to another run: move it away by hand")
    shutil.rmtree(place.partial)


def _is_own(place: Place) -> bool:
    """Whether the temporary folder is this run's: by its mark, by its manifest once `publish` took the mark away, or
    because a full disk or a kill left it before there was anything in the mark."""
    marker = place.partial / _MARKER
    if marker.is_symlink():
        return False
    if marker.is_file():
        mark = marker.read_text(encoding="utf-8", errors="replace")
        return mark == place.uid or (not mark and len(list(place.partial.iterdir())) == 1)
    return _uid(place.partial) == place.uid or not any(place.partial.iterdir())


def published(place: Place) -> tuple[ClaimUri, Path] | None:
    """Where an earlier attempt of this very run already published its adapter."""
    for uri, path in ((place.uri, place.path), place.own):
        if (path / MANIFEST).is_file() and not path.is_symlink() and _uid(path) == place.uid:
            return uri, path
    return None


def _uid(folder: Path) -> str | None:
    """The run that a folder's manifest names, whatever else it may hold."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return str(document["config"]["run"]["uid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def publish(place: Place) -> tuple[ClaimUri, Path]:
    """Move the temporary folder into place in one step, beside what is there already. Raises `StorageError`."""
    try:
        (place.partial / _MARKER).unlink(missing_ok=True)
        for uri, path in ((place.uri, place.path), place.own):
            if _free(path):
                place.partial.rename(path)
                sync_folder(path.parent)
                return uri, path
    except OSError as error:
        raise storage_error(error, f"output.uri {place.uri}") from error
    raise StorageError(f"output.uri {place.uri} and {place.own[0]} both hold something already: nothing is overwritten")


def _free(path: Path) -> bool:
    """Whether a rename would take the place of nothing, or of an empty folder."""
    return not path.is_symlink() and (not path.exists() or (path.is_dir() and not any(path.iterdir())))


def sync_files(paths: Iterable[Path]) -> None:
    """Force files to the disk: a manifest must never outlive the files that it vouches for."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    sync_files((folder,))


def loadable(base_model: str, base_revision: str) -> str:
    """Arguments of `from_pretrained` for a base model, as Python; of a model on a claim only its user has a path."""
    if base_revision.startswith("sha256:"):
        return '"path/of/the/base/model"'
    return f'"{base_model}", revision="{base_revision}"'


def describe(uri: ClaimUri, folder: Path, manifest: Manifest) -> Artifact:
    """The artifact as the summary reports it."""
    rank = manifest.config.lora.rank
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return Artifact(
        uri=str(uri),
        digest=f"sha256:{digest}",
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        format="peft",
        base_model=manifest.base_model,
        base_revision=manifest.base_revision,
        rank=rank,
        servable=rank <= MAX_SERVABLE_RANK,
    )
