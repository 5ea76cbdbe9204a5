"""Addresses to files: `pvc://claim/path` below the claims' folder, `configmap://name/key` below the ConfigMaps' folder.

Volumes hold what users put there. A link on a claim could lead a pod to files of the pod itself or of another
claim, so nothing below a claim is followed that is a symbolic link.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.errors import ConfigError, StorageError
from lora_trainer.spec.uri import ClaimUri, ConfigMapUri

CLAIMS = Path("/claims")
CONFIG_MAPS = Path("/configmaps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """Where the claims and ConfigMaps of the run's namespace are mounted, each in a folder of its name; `notes` is a
    folder in which the processes of a run's pod leave each other what they found out about these."""

    claims: Path = CLAIMS
    config_maps: Path = CONFIG_MAPS
    notes: Path | None = None

    def claim_path(self, uri: ClaimUri) -> Path:
        """The path of `uri`, which need not exist. Raises `ConfigError` where a part of it is a symbolic link."""
        path = self.claims
        for part in (uri.claim, *uri.path.split("/")):
            path = path / part
            if path.is_symlink():
                raise ConfigError(
                    f"{uri} leads through the symbolic link {part!r}: put the files themselves on the volume"
                )
        return path

    def config_map_path(self, uri: ConfigMapUri) -> Path:
        """The file of `uri`. The kubelet itself lays ConfigMaps out with links, which must stay inside the mount."""
        folder = self.config_maps / uri.name
        path = folder / uri.key
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{uri} leads out of its mount: put the data itself into the ConfigMap")
        return path

    def not_mounted(self, uri: ClaimUri) -> str:
        """The part of a sentence for a missing claim. It names the folder, which without a cluster is to be made."""
        sentence = f"the claim {uri.claim} is not mounted: there is no folder {self.claims / uri.claim}"
        hint = "; without a cluster, --claims DIR names the folder that holds one for each claim"
        return sentence if self.claims.is_dir() else sentence + hint

    def claim_missing(self, uri: ClaimUri) -> bool:
        """Whether the claim itself is not mounted."""
        return not (self.claims / uri.claim).is_dir()


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn a refusal of what is read inside into a sentence that begins with `what`. Raises `StorageError`."""
    try:
        yield
    except PermissionError as error:
        name = Path(str(error.filename)).name
        raise StorageError(
            f"{what}: {name} cannot be read: {error.strerror}; let user {os.geteuid()} of the trainer read it "
            "(chmod -R a+rX): on a claim that is only read, Kubernetes leaves the owners as they are"
        ) from error


def plain_files(folder: Path, address: str) -> tuple[Path, ...]:
    """The regular files directly in `folder`, by name. Raises `ConfigError` for a symbolic link among them."""
    entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.is_symlink():
            raise ConfigError(
                f"{address}/{entry.name} is a symbolic link: put the files themselves on the volume "
                "(a Hub download with --local-dir has none)"
            )
    return tuple(entry for entry in entries if entry.is_file())
