"""A result on a PersistentVolumeClaim: moved into place in one step."""

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.artifact.files import sync_files, sync_folder
from lora_trainer.artifact.manifest import (
    MANIFEST,
    MARKER,
    Published,
    check_digests,
    manifest_digest,
    read_manifest,
    run_of,
)
from lora_trainer.contract.names import run_suffix
from lora_trainer.contract.uri import ClaimUri
from lora_trainer.errors import StorageError, storage_error
from lora_trainer.places.volumes import Volumes


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


def find_place(uid: str, uri: ClaimUri, volumes: Volumes) -> Place:
    """Resolve the output address. Raises `StorageError` where its claim is not mounted, `ConfigError` for links."""
    path = volumes.claim_path(uri)
    if volumes.claim_missing(uri):
        raise StorageError(f"output.uri is {uri}: {volumes.not_mounted(uri)}")
    suffix = run_suffix(uid)
    partial = path.with_name(f".{path.name}.{suffix}.partial")
    return Place(uri=uri, path=path, partial=partial, suffix=suffix, uid=uid)


def start_partial(place: Place) -> None:
    """Make the temporary folder, empty. What an earlier attempt of this run left is removed, nothing else ever is."""
    try:
        place.partial.parent.mkdir(parents=True, exist_ok=True)
        discard_partial(place)
        place.partial.mkdir()
        (place.partial / MARKER).write_text(place.uid, encoding="utf-8")
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
    """Whether the temporary folder is this run's: by its mark, by its manifest once the mark is taken away, or because
    a full disk or a kill left it before there was anything in the mark."""
    marker = place.partial / MARKER
    if marker.is_symlink():
        return False
    if marker.is_file():
        mark = marker.read_text(encoding="utf-8", errors="replace")
        return mark == place.uid or (not mark and len(list(place.partial.iterdir())) == 1)
    return run_of(place.partial) == place.uid or not any(place.partial.iterdir())


def published(place: Place) -> tuple[ClaimUri, Path] | None:
    """Where an earlier attempt of this very run already published its adapter."""
    for uri, path in ((place.uri, place.path), place.own):
        if (path / MANIFEST).is_file() and not path.is_symlink() and run_of(path) == place.uid:
            return uri, path
    return None


def publish(place: Place, folder: Path, *, keep: bool = False) -> tuple[ClaimUri, Path]:
    """Move `folder` into place in one step, beside what is there already; across volumes, or with `keep`, a verified
    copy of it. Where it is in place from a try that failed thereafter, it stays. Raises `StorageError`."""
    try:
        there = published(place)
        if there is not None and (not folder.exists() or manifest_digest(folder) == manifest_digest(there[1])):
            return there
        for uri, path in ((place.uri, place.path), place.own):
            if _free(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if keep or not _moved(folder, path):
                    _copy(place, folder, path)
                sync_folder(path.parent)
                return uri, path
    except OSError as error:
        raise storage_error(error, f"output.uri {place.uri}") from error
    raise StorageError(f"output.uri {place.uri} and {place.own[0]} both hold something already: nothing is overwritten")


def _moved(folder: Path, path: Path) -> bool:
    """Rename; False where the two are on different volumes."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def _copy(place: Place, folder: Path, path: Path) -> None:
    start_partial(place)
    shutil.copytree(folder, place.partial, dirs_exist_ok=True)
    (place.partial / MARKER).unlink()
    check_digests(place.partial, read_manifest(place.partial))
    sync_files(file for file in place.partial.rglob("*") if file.is_file())
    place.partial.rename(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSink:
    """The `Sink` of `pvc://`. With `keep` the folder that is published stays where it is."""

    place: Place
    keep: bool = False

    def check(self) -> None:
        """Make and remove the temporary folder."""
        start_partial(self.place)
        discard_partial(self.place)

    def published(self) -> Published | None:
        """Look at both names that the result can have."""
        found = published(self.place)
        return None if found is None else _described(*found)

    def publish(self, folder: Path) -> Published:
        """Move or copy; a copy that was cut short is removed."""
        try:
            uri, path = publish(self.place, folder, keep=self.keep)
        finally:
            discard_partial(self.place)
        return _described(uri, path)

    def fetch(self, published: Published, folder: Path) -> None:
        """Copy it."""
        shutil.copytree(str(published.folder), folder, dirs_exist_ok=True)


def _described(uri: ClaimUri, path: Path) -> Published:
    return Published(uri=str(uri), digest=manifest_digest(path), folder=str(path))


def _free(path: Path) -> bool:
    """Whether a rename would take the place of nothing, or of an empty folder."""
    return not path.is_symlink() and (not path.exists() or (path.is_dir() and not any(path.iterdir())))
