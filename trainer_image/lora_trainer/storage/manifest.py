"""A result as a sealed folder: what its manifest says, and the digests that it vouches for."""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from lora_trainer.errors import DamagedError, storage_error
from lora_trainer.spec.advice import Advice
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.summary import Artifact, DatasetStats, ResolvedRun, Verification
from lora_trainer.storage.sealed import (
    MANIFEST,
    FileEntry,
    Seal,
    check_files,
    copied,
    entry_of,
    file_names,
    read_seal,
    sync,
    write_file,
    write_seal,
)

MANIFEST_VERSION = "lora-operator.io/adapter/v1"
MERGED_FOLDER = "merged"
"""Where the merged model is in a result that also holds the adapter."""
LOG = "train.log"


class Form(enum.StrEnum):
    """What a result's folder holds; of both, the adapter is at its root."""

    ADAPTER = "peft"
    MERGED = "merged"
    BOTH = "peft+merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What training and evaluation measured; the fields are those of the contract's `Results`."""

    steps: int
    trained_tokens: int
    train_loss: float
    eval_loss_before: float
    eval_loss_after: float
    eval_loss_before_standard_error: float | None = None
    eval_loss_after_standard_error: float | None = None
    improvement_standard_error: float | None = None
    held_out: bool
    duration_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    best_step: int | None = None
    stopped_early: bool = False
    resumed_step: int | None = None
    micro_batch_fill: float | None = None
    estimated_peak_memory_bytes: int | None = None
    estimated_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedModel:
    """How the merged model was checked: `loss` is its loss, `expected` that of the unquantized base model with the
    adapter beside it, over the same rows: those of the evaluation, or some where the GPU cannot hold either."""

    loss: float
    expected: float
    tolerance: float


_MUCH = 0.05
"""Share of the improvement that rounding may cost without a remedy being named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """`text` holds vLLM's flags where it can serve the adapter, else the reason why not and the way out.

    A path among the flags is relative to the adapter's folder. `rank` is the largest of the written adapter, 0 where
    there is none. `needs` is the oldest release that serves it rightly, empty where any does.
    """

    servable: bool
    text: str
    rank: int
    needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Seal):
    """`manifest.json`: what the result is, what it was made of and how, and the digest of each of its files.

    `noise` is that of the trained model's loss, in nats per token; `verification` what a fresh process made of the
    adapter, None before that. `merge_failure` says why an adapter is published without the merged model that was asked
    for. `advice` is what the training had to advise. `verbatim` is whether the first row was learned as it stands, with
    no chat template. `day` is what the chat template may have written into rows, None where it reads no clock.
    `dataset_revision` and `validation_revision` are the commits of data sets on the Hub.
    """

    version: str = MANIFEST_VERSION
    format: Form = Form.ADAPTER
    base_model: str
    base_revision: str
    config: TrainConfig
    resolved: ResolvedRun
    dataset: DatasetStats
    measured: Measured
    noise: float
    verification: Verification | None = None
    serving: Serving
    merged: MergedModel | None = None
    merge_failure: str | None = None
    advice: tuple[Advice, ...] = ()
    verbatim: bool
    day: date | None = None
    dataset_revision: str | None = None
    validation_revision: str | None = None
    versions: Mapping[str, str]

    @property
    def lost_by_rounding(self) -> str:
        """Which share of the improvement a merged model lost; empty where that is little, or nothing was merged."""
        gain = self.measured.eval_loss_before - self.measured.eval_loss_after
        cost = 0.0 if self.merged is None else self.merged.loss - self.merged.expected
        return f"{cost / gain:.0%} of the improvement" if gain > 0 and cost >= _MUCH * gain else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A result in its place. `digest` is `sha256:` of its manifest, or in a registry of the artefact's manifest there;
    `manifest` is set there alone, to the former; `folder` is set where it is on a volume."""

    uri: str
    digest: str
    folder: str | None = None
    manifest: str | None = None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an adapter. Raises `DamagedError`."""
    try:
        return read_seal(folder, Manifest, MANIFEST_VERSION)
    except OSError as error:
        raise DamagedError(f"{folder.name}/{MANIFEST} cannot be read: {error}") from error


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Digest and size of every file below `folder` but the manifest itself."""
    return tuple(entry_of(folder, name) for name in file_names(folder))


def write_sealed(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest over the files that are in `folder` now, everything forced to the disk. Raises `OSError`."""
    files = file_entries(folder)
    sync(*(folder / entry.path for entry in files))
    sealed = dataclasses.replace(manifest, files=files)
    write_seal(folder, sealed)
    return sealed


def finish(folder: Path, log: Path, verification: Verification | None) -> None:
    """Put the run's log as it is now, and what the verification found, into a result. Raises `StorageError`."""
    try:
        manifest = dataclasses.replace(read_manifest(folder), verification=verification)
        # A link on the claim could lead to any file of the pod, and have it published, or overwritten.
        if log.is_file() and not log.is_symlink():
            (folder / LOG).unlink(missing_ok=True)
            entries = {entry.path: entry for entry in manifest.files} | {LOG: write_file(folder, LOG, copied(log))}
            manifest = dataclasses.replace(manifest, files=tuple(entries[path] for path in sorted(entries)))
            sync(folder / LOG)
        write_seal(folder, manifest)
    except OSError as error:
        raise storage_error(error, LOG) from error


def check_digests(folder: Path, manifest: Manifest, *, log: bool = True) -> None:
    """Compare every file with the manifest, or all but the `log`. Raises `DamagedError` for what is changed, missing or
    added."""
    files = [entry for entry in manifest.files if log or entry.path != LOG]
    try:
        check_files(folder, files)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        name = Path(str(error.filename)).relative_to(folder)
        raise DamagedError(f"{name} is missing from the adapter: the manifest lists it") from error
    added = set(file_names(folder)) - {entry.path for entry in files} - (set() if log else {LOG})
    if added:
        raise DamagedError(f"{', '.join(sorted(added))} is not in the adapter's manifest: it was added later")


def is_complete(folder: Path, uid: str) -> bool:
    """Whether the folder holds a whole result of this run: its manifest, written last, and every file as listed.

    The log does not count: it is put there anew before each publication, and may have been cut off in that.
    """
    if run_of(folder) != uid:
        return False
    try:
        check_digests(folder, read_manifest(folder), log=False)
    except DamagedError:
        return False
    return True


def run_of(folder: Path) -> str | None:
    """The uid of the run that a folder's manifest names, whatever else it may hold."""
    try:
        return run_of_manifest((folder / MANIFEST).read_bytes())
    except OSError:
        return None


def run_of_manifest(text: bytes) -> str | None:
    """The uid of the run that a manifest's text names; None for anything else."""
    try:
        return str(json.loads(text)["config"]["run"]["uid"])
    except (ValueError, KeyError, TypeError):
        return None


def files_of_manifest(text: bytes) -> tuple[str, ...]:
    """The names of the files that a manifest's text lists. Raises `DamagedError`."""
    try:
        return tuple(str(entry["path"]) for entry in json.loads(text)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{MANIFEST} does not list the files of a result") from error


def loadable(base_model: str, base_revision: str) -> str:
    """Arguments of `from_pretrained` for a base model, as Python; of a model on a claim only its user has a path."""
    if base_revision.startswith("sha256:"):
        return '"path/of/the/base/model"'
    return f'"{base_model}", revision="{base_revision}"'


def manifest_digest(folder: Path) -> str:
    """`sha256:` of the manifest, which holds the sha256 of every file. Raises `OSError`."""
    return f"sha256:{hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}"


def describe(uri: str, digest: str, manifest: Manifest) -> Artifact:
    """The artifact as the summary reports it. Of both forms the merged model can be served, whatever the adapter is."""
    merged = manifest.format is not Form.ADAPTER
    return Artifact(
        uri=uri,
        digest=digest,
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        format=manifest.format.value,
        base_model=manifest.base_model,
        base_revision=manifest.base_revision,
        rank=manifest.serving.rank or manifest.config.lora.rank,
        servable=merged or manifest.serving.servable,
        serving="" if manifest.format is Form.MERGED else manifest.serving.text,
        serving_needs="" if manifest.format is Form.MERGED else manifest.serving.needs,
    )
