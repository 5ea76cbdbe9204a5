"""The inputs of a run into the cache, before a GPU is asked for: no PyTorch, no weights in memory."""

import logging

from lora_trainer.base import find_base
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.uri import ClaimUri, ConfigMapUri, parse_uri
from lora_trainer.dataset_files import locate, locate_validation
from lora_trainer.hub import Hub
from lora_trainer.volumes import Volumes

log = logging.getLogger(__name__)


def is_remote(config: TrainConfig) -> bool:
    """Whether anything has to be fetched. Raises `UriError`."""
    addresses = (config.model.uri, config.dataset.uri, config.dataset.validation_uri)
    return any(not isinstance(parse_uri(uri), ClaimUri | ConfigMapUri) for uri in addresses if uri is not None)


def prepare(config: TrainConfig, volumes: Volumes, hub: Hub) -> None:
    """Fetch model and data. Raises `TrainerError`."""
    files = locate(config.dataset, volumes, hub) + locate_validation(config.dataset, volumes, hub)
    base = find_base(config.model.uri, volumes, hub)
    log.info("%s at %s and %d files of data are at hand", base.name, base.revision, len(files))
