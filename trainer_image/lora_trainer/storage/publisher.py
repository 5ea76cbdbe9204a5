"""Where a result goes: what every kind of place can do.

A place shows a result whole or not at all. Files go under a temporary name, are verified there, and become visible
last, in one step. What the place holds of others is never overwritten; a run that finds the address taken goes beside
it, to `<address>-<suffix of the run>`. Publishing the same result twice ends with one result.
"""

from pathlib import Path
from typing import Protocol

from lora_trainer.storage.manifest import Published


class Publisher(Protocol):
    """One kind of place, opened for one run."""

    def check(self) -> None:
        """Ask, before hours of training, whether the place can be reached and written with this run's credentials.

        Raises `AccessDeniedError`, `NotFoundError`, `StorageError`, `TransientError`.
        """

    def published(self) -> Published | None:
        """What an earlier attempt of this very run published already. Raises as `check`."""

    def publish(self, folder: Path) -> Published:
        """Put the files of `folder`, whose manifest.json lists them, into place; on a volume they are moved.

        Raises as `check`, and `StorageError` with the reason `UploadFailed`.
        """

    def fetch(self, published: Published, folder: Path) -> None:
        """Bring what was published back into an empty `folder`. Raises as `check`."""
