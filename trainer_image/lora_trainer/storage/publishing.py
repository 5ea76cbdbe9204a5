"""Publishing a finished result again or elsewhere, without a run: `lora-trainer publish`."""

import dataclasses
from pathlib import Path

from lora_trainer.errors import ConfigError
from lora_trainer.spec.uri import ClaimUri, HubUri, OciUri, S3Uri, UriError, parse_uri
from lora_trainer.storage.manifest import Published, check_digests, manifest_digest, read_manifest
from lora_trainer.storage.outputs import open_publisher
from lora_trainer.storage.volumes import Volumes


def publish_folder(folder: Path, address: str, volumes: Volumes) -> Published:
    """Put a verified result that lies in `folder` at `address`, under the run that its manifest names.

    The folder stays as it is. Where the address holds this very result already, it stays the only one. Raises
    `ConfigError`, also where it holds another one of the run, such as its merged model, `VerificationError` where a
    file is not what the manifest says, and the errors of a sink.
    """
    try:
        uri = parse_uri(address)
    except UriError as error:
        raise ConfigError(f"{address}: {error}") from error
    if not isinstance(uri, ClaimUri | S3Uri | HubUri | OciUri):
        raise ConfigError(f"{address}: must start with pvc://, s3://, hf:// or oci://")
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    config = manifest.config
    output = dataclasses.replace(config.output, uri=address)
    publisher = open_publisher(dataclasses.replace(config, output=output), volumes, keep=True)
    there, digest = publisher.published(), manifest_digest(folder)
    if there is None:
        return publisher.publish(folder)
    found = there.manifest or there.digest
    if found != digest:
        raise ConfigError(
            f"{there.uri} holds another result of the run {config.run.name} already, whose manifest.json "
            f"has {found[:19]}… and not {digest[:19]}…: nothing is overwritten; name another address"
        )
    return there
