"""A result on a PersistentVolumeClaim: moved into place in one step."""

import contextlib
import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.errors import StorageError, storage_error
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.uri import ClaimUri
from lora_trainer.storage.manifest import Published, manifest_digest, read_manifest, run_of
from lora_trainer.storage.sealed import MANIFEST, aside, compare, copied, sync, write_files
from lora_trainer.storage.volumes import Volumes


def output_path(uri: ClaimUri, volumes: Volumes) -> Path:
    """Where an output goes. Raises `StorageError` where its claim is not mounted, `ConfigError` for links."""
    path = volumes.claim_path(uri)
    if volumes.claim_missing(uri):
        raise StorageError(f"output.uri is {uri}: {volumes.not_mounted(uri)}")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPublisher:
    """The `Publisher` of `pvc://` for the run `uid`. With `keep` the folder that is published stays where it is."""

    uri: ClaimUri
    path: Path
    uid: str
    keep: bool = False

    def check(self) -> None:
        """Make and remove the temporary folder."""
        try:
            with self._aside():
                pass
        except OSError as error:
            raise storage_error(error, f"output.uri {self.uri}") from error

    def published(self) -> Published | None:
        """Look at both names that the result can have."""
        for uri, path in self._places():
            if (path / MANIFEST).is_file() and not path.is_symlink() and run_of(path) == self.uid:
                return _described(uri, path)
        return None

    def publish(self, folder: Path) -> Published:
        """Rename it, beside what is there already; across volumes, or with `keep`, a copy that was read back.

        Where it is in place from a try that failed thereafter, it stays.
        """
        try:
            there = self.published()
            if there is not None and (not folder.exists() or manifest_digest(folder) == there.digest):
                return there
            for uri, path in self._places():
                if _free(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if self.keep or not _moved(folder, path):
                        self._copy(folder, path)
                    sync(path.parent)
                    return _described(uri, path)
        except OSError as error:
            raise storage_error(error, f"output.uri {self.uri}") from error
        (first, _), (second, _) = self._places()
        raise StorageError(f"output.uri {first} and {second} both hold something already: nothing is overwritten")

    def fetch(self, published: Published, folder: Path) -> None:
        """Copy it."""
        shutil.copytree(str(published.folder), folder, dirs_exist_ok=True)

    def _places(self) -> tuple[tuple[ClaimUri, Path], tuple[ClaimUri, Path]]:
        """The address asked for, and the one that this run alone has."""
        suffix = f"-{run_suffix(self.uid)}"
        own = ClaimUri(claim=self.uri.claim, path=f"{self.uri.path}{suffix}")
        return (self.uri, self.path), (own, self.path.with_name(f"{self.path.name}{suffix}"))

    def _aside(self) -> contextlib.AbstractContextManager[Path]:
        """By a name that this run alone has: of an attempt that was killed nothing stays."""
        return aside(self.path, f"{run_suffix(self.uid)}.partial")

    def _copy(self, folder: Path, path: Path) -> None:
        wanted = read_manifest(folder).files
        files = {name: copied(folder / name) for name in (*(entry.path for entry in wanted), MANIFEST)}
        with self._aside() as partial:
            for found, entry in zip(write_files(partial, files), wanted, strict=False):
                compare(found, entry)
            partial.rename(path)


def _moved(folder: Path, path: Path) -> bool:
    """Rename; False where the two are on different volumes."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def _described(uri: ClaimUri, path: Path) -> Published:
    return Published(uri=str(uri), digest=manifest_digest(path), folder=str(path))


def _free(path: Path) -> bool:
    """Whether a rename would take the place of nothing, or of an empty folder."""
    return not path.is_symlink() and (not path.exists() or (path.is_dir() and not any(path.iterdir())))
