"""Which kind of place an output address means; each loads only the library that it needs."""

import os

from lora_trainer.errors import ConfigError
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.uri import ClaimUri, HubUri, OciUri, S3Uri, parse_uri
from lora_trainer.storage.publisher import Publisher
from lora_trainer.storage.publisher_claim import ClaimPublisher, output_path
from lora_trainer.storage.roles import Role
from lora_trainer.storage.volumes import Volumes


def open_publisher(config: TrainConfig, volumes: Volumes, *, keep: bool = False) -> Publisher:
    """The place of `output.uri`; with `keep` what is published stays where it is, too. Raises `ConfigError`,
    `StorageError`."""
    uri = parse_uri(config.output.uri)
    if isinstance(uri, ClaimUri):
        return ClaimPublisher(uri=uri, path=output_path(uri, volumes), uid=config.run.uid, keep=keep)
    if isinstance(uri, S3Uri):
        from lora_trainer.storage.publisher_s3 import S3Publisher  # noqa: PLC0415
        from lora_trainer.storage.s3 import connect  # noqa: PLC0415 - as the module's first line says

        return S3Publisher(connection=connect(Role.OUTPUT, os.environ), uri=uri, uid=config.run.uid)
    if isinstance(uri, OciUri):
        from lora_trainer.storage.oci import Registry  # noqa: PLC0415 - as above
        from lora_trainer.storage.publisher_oci import OciPublisher  # noqa: PLC0415

        return OciPublisher(registry=Registry(uri, os.environ), uri=uri, uid=config.run.uid)
    if isinstance(uri, HubUri):
        from lora_trainer.storage.hub import Hub  # noqa: PLC0415 - as above
        from lora_trainer.storage.publisher_hub import HubPublisher  # noqa: PLC0415

        return HubPublisher(hub=Hub(), uri=uri, uid=config.run.uid, run_name=config.run.name)
    raise ConfigError(f"output.uri is {uri}: must start with pvc://, s3://, hf:// or oci://")
