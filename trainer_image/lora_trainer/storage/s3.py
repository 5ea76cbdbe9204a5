"""A bucket behind the S3 protocol: credentials and endpoint from the environment, every failure a sentence.

`AWS_ENDPOINT_URL_S3` and `AWS_REGION` name the server. Credentials are the section's own (`MODEL_AWS_ACCESS_KEY_ID` and
so on), else the plain `AWS_ACCESS_KEY_ID`, else the pod's workload identity, else none: public buckets need none.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import minio
import urllib3
from minio.credentials.providers import IamAwsProvider, Provider, StaticProvider
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from lora_trainer.errors import ConfigError, StorageError, TrainerError, TransientError, discreet, one_sentence
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import S3Uri
from lora_trainer.storage.downloads import fetch_whole
from lora_trainer.storage.network import RemoteFile, http_pool, read_part, refused_certificate
from lora_trainer.storage.roles import Role, or_in_environment, unreachable

log = logging.getLogger(__name__)
PART_BYTES = 16 * 2**20
"""Size of the parts that a larger file is uploaded in; a part that fails is sent again alone."""
_MD5 = re.compile(r"[0-9a-f]{32}")
_IDENTITY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_BAD_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidSecurity")
_DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "MethodNotAllowed")
_FULL = ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "NoSpaceLeft")
_WRONG_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An object: its key, size, and the ETag, which changes with the content."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How a server is reached: `client` for the calls, `anonymous` and `role` for the sentences."""

    client: minio.Minio
    role: Role
    anonymous: bool

    @contextlib.contextmanager
    def sentences(self, uri: S3Uri) -> Iterator[None]:
        """Turn what the calls inside raise into the trainer's errors."""
        try:
            yield
        except (MinioException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise self._explain(error, uri) from error

    def item(self, uri: S3Uri) -> Item | None:
        """The object at an address, None where there is none."""
        with self.sentences(uri):
            try:
                found = self.client.stat_object(uri.bucket, uri.key)
            except S3Error as error:
                if error.code != "NoSuchKey":
                    raise
                self._check_bucket(error, uri)
                return None
        return Item(key=uri.key, size_bytes=found.size or 0, etag=_bare(found.etag))

    def _check_bucket(self, error: S3Error, uri: S3Uri) -> None:
        """A HEAD has no body: a missing bucket looks like a missing object until the bucket is asked for."""
        if not self.client.bucket_exists(uri.bucket):
            raise self._explain_absence(error, uri, "NoSuchBucket")

    def items(self, uri: S3Uri) -> tuple[Item, ...]:
        """All objects below an address taken as a folder."""
        return tuple(entry for entry in self._listed(uri, recursive=True) if not entry.key.endswith("/"))

    def folder(self, uri: S3Uri) -> tuple[Item, ...]:
        """What lies directly below an address taken as a folder: objects, and folders, whose keys end in a slash."""
        return tuple(entry for entry in self._listed(uri, recursive=False) if entry.key != f"{uri.key}/")

    def _listed(self, uri: S3Uri, *, recursive: bool) -> list[Item]:
        with self.sentences(uri):
            found = self.client.list_objects(uri.bucket, prefix=f"{uri.key}/", recursive=recursive)
            return [Item(key=str(e.object_name), size_bytes=e.size or 0, etag=_bare(e.etag)) for e in found]

    def read(self, uri: S3Uri, *, limit_bytes: int = 64 * 2**20) -> bytes | None:
        """A small object's content, None where there is none."""
        with self.sentences(uri):
            try:
                response = self.client.get_object(uri.bucket, uri.key)
            except S3Error as error:
                if error.code == "NoSuchKey":
                    return None
                raise
            with contextlib.closing(response):
                return response.read(limit_bytes)

    def remote_file(self, uri: S3Uri, item: Item) -> RemoteFile:
        """An object to read parts of."""

        def read(start: int, count: int) -> bytes:
            with self.sentences(uri):
                return read_part(lambda: self._open(uri, item, start, count), start, count)

        return RemoteFile(size_bytes=item.size_bytes, read=read)

    def download(self, uri: S3Uri, item: Item, target: Path, may_write: Callable[[], None] = lambda: None) -> None:
        """Fetch an object whole, going on where an earlier attempt was cut. It gets its name once it was checked;
        `may_write` as of `fetch_whole`.

        Raises `TransientError` where the bytes keep missing or are not those of the ETag.
        """
        partial = partial_of(target)
        what = f"{self.role.field} is {uri}: {item.key}"
        with self.sentences(uri):
            fetch_whole(
                partial, item.size_bytes, lambda have: self._open(uri, item, have), what=what, may_write=may_write
            )
        if _MD5.fullmatch(item.etag) and _md5(partial) != item.etag and not self._is_encrypted(uri, item):
            partial.unlink()
            raise TransientError(f"{self.role.field} is {uri}: {item.key} arrived with other bytes than its ETag says")
        may_write()
        partial.rename(target)

    def _open(self, uri: S3Uri, item: Item, have: int, count: int = 0) -> urllib3.BaseHTTPResponse:
        match: dict[str, str | list[str] | tuple[str]] = {"If-Match": f'"{item.etag}"'}
        return self.client.get_object(uri.bucket, item.key, offset=have, length=count, request_headers=match)

    def _is_encrypted(self, uri: S3Uri, item: Item) -> bool:
        """Whether the server encrypts the object with a key of its own, so that the ETag is no MD5 of the content."""
        with self.sentences(uri):
            headers = self.client.stat_object(uri.bucket, item.key).metadata or {}
        return any("server-side-encryption" in name.lower() for name in headers)

    def _explain(self, error: Exception, uri: S3Uri) -> TrainerError:
        where = f"{self.role.field} is {uri}"
        code = error.code if isinstance(error, S3Error) else ""
        status = _status(error)
        if code in _BAD_CREDENTIALS or code in _DENIED or (not code and status in (401, 403)):
            return self._explain_denial(error, uri, code or str(status))
        if code in ("NoSuchBucket", "NoSuchKey"):
            return self._explain_absence(error, uri, code)
        if code in _FULL or status == 507:
            return StorageError(
                f"{where}: the bucket is full ({code or status}); free space there", Reason.STORAGE_FULL
            )
        if code in _WRONG_REGION:
            return ConfigError(f"{where}: the bucket is in another region ({code}); set AWS_REGION (s3Region)")
        if code == "PreconditionFailed":
            return TransientError(f"{where}: {_key_of(error, uri)} was changed while it was read")
        detail = f"the server answered {code or status}" if code or status else one_sentence(error)[:200]
        unavailable = f"{detail}; {unreachable(self.role, 'AWS_ENDPOINT_URL_S3', 'config.s3Endpoint')}"
        return TransientError(f"{where}: {refused_certificate(error) or unavailable}")

    def _explain_denial(self, error: Exception, uri: S3Uri, code: str) -> TrainerError:
        where = f"{self.role.field} is {uri}"
        secret = f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the Secret of {self.role.section}.secretRef"
        if code in _BAD_CREDENTIALS:
            return self.role.denied(
                f"{where}: the server does not accept the credentials ({code}); check {secret}"
                f"{or_in_environment('them')}"
            )
        whose = "without credentials" if self.anonymous else "with these credentials"
        right = "write and list" if self.role is Role.OUTPUT else "read and list"
        return self.role.denied(
            f"{where}: the server denies access to {_key_of(error, uri)} {whose} ({code}); check {secret}, and that "
            f"they may {right} in bucket {uri.bucket}{or_in_environment('them')}"
        )

    def _explain_absence(self, error: Exception, uri: S3Uri, code: str) -> TrainerError:
        where = f"{self.role.field} is {uri}"
        if code == "NoSuchKey":
            return self.role.missing(f"{where}: there is no object {_key_of(error, uri)} in bucket {uri.bucket}")
        return self.role.missing(
            f"{where}: there is no bucket {uri.bucket} at this server; check its name and AWS_ENDPOINT_URL_S3 "
            "(s3Endpoint of the operator), or create it"
        )


def connect(role: Role, environment: Mapping[str, str], *, backoff_s: float = 0.5) -> Connection:
    """The server that the environment names, with the credentials of `role`. Raises `ConfigError`."""
    text = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
        raise ConfigError(
            f"AWS_ENDPOINT_URL_S3 is {discreet(text)}: must be http://host:port or https://host:port, without a path"
        )
    credentials = _credentials(role, environment)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if region is None and not parts.hostname.endswith(".amazonaws.com"):
        region = "us-east-1"
    client = minio.Minio(
        endpoint=parts.netloc,
        secure=parts.scheme == "https",
        region=region,
        credentials=credentials,
        http_client=http_pool(text, backoff_s=backoff_s, ca_variable="AWS_CA_BUNDLE"),
    )
    return Connection(client=client, role=role, anonymous=credentials is None)


def _credentials(role: Role, environment: Mapping[str, str]) -> Provider | None:
    for prefix in (role.prefix, ""):
        # What was read from a file often ends with a newline.
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        access, secret, session = (environment.get(f"{prefix}{name}", "").strip() for name in names)
        if bool(access) != bool(secret):
            lacking = "AWS_SECRET_ACCESS_KEY" if access else "AWS_ACCESS_KEY_ID"
            raise role.denied(
                f"{role.section}.secretRef's Secret has no {lacking}: S3 needs both keys of the pair"
                f"{or_in_environment('it')}"
            )
        if not all("!" <= character <= "~" for character in access + secret + session):
            # The HTTP client would refuse the header with a message that quotes it.
            raise role.denied(
                f"{role.section}.secretRef's Secret has an S3 key or session token with characters that none has, such "
                f"as a space or a line break: store each alone{or_in_environment('it')}"
            )
        if access:
            return StaticProvider(access, secret, session or None)
    if not any(environment.get(name) for name in _IDENTITY):
        return None
    # A node's own agent is asked directly, the token service like any other server.
    remote = environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    return IamAwsProvider(http_client=http_pool("https://sts.amazonaws.com") if remote else None)


def partial_of(target: Path) -> Path:
    """Where what has arrived of a file waits for the rest."""
    return target.with_name(f".{target.name}.partial")


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _status(error: Exception) -> int | None:
    if isinstance(error, S3Error):
        return int(error.response.status)
    if isinstance(error, ServerError):
        return error.status_code
    if isinstance(error, InvalidResponseError):
        return int(error._code)
    return None


def _key_of(error: Exception, uri: S3Uri) -> str:
    return (error.object_name if isinstance(error, S3Error) else None) or uri.key
