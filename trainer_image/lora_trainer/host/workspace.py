"""The folder that a run works in: checkpoints, the result before its publication, and the lock.

On the run's checkpoint claim it is the one that `folder_of_run` names. Without a claim it is a temporary folder: then
nothing outlives the pod, and nothing is saved on the way.

Standard library only: the supervisor opens it without loading PyTorch.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.data.kept_rows import discard_rows, row_folders
from lora_trainer.errors import StorageError, storage_error
from lora_trainer.host.trackers import STATE
from lora_trainer.result.tensorboard import TENSORBOARD
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.uri import ClaimUri
from lora_trainer.storage.curve_records import METRICS
from lora_trainer.storage.lock import is_released
from lora_trainer.storage.manifest import LOG
from lora_trainer.storage.run_folders import folder_of_run
from lora_trainer.storage.volumes import Volumes

_ALONGSIDE = (LOG, METRICS, STATE, TENSORBOARD, "wandb")
"""What a run writes beside its checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A run's folder; `uri` is its address where it lies on a claim, else None: nothing in it outlives the pod."""

    folder: Path
    uri: ClaimUri | None

    @property
    def durable(self) -> bool:
        """Whether a later attempt will find what is written here."""
        return self.uri is not None

    @property
    def staged(self) -> Path:
        """Where the result grows; complete once it holds a manifest."""
        return self.folder / "staged"

    @property
    def merged(self) -> Path:
        """Where the merge stage makes another result of the staged one."""
        return self.folder / "merged"

    def discard_staged(self) -> None:
        """Remove the result before its publication. Raises `StorageError`."""
        clear(self.staged)
        self.discard_merged()

    def discard_merged(self) -> None:
        """Remove what the merge stage left. Raises `StorageError`."""
        clear(self.merged)

    def discard_rows(self) -> None:
        """Remove the encoded rows: the training is done, or will not be tried again."""
        discard_rows(self.folder)

    def remove_if_empty(self, *, tried_again: bool = True) -> None:
        """Remove a folder without checkpoint and result that nobody locks, once the own lock is released.

        Encoded rows alone are worth it where the run is `tried_again` by itself.
        """
        rows = () if tried_again else tuple(row_folders(self.folder))
        kept = any(_is_worth_keeping(entry) for entry in self.folder.iterdir() if entry not in rows)
        if self.durable and not kept and is_released(self.folder):
            clear(self.folder)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()


def _is_worth_keeping(entry: Path) -> bool:
    """A log or a curve alone is not: nobody could go on from it."""
    return not entry.name.startswith((".", "lock-")) and entry.name not in _ALONGSIDE


def clear(folder: Path, *, make: bool = False) -> None:
    """Remove a folder with what an attempt left there, or `make` it anew. Raises `StorageError`."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        if make:
            folder.mkdir(parents=True)
    except OSError as error:
        raise storage_error(error, f"the run's folder {folder.name}") from error


@contextlib.contextmanager
def open_workspace(config: TrainConfig, volumes: Volumes, temporary: Path | None = None) -> Iterator[Workspace]:
    """The run's folder, made where it is missing; `temporary` is where temporary folders go.

    Raises `StorageError` where the claim is not mounted or not writable, `ConfigError` for a symbolic link on the way.
    """
    claim = checkpoint_claim(config)
    if claim is None:
        with tempfile.TemporaryDirectory(prefix="lora-workspace-", dir=temporary) as name:
            yield Workspace(folder=Path(name), uri=None)
        return
    uri = folder_of_run(config, claim)
    folder = volumes.claim_path(uri)
    if volumes.claim_missing(uri):
        raise StorageError(f"the checkpoints go to {uri}: {volumes.not_mounted(uri)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, str(uri)) from error
    yield Workspace(folder=folder, uri=uri)
