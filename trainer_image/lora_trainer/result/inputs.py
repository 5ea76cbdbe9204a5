"""What a run read, read afresh: its base model and the rows that it evaluates on."""

from lora_trainer.artifact.manifest import Manifest
from lora_trainer.contract.config import TrainConfig
from lora_trainer.data import dataset as datasets
from lora_trainer.data.store import Examples
from lora_trainer.data.survey import load_samples
from lora_trainer.errors import VerificationError
from lora_trainer.model.loading import load_encoder
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes


def base_and_rows(manifest: Manifest, volumes: Volumes, hub: Hub) -> tuple[Base, Examples]:
    """The base model and the evaluated rows of a run, read afresh. Raises `VerificationError` where either changed."""
    config = manifest.config
    base = find_base(_pinned(config.model.uri, manifest.base_revision), volumes, hub)
    if base.revision != manifest.base_revision:
        raise VerificationError(
            f"the base model is at {base.revision} now, the adapter was trained on {manifest.base_revision}: "
            "restore the model that was used"
        )
    examples, fingerprint = evaluation_rows(config, volumes, hub, base)
    if fingerprint != manifest.resolved.dataset_fingerprint:
        raise VerificationError(
            f"the data set {config.dataset.uri} has changed since the run ({fingerprint[:19]}… instead of "
            f"{manifest.resolved.dataset_fingerprint[:19]}…): restore the data that was used"
        )
    return base, examples


def _pinned(uri: str, revision: str) -> str:
    """The model's address at the commit that was used, whatever its branch points to by now."""
    return f"{uri.partition('@')[0]}@{revision}" if uri.startswith("hf://") else uri


def evaluation_rows(config: TrainConfig, volumes: Volumes, hub: Hub, base: Base) -> tuple[Examples, str]:
    """The rows that a run with this configuration evaluates on, read afresh, and the fingerprint of their data set."""
    samples = load_samples(config, volumes, hub)
    encoder = load_encoder(base, config.training.loss_on, config.training.max_sequence_length)
    return datasets.encode_evaluation(samples, encoder), samples.fingerprint
