"""Which kind of place an output address means; each loads only the library that it needs."""

import os

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.uri import ClaimUri, HubUri, OciUri, S3Uri, parse_uri
from lora_trainer.errors import ConfigError
from lora_trainer.places.roles import Role
from lora_trainer.places.sink_claim import ClaimSink, output_path
from lora_trainer.places.sinks import Sink
from lora_trainer.places.volumes import Volumes


def open_sink(config: TrainConfig, volumes: Volumes, *, keep: bool = False) -> Sink:
    """The place of `output.uri`; with `keep` what is published stays where it is, too. Raises `ConfigError`,
    `StorageError`."""
    uri = parse_uri(config.output.uri)
    if isinstance(uri, ClaimUri):
        return ClaimSink(uri=uri, path=output_path(uri, volumes), uid=config.run.uid, keep=keep)
    if isinstance(uri, S3Uri):
        from lora_trainer.places.s3 import connect  # noqa: PLC0415 - as the module's first line says
        from lora_trainer.places.sink_s3 import S3Sink  # noqa: PLC0415

        return S3Sink(connection=connect(Role.OUTPUT, os.environ), uri=uri, uid=config.run.uid)
    if isinstance(uri, OciUri):
        from lora_trainer.places.oci import Registry  # noqa: PLC0415 - as above
        from lora_trainer.places.sink_oci import OciSink  # noqa: PLC0415

        return OciSink(registry=Registry(uri, os.environ), uri=uri, uid=config.run.uid)
    if isinstance(uri, HubUri):
        from lora_trainer.places.hub import Hub  # noqa: PLC0415 - as above
        from lora_trainer.places.sink_hub import HubSink  # noqa: PLC0415

        return HubSink(hub=Hub(), uri=uri, uid=config.run.uid, run_name=config.run.name)
    raise ConfigError(f"output.uri is {uri}: must start with pvc://, s3://, hf:// or oci://")
