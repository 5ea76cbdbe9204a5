"""A result as an artefact in an OCI registry: blobs, manifest by digest, all pulled back, the tag last.

The layout is that of the ModelPack specification, one uncompressed layer for each file; the titles are those that ORAS
writes files by, so `oras pull` gives the folder back. A tag that names anything but this run's artefact stays as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.errors import StorageError, TransientError
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import OciUri
from lora_trainer.storage.manifest import Manifest, Published, check_digests, read_manifest
from lora_trainer.storage.oci import MANIFEST_TYPE, Blob, Registry
from lora_trainer.storage.roles import upload_failed
from lora_trainer.storage.sealed import MANIFEST, FileEntry, entry_of
from lora_trainer.storage.temporary import temporary_folder

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHTS_TYPE = "application/vnd.cncf.model.weight.v1.raw"
SETTINGS_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT_TYPE = "application/vnd.cncf.model.doc.v1.raw"
_LAYER_TYPES = {".safetensors": WEIGHTS_TYPE, ".md": DOCUMENT_TYPE, ".png": DOCUMENT_TYPE, ".log": DOCUMENT_TYPE}
TITLE = "org.opencontainers.image.title"
FILE_PATH = "org.cncf.model.filepath"
RUN = "io.lora-operator.run.uid"
_LONGEST_TAG = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class OciPublisher:
    """The `Publisher` of `oci://` for the run `uid`."""

    registry: Registry
    uri: OciUri
    uid: str

    def check(self) -> None:
        """Find a tag for the result, and begin and cancel an upload."""
        self._free_tag()
        self.registry.check_push()

    def published(self) -> Published | None:
        """The tag whose artefact names this run."""
        for tag in self._tags():
            content = self.registry.manifest(tag)
            if content is not None and _run_of(content) == self.uid:
                return self._described(tag, content)
        return None

    def publish(self, folder: Path) -> Published:
        """Upload, pull back, tag. Raises `StorageError` (`UploadFailed`), and `DamagedError` for a changed file."""
        manifest = read_manifest(folder)
        check_digests(folder, manifest)
        try:
            content = self._upload(folder, manifest)
            digest = _digest(content)
            self.registry.put_manifest(digest, content)
            self._check_pulled(digest, content)
            return self._tag(content)
        except TransientError as error:
            raise upload_failed(error) from error

    def fetch(self, published: Published, folder: Path) -> None:
        """Write every layer under its title."""
        content = self.registry.manifest(published.digest)
        if content is None:
            raise StorageError(f"output.uri is {published.uri}: the artifact is gone")
        for layer in json.loads(content)["layers"]:
            target = folder / layer["annotations"][TITLE]
            if not target.resolve().is_relative_to(folder.resolve()):
                raise StorageError(
                    f"output.uri is {published.uri}: {layer['annotations'][TITLE]} leads out of the folder"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                out.writelines(self.registry.blob(layer["digest"]))

    def _tags(self) -> tuple[str, str]:
        suffix = f"-{run_suffix(self.uid)}"
        return self.uri.tag, self.uri.tag[: _LONGEST_TAG - len(suffix)] + suffix

    def _free_tag(self) -> str:
        for tag in self._tags():
            content = self.registry.manifest(tag)
            if content is None or _run_of(content) == self.uid:
                return tag
        raise StorageError(
            f"output.uri {self.uri} and its tag {self._tags()[1]} both hold something already: nothing is overwritten"
        )

    def _tag(self, content: bytes) -> Published:
        """Tag last. There is no conditional tag: what another run tagged at the same moment is seen afterwards."""
        for _ in self._tags():
            tag = self._free_tag()
            self.registry.put_manifest(tag, content)
            if self.registry.manifest(tag) == content:
                return self._described(tag, content)
        raise StorageError(
            f"output.uri is {self.uri}: the tag points to something else right after it was written; another run "
            "writes it too",
            Reason.UPLOAD_FAILED,
        )

    def _described(self, tag: str, content: bytes) -> Published:
        digest = _digest(content)
        uri = f"oci://{self.uri.registry}/{self.uri.repository}:{tag}@{digest}"
        return Published(uri=uri, digest=digest, manifest=_manifest_in(content))

    def _upload(self, folder: Path, manifest: Manifest) -> bytes:
        """All blobs; the text of the artefact's manifest, the same for the same files."""
        blobs = {entry.path: _blob(entry) for entry in (*manifest.files, entry_of(folder, MANIFEST))}
        for name, blob in blobs.items():
            self.registry.put_blob(blob, folder / name)
        with temporary_folder("lora-oci-") as temporary:
            config = temporary / "config.json"
            config.write_text(_model_config(manifest, blobs), encoding="utf-8")
            config_blob = _blob(entry_of(temporary, config.name))
            self.registry.put_blob(config_blob, config)
        return _artefact(self.uid, manifest, config_blob, blobs)

    def _check_pulled(self, digest: str, content: bytes) -> None:
        if self.registry.manifest(digest) != content:
            message = f"output.uri is {self.uri}: the manifest {digest[:19]}… comes back with other bytes"
            raise StorageError(message, Reason.UPLOAD_FAILED)
        for layer in json.loads(content)["layers"]:
            self.registry.check_blob(layer["digest"])


def _blob(entry: FileEntry) -> Blob:
    return Blob(digest=f"sha256:{entry.sha256}", size_bytes=entry.size_bytes)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _run_of(content: bytes) -> str | None:
    try:
        return str(json.loads(content)["annotations"][RUN])
    except (ValueError, KeyError, TypeError):
        return None


def _manifest_in(content: bytes) -> str | None:
    """The digest of the result's own manifest in an artefact."""
    layers = json.loads(content).get("layers", ())
    found = (layer["digest"] for layer in layers if layer.get("annotations", {}).get(TITLE) == MANIFEST)
    return next(found, None)


def _model_config(manifest: Manifest, blobs: Mapping[str, Blob]) -> str:
    document = {
        "descriptor": {"name": manifest.config.run.name, "title": f"LoRA adapter for {manifest.base_model}"},
        "config": {"format": "safetensors", "precision": manifest.resolved.compute_dtype},
        "modelfs": {"type": "layers", "diffIds": [blob.digest for blob in blobs.values()]},
    }
    return json.dumps(document, sort_keys=True)


def _artefact(uid: str, manifest: Manifest, config: Blob, blobs: Mapping[str, Blob]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": _descriptor(CONFIG_TYPE, config),
        "layers": [
            _descriptor(_LAYER_TYPES.get(Path(name).suffix, SETTINGS_TYPE), blob)
            | {"annotations": {TITLE: name, FILE_PATH: name}}
            for name, blob in blobs.items()
        ],
        "annotations": {
            RUN: uid,
            TITLE: manifest.config.run.name,
            "io.lora-operator.base.model": manifest.base_model,
            "io.lora-operator.base.revision": manifest.base_revision,
        },
    }
    return json.dumps(document, sort_keys=True).encode()


def _descriptor(media_type: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size_bytes}
