"""What a run read: its base model and the rows that it evaluates on."""

import hashlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

from lora_trainer.artifact.manifest import Manifest
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.template_fields import template_config_map
from lora_trainer.contract.uri import at_commit
from lora_trainer.data import dataset as datasets
from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.dataset_files import at_commits
from lora_trainer.data.store import Examples
from lora_trainer.data.survey import Samples, load_samples
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import VerificationError
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.result.serving import TEMPLATE
from lora_trainer.training.objective import encoder_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What a run evaluates on: `samples` are its rows in their files, `examples` the evaluated ones as token ids, which
    `encoder` made."""

    samples: Samples
    examples: Examples
    encoder: Encoder


def base_and_rows(manifest: Manifest, volumes: Volumes, hub: Hub, data: Path | None = None) -> tuple[Base, Examples]:
    """The base model and the evaluated rows of a run: what it prepared in the folder `data`, or read afresh where that
    is gone. Raises `VerificationError` where either changed."""
    config = manifest.config
    base = find_base(at_commit(config.model.uri, manifest.base_revision), volumes, hub)
    if base.revision != manifest.base_revision:
        raise VerificationError(
            f"the base model is at {base.revision} now, the adapter was trained on {manifest.base_revision}: "
            "restore the model that was used"
        )
    _check_template(manifest, volumes)
    if data is not None and data.is_dir():
        prepared = datasets.open_data(data)
        fingerprint, examples = prepared.fingerprint, prepared.evaluation
    else:
        read = at_commits(config, manifest.dataset_revision, manifest.validation_revision, hub)
        rows = evaluation_rows(read, volumes, hub, base, manifest.day)
        fingerprint, examples = rows.samples.sources.fingerprint, rows.examples
    if fingerprint != manifest.resolved.dataset_fingerprint:
        raise VerificationError(
            f"the data set {config.dataset.uri} has changed since the run ({fingerprint[:19]}… instead of "
            f"{manifest.resolved.dataset_fingerprint[:19]}…): restore the data that was used"
        )
    return base, examples


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


def evaluation_rows(config: TrainConfig, volumes: Volumes, hub: Hub, base: Base, day: date | None = None) -> Evaluated:
    """The rows that a run with this configuration evaluates on, read afresh; its chat template is given the `day`."""
    samples = load_samples(config, volumes, hub)
    encoder = encoder_of(config, base, chosen_template(config.dataset, volumes, day))
    return Evaluated(samples=samples, examples=datasets.encode_evaluation(samples, encoder), encoder=encoder)
