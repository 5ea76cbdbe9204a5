"""What a run read: its base model and the rows that it evaluates on."""

import hashlib
from dataclasses import replace
from datetime import date
from pathlib import Path, PurePosixPath

from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.dataset import Data, encode, open_data
from lora_trainer.data.dataset_files import at_commits
from lora_trainer.data.store import Examples
from lora_trainer.data.survey import Sources, choose_rows, find_sources
from lora_trainer.errors import VerificationError
from lora_trainer.result.serving import TEMPLATE
from lora_trainer.spec.template_fields import template_config_map
from lora_trainer.spec.uri import at_commit
from lora_trainer.storage.base import Base, find_base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Manifest
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.objective import encoder_of
from lora_trainer.train.state import RunRecord


def base_and_rows(manifest: Manifest, volumes: Volumes, hub: Hub, data: Path | None = None) -> tuple[Base, Examples]:
    """The base model and the evaluated rows of a run: as it prepared them in the folder `data`, or anew
    where that is gone. Raises `VerificationError` where either changed."""
    config = manifest.config
    base = find_base(at_commit(config.model.uri, manifest.base_revision), volumes, hub)
    if base.revision != manifest.base_revision:
        raise VerificationError(
            f"the base model is at {base.revision} now, the adapter was trained on {manifest.base_revision}: "
            "restore the model that was used"
        )
    _check_template(manifest, volumes)
    if data is not None and data.is_dir():
        return base, open_data(data).evaluation
    sources = sources_of(manifest, volumes, hub)
    if sources.fingerprint != manifest.resolved.dataset_fingerprint:
        raise VerificationError(
            f"the data set {config.dataset.uri} has changed since the run ({sources.fingerprint[:19]}… instead of "
            f"{manifest.resolved.dataset_fingerprint[:19]}…): restore the data that was used"
        )
    return base, prepare_anew(manifest, sources, base, manifest.day, volumes).evaluation


def sources_of(run: Manifest | RunRecord, volumes: Volumes, hub: Hub) -> Sources:
    """The files that a run read, at its commits."""
    read = at_commits(run.config, run.dataset_revision, run.validation_revision, hub)
    return replace(find_sources(read.dataset, volumes, hub), dataset=run.config.dataset)


def prepare_anew(
    run: Manifest | RunRecord,
    sources: Sources,
    base: Base,
    day: date | None,
    volumes: Volumes,
    *,
    folder: Path | None = None,
) -> Data:
    """What a run prepared of its `sources`, where its chat template was given the `day`; in the empty `folder`, or in
    files that vanish with the process."""
    encoder = encoder_of(run.config, base, chosen_template(run.config.dataset, volumes, day))
    return encode(choose_rows(sources), encoder, folder)


def _check_template(manifest: Manifest, volumes: Volumes) -> None:
    """A chosen template has not changed since the run, whose manifest has the digest of its file."""
    config = manifest.config.dataset
    chosen = chosen_template(config, volumes)
    text = chosen.text if template_config_map(config.chat_template) else None
    used = [entry.sha256 for entry in manifest.files if PurePosixPath(entry.path).name == TEMPLATE]
    if text is not None and _digest(chosen.served(text)) not in used:
        raise VerificationError(
            f"dataset.chatTemplate is {config.chat_template}: the template has changed since the run: restore the one "
            f"that was used, {TEMPLATE} of the result"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
