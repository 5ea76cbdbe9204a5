"""A result in a bucket: every object verified by reading it back, the manifest last.

S3 has no rename. An object appears whole or not at all, and a folder of them is a result once its manifest.json is
there; until then a mark says whose it is. What an interrupted attempt left is completed by the next, which removes what
it does not need of that.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3
from minio.error import MinioException, S3Error

from lora_trainer.errors import StorageError, TransientError, one_sentence
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import S3Uri
from lora_trainer.storage.manifest import (
    Manifest,
    Published,
    files_of_manifest,
    manifest_digest,
    read_manifest,
    run_of_manifest,
)
from lora_trainer.storage.network import ATTEMPTS
from lora_trainer.storage.roles import upload_failed
from lora_trainer.storage.s3 import PART_BYTES, Connection, Item
from lora_trainer.storage.sealed import MANIFEST

log = logging.getLogger(__name__)
_CHUNK_BYTES = 2**20
_UPLOADS = 2
"""How often an object is sent whose bytes come back changed."""
_MARK = ".run"
"""The object that names the run whose result is on its way; never a part of it."""
_SENT_AS = "lora-sent-as"
"""Metadata of an object: which run sent it under which key. Nothing else is ever removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Publisher:
    """The `Publisher` of `s3://` for the run `uid`."""

    connection: Connection
    uri: S3Uri
    uid: str

    def check(self) -> None:
        """Write this run's mark where the result would go, and remove it: until the end the place is anybody's."""
        place = self._take()
        if len(self.connection.items(place)) == 1:
            self._remove_mark(place)

    def published(self) -> Published | None:
        """The place whose manifest names this run."""
        for place in self._places():
            text = self.connection.read(_below(place, MANIFEST))
            if text is not None and run_of_manifest(text) == self.uid:
                return Published(uri=str(place), digest=f"sha256:{hashlib.sha256(text).hexdigest()}")
        return None

    def publish(self, folder: Path) -> Published:
        """Upload and verify each file, then the manifest. Raises `StorageError` (`UploadFailed`)."""
        manifest = read_manifest(folder)
        try:
            place = self._take()
            self._abort_leftovers(place)
            self._upload_all(place, folder, manifest)
        except TransientError as error:
            raise upload_failed(error) from error
        return Published(uri=str(place), digest=manifest_digest(folder))

    def fetch(self, published: Published, folder: Path) -> None:
        """Download what the manifest lists. Raises `StorageError` for a key that leads out of the folder."""
        place = next(place for place in self._places() if str(place) == published.uri)
        folder.mkdir(parents=True, exist_ok=True)
        # Others may have added to it, and an interrupted attempt.
        listed = self._listed(place, files_of_manifest(self.connection.read(_below(place, MANIFEST)) or b""))
        for item in (item for item in self.connection.items(place) if item.key in listed):
            target = folder / item.key.removeprefix(f"{place.key}/")
            if not target.resolve().is_relative_to(folder.resolve()):
                raise StorageError(f"output.uri is {published.uri}: {item.key} leads out of the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.connection.download(place, item, target)

    def _places(self) -> tuple[S3Uri, S3Uri]:
        """The address asked for, and the one that this run alone has."""
        return self.uri, S3Uri(bucket=self.uri.bucket, key=f"{self.uri.key}-{run_suffix(self.uid)}")

    def _take(self) -> S3Uri:
        for place in self._places():
            if self._mark(place):
                return place
        first, second = self._places()
        raise StorageError(f"output.uri {first} and {second} both hold something already: nothing is overwritten")

    def _mark(self, place: S3Uri) -> bool:
        """Whether the place is this run's: it was, or it was empty and the mark could be written before any other's."""
        mark = _below(place, _MARK)
        owner = self.connection.read(mark)
        if owner is not None:
            return owner.decode(errors="replace") == self.uid
        taken = self.connection.items(place)
        if taken:
            text = self.connection.read(_below(place, MANIFEST))
            return text is not None and run_of_manifest(text) == self.uid
        with self.connection.sentences(place):
            try:
                self._put_mark(mark, {"If-None-Match": "*"})
            except S3Error as error:
                if error.code == "NotImplemented":
                    self._put_mark(mark, {})
                elif error.code not in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise
        return self.connection.read(mark) == self.uid.encode()

    def _put_mark(self, mark: S3Uri, condition: dict[str, str]) -> None:
        # The client's public call takes no conditions.
        self.connection.client._put_object(mark.bucket, mark.key, self.uid.encode(), headers=dict(condition))

    def _abort_leftovers(self, place: S3Uri) -> None:
        """End uploads that a killed attempt of this run began: their parts are paid for and seen by nobody.

        These are rights of their own, which the result needs not.
        """
        with self.connection.sentences(place):
            client = self.connection.client
            try:
                found = client._list_multipart_uploads(place.bucket, prefix=f"{place.key}/")
                for upload in found.uploads:
                    client._abort_multipart_upload(place.bucket, upload.object_name, str(upload.upload_id))
            except MinioException as error:
                log.warning(
                    "what an interrupted upload may have left in %s stays there: %s", place, one_sentence(error)
                )

    def _upload_all(self, place: S3Uri, folder: Path, manifest: Manifest) -> None:
        there = {item.key: item for item in self.connection.items(place)}
        for entry in manifest.files:
            target = _below(place, entry.path)
            self._upload(target, folder / entry.path, entry.sha256, there.get(target.key))
        self._remove_stale(place, there.keys() - self._listed(place, [entry.path for entry in manifest.files]))
        target = _below(place, MANIFEST)
        sha256 = manifest_digest(folder).removeprefix("sha256:")
        self._upload(target, folder / MANIFEST, sha256, there.get(target.key))
        self._remove_mark(place)

    def _listed(self, place: S3Uri, files: Iterable[str]) -> set[str]:
        """Keys of a result with these files."""
        return {_below(place, name).key for name in (*files, MANIFEST)}

    def _remove_stale(self, place: S3Uri, keys: Iterable[str]) -> None:
        """Remove those that an interrupted attempt of this run sent, and that the result does not have."""
        for key in sorted(keys):
            with self.connection.sentences(place):
                try:
                    found = self.connection.client.stat_object(place.bucket, key).metadata or {}
                    said = {name.lower(): value for name, value in found.items()}.get(f"x-amz-meta-{_SENT_AS}")
                    if said == self._sent_as(key):
                        self.connection.client.remove_object(place.bucket, key)
                except MinioException as error:
                    log.warning("%s, which is not part of the result, stays in %s: %s", key, place, one_sentence(error))

    def _sent_as(self, key: str) -> str:
        return hashlib.sha256(f"{self.uid} {key}".encode()).hexdigest()

    def _remove_mark(self, place: S3Uri) -> None:
        with self.connection.sentences(place):
            try:
                self.connection.client.remove_object(place.bucket, _below(place, _MARK).key)
            except S3Error as error:
                log.warning("the mark %s stays in %s: %s", _MARK, place, error.code)

    def _upload(self, target: S3Uri, path: Path, sha256: str, there: Item | None) -> None:
        """Send one file until it reads back as sent; not at all where an earlier attempt's does."""
        size = path.stat().st_size
        if there is not None and there.size_bytes == size and self._sha256(target) == sha256:
            return
        for _ in range(_UPLOADS):
            with self.connection.sentences(target):
                self.connection.client.fput_object(
                    target.bucket,
                    target.key,
                    str(path),
                    part_size=PART_BYTES,
                    metadata={_SENT_AS: self._sent_as(target.key)},
                )
            if self._sha256(target) == sha256:
                return
        raise StorageError(
            f"output.uri is {self.uri}: {target.key} reads back with another sha256 than it was sent with; "
            "the next attempt uploads it again",
            Reason.UPLOAD_FAILED,
        )

    def _sha256(self, target: S3Uri) -> str:
        """Of what comes back, which is asked for again where it is cut off."""
        for attempt in range(1, ATTEMPTS + 1):
            digest = hashlib.sha256()
            with self.connection.sentences(target):
                try:
                    for chunk in _content(self.connection, target):
                        digest.update(chunk)
                except (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError):
                    if attempt == ATTEMPTS:
                        raise
                else:
                    return digest.hexdigest()
        raise AssertionError("unreachable: the last attempt returns or raises")


def _content(connection: Connection, target: S3Uri) -> Iterator[bytes]:
    response = connection.client.get_object(target.bucket, target.key)
    try:
        yield from response.stream(_CHUNK_BYTES)
    finally:
        response.close()
        response.release_conn()


def _below(place: S3Uri, name: str) -> S3Uri:
    return S3Uri(bucket=place.bucket, key=f"{place.key}/{name}")
