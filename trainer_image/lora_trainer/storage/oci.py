"""A repository in an OCI registry: blobs and manifests by the distribution protocol, every failure a sentence.

Written against the protocol itself (opencontainers/distribution-spec v1.1), with urllib3: the client library for Python
reads whole blobs into memory, sets no timeouts and reports every refusal as a bare ValueError.
Registries named in `LORA_OCI_PLAIN_HTTP` (host:port, separated by commas) are spoken to without TLS.
"""

import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from lora_trainer.errors import ConfigError, StorageError, TrainerError, TransientError, one_sentence
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import OciUri
from lora_trainer.storage.network import ATTEMPTS, CONNECT_S, READ_S, RETRIED, http_pool, is_own, refused_certificate
from lora_trainer.storage.roles import Role, or_in_environment, unreachable

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_ANY_MANIFEST = (
    MANIFEST_TYPE,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
"""What a tag may hold. Of a kind that is not accepted a registry says 404, as if the tag were free."""
_CHUNK_BYTES = 2**20
_LARGEST_MANIFEST = 4 * 2**20
_STORED_BYTES_PER_S = 20 * 2**20
"""What a registry stores at least: some copy a file within their own storage between its last byte and the answer."""
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Content by its digest, `sha256:` and 64 hex digits."""

    digest: str
    size_bytes: int


class Registry:
    """One repository. Methods raise `AccessDeniedError`, `StorageError`, `TransientError`."""

    def __init__(self, uri: OciUri, environment: Mapping[str, str], *, backoff_s: float = 0.5) -> None:
        plain = {name.strip() for name in environment.get("LORA_OCI_PLAIN_HTTP", "").split(",")}
        host = "registry-1.docker.io" if uri.registry in _DOCKER_HUB else uri.registry
        self._root = f"{'http' if uri.registry in plain else 'https'}://{host}"
        self._uri = uri
        self._http = http_pool(self._root, backoff_s=backoff_s)
        self._backoff_s = backoff_s
        self._basic = _credentials(uri.registry, environment.get("OUTPUT_DOCKER_CONFIG_JSON", ""))
        self._authorization: str | None = None

    def manifest(self, reference: str) -> bytes | None:
        """The manifest of a tag or digest, None where there is none."""
        answer = self._request("GET", f"manifests/{reference}", headers={"Accept": ", ".join(_ANY_MANIFEST)})
        if answer.status == 404:
            return None
        self._expect(answer, 200, f"the manifest {reference}")
        return answer.data[:_LARGEST_MANIFEST]

    def put_manifest(self, reference: str, content: bytes) -> None:
        """Store a manifest under its digest or under a tag."""
        headers = {"Content-Type": MANIFEST_TYPE}
        answer = self._request("PUT", f"manifests/{reference}", headers=headers, body=content)
        self._expect(answer, 201, f"the manifest {reference}")

    def check_push(self) -> None:
        """Begin an upload and cancel it."""
        location = self._begin_upload()
        self._request("DELETE", location)

    def put_blob(self, blob: Blob, path: Path) -> None:
        """Upload a file, unless the repository has it already.

        It may have it from an upload whose answer did not arrive, too; of the upload itself it knows nothing then.
        """
        if self._has(blob):
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._upload(blob, path)
                return
            except TrainerError as error:
                if self._has(blob):
                    return
                if attempt == ATTEMPTS or not isinstance(error, TransientError):
                    raise
            time.sleep(self._backoff_s * 2**attempt)

    def _has(self, blob: Blob) -> bool:
        return self._request("HEAD", f"blobs/{blob.digest}").status == 200

    def _upload(self, blob: Blob, path: Path) -> None:
        """One upload, sent once; again only where the registry was not reached or has no time for it."""
        location = self._begin_upload()
        target = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': blob.digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size_bytes)}
        options = {
            "retries": self._http.connection_pool_kw["retries"].new(read=0, status_forcelist=(429, 503)),
            "timeout": urllib3.Timeout(connect=CONNECT_S, read=READ_S + blob.size_bytes / _STORED_BYTES_PER_S),
        }
        with path.open("rb") as stream:
            answer = self._request("PUT", target, headers=headers, body=stream, options=options)
        self._expect(answer, 201, f"the file {path.name}")

    def blob(self, digest: str) -> Iterator[bytes]:
        """A blob's content. Raises `TransientError` where other bytes come than the digest stands for."""
        answer = self._request("GET", f"blobs/{digest}", stream=True)
        self._expect(answer, 200, f"the blob {digest}")
        found = hashlib.sha256()
        try:
            for chunk in answer.stream(_CHUNK_BYTES):
                found.update(chunk)
                yield chunk
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(f"output.uri is {self._uri}: {one_sentence(error)[:200]}") from error
        finally:
            answer.close()
        if f"sha256:{found.hexdigest()}" != digest:
            raise TransientError(f"output.uri is {self._uri}: the blob {digest[:19]}… comes back with other bytes")

    def check_blob(self, digest: str) -> None:
        """Pull a blob, again where it is cut off. Raises as `blob`."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                for _ in self.blob(digest):
                    pass
                return
            except TransientError:
                if attempt == ATTEMPTS:
                    raise

    def _begin_upload(self) -> str:
        answer = self._request("POST", "blobs/uploads/", headers={"Content-Length": "0"})
        if answer.status == 404:
            raise StorageError(
                f"output.uri is {self._uri}: the registry knows no repository {self._uri.repository}; create it there"
            )
        self._expect(answer, 202, "an upload")
        return self._as_safe(answer.headers.get("Location", ""), "an upload")

    def _as_safe(self, where: str, what: str) -> str:
        """The address that the registry names for something. Raises `StorageError` for one without TLS, unless the
        registry itself has none."""
        location, root = urlsplit(urljoin(f"{self._root}/", where)), urlsplit(self._root)
        if location.netloc == root.netloc:  # behind a proxy that ends TLS, a registry may think that it has none
            location = location._replace(scheme=root.scheme)
        url = location.geturl()
        if self._root.startswith("https:") and not url.startswith("https:"):
            raise StorageError(
                f"output.uri is {self._uri}: the registry names {url[:200]} for {what}: must be an address with TLS, "
                "or the registry one of config.ociPlainHTTPRegistries",
                Reason.UPLOAD_FAILED,
            )
        return url

    def _request(
        self,
        method: str,
        where: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        stream: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """`where` is a path below the repository, or one that the registry gave; `options` are urllib3's."""
        url = where if "://" in where else f"{self._root}/v2/{self._uri.repository}/{where}"
        answer = self._send(method, url, headers or {}, body, stream=stream, options=options or {})
        if answer.status == 401 and self._authenticate(answer):
            _rewind(body)
            answer = self._send(method, url, headers or {}, body, stream=stream, options=options or {})
        return answer

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: object,
        *,
        stream: bool,
        options: Mapping[str, Any],
    ) -> urllib3.BaseHTTPResponse:
        own = is_own(url, self._root)
        # Storage that a registry redirects to must not see the credentials.
        secret = {"Authorization": self._authorization} if self._authorization and own else {}
        try:
            return self._http.request(
                method,
                url,
                headers={**headers, **secret},
                body=body,  # type: ignore[arg-type]  # a binary file is sent, too, which urllib3's annotation leaves out
                preload_content=not stream,
                **options,
            )
        except urllib3.exceptions.HTTPError as error:
            remedy = unreachable(
                Role.OUTPUT,
                "LORA_OCI_PLAIN_HTTP (for a registry without TLS)",
                "config.ociPlainHTTPRegistries (for one without TLS)",
            )
            unavailable = f"the registry cannot be reached ({one_sentence(error)[:200]}); {remedy}"
            raise TransientError(f"output.uri is {self._uri}: {refused_certificate(error) or unavailable}") from error

    def _authenticate(self, answer: urllib3.BaseHTTPResponse) -> bool:
        """Answer the registry's challenge; whether there is something new to try."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        before = self._authorization
        if challenge.lower().startswith("basic"):
            self._authorization = self._basic
        elif challenge.lower().startswith("bearer"):
            self._authorization = self._token(dict(_CHALLENGE.findall(challenge)))
        return self._authorization is not None and self._authorization != before

    def _token(self, challenge: Mapping[str, str]) -> str | None:
        query = {"scope": f"repository:{self._uri.repository}:pull,push"}
        if "service" in challenge:
            query["service"] = challenge["service"]
        if not challenge.get("realm"):
            raise StorageError(
                f"output.uri is {self._uri}: the registry asks for a token and names no server that gives any: the "
                "WWW-Authenticate header of its answer must have a realm; check the registry and the proxies before it",
                Reason.UPLOAD_FAILED,
            )
        realm = self._as_safe(challenge["realm"], "tokens")
        headers = {"Authorization": self._basic} if self._basic else {}
        try:
            answer = self._http.request("GET", f"{realm}?{urlencode(query)}", headers=headers)
            document = json.loads(answer.data) if answer.status == 200 else {}
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            cause = refused_certificate(error) or one_sentence(error)[:200]
            message = f"output.uri is {self._uri}: the registry's token server fails ({cause})"
            raise TransientError(message) from error
        token = document.get("token") or document.get("access_token")
        return f"Bearer {token}" if token else None

    def _expect(self, answer: urllib3.BaseHTTPResponse, status: int, what: str) -> None:
        if answer.status != status:
            raise self._explain(answer, what)

    def _explain(self, answer: urllib3.BaseHTTPResponse, what: str) -> TrainerError:
        where, status = f"output.uri is {self._uri}", answer.status
        said = _said(answer)
        if status in (401, 403):
            whose = "these credentials" if self._basic else "no credentials"
            return Role.OUTPUT.denied(
                f"{where}: the registry refuses {what} with {whose} ({status}{said}); name in output.secretRef a "
                f"Secret of type kubernetes.io/dockerconfigjson whose entry for {self._uri.registry} may push to "
                f"{self._uri.repository}{or_in_environment('OUTPUT_DOCKER_CONFIG_JSON')}"
            )
        if status in (413, 507) or "quota" in said.lower():
            return StorageError(
                f"{where}: the registry has no room for {what} ({status}{said}); free space or raise the quota",
                Reason.STORAGE_FULL,
            )
        if status in RETRIED:
            return TransientError(f"{where}: the registry answered {status}{said}; check the registry if this lasts")
        return StorageError(f"{where}: the registry refuses {what} ({status}{said})", Reason.UPLOAD_FAILED)


def _said(answer: urllib3.BaseHTTPResponse) -> str:
    """What the registry says of an error, as it says it, as the end of a sentence's bracket."""
    try:
        errors = json.loads(answer.data)["errors"]
        text = "; ".join(f"{error.get('code')}: {error.get('message')}" for error in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f", {' '.join(text.split())[:200]}"


def _rewind(body: object) -> None:
    if hasattr(body, "seek"):
        body.seek(0)


def _credentials(registry: str, text: str) -> str | None:
    """The `Basic` header that a Docker configuration holds for a registry, None where it holds none."""
    if not text.strip():
        return None
    names = {registry, f"https://{registry}", f"https://{registry}/v1/", f"https://{registry}/v2/"}
    if registry in _DOCKER_HUB:
        names |= {*_DOCKER_HUB, "https://index.docker.io/v1/"}
    try:
        entries = json.loads(text)["auths"]
        known = {name.rstrip("/") for name in names}
        entry = next((value for name, value in entries.items() if name.rstrip("/") in known), None)
        if entry is None:
            return None
        pair = entry.get("auth") or base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
        base64.b64decode(pair, validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ConfigError(
            "output.secretRef's .dockerconfigjson is not a Docker configuration: it must be JSON with auths, and an "
            f"auth or username and password for {registry}"
        ) from error
    return f"Basic {pair}"
