"""Requests to the API server as the user's kubeconfig says: dicts in, dicts out, one sentence for each failure."""

import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from lora_client.cluster.kubeconfig import configured
from lora_client.errors import ClientError
from lora_client.views.refusals import Refusal, sentence_of

if TYPE_CHECKING:
    from kubernetes.client import Configuration

Object = dict[str, Any]
MANAGER = "lora"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""An object without what it holds."""
CONNECT_S = 10.0
REQUEST_S = 30.0
MOST_PAUSES = 3
LONGEST_PAUSE_S = 5.0
_UNKNOWN_AUTHORITY = "name its authority in the kubeconfig (certificate-authority), and a proxy's if one is in between"
_PREFIXES = {
    "lorafinetunes": "apis/lora-operator.io/v1alpha1",
    "jobs": "apis/batch/v1",
    "workloads": "apis/kueue.x-k8s.io/v1beta2",
}
"""Of plurals that are not in the core API."""


class ApiError(ClientError):
    """The API server refused. `refusal` is its answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(sentence_of(refusal))
        self.refusal = refusal

    @property
    def code(self) -> int:
        """The HTTP status."""
        return self.refusal.code


class UnreachableError(ClientError):
    """The API server does not answer, or something else does in its place."""


class Cluster:
    """One API server and the namespace that commands mean, for a `with` statement.

    Between the beginnings of two requests there are `least_pause_s` at least: who watches sets it to a second.
    """

    def __init__(self, configuration: "Configuration", namespace: str) -> None:
        from kubernetes.client import ApiClient  # noqa: PLC0415 - half a second, which help and completion do without

        self.namespace = namespace
        self.least_pause_s = 0.0
        self._asked_at_s = float("-inf")
        self.configuration = configuration
        self._client = ApiClient(configuration)
        self._pool = self._client.rest_client.pool_manager

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def path(
        self, plural: str, name: str = "", subresource: str = "", *, everywhere: bool = False, version: str = ""
    ) -> str:
        """URL path of one object of the namespace or, without a name, of all; in another version than usual."""
        place = [] if everywhere else ["namespaces", quote(self.namespace, safe="")]
        group, _, usual = _PREFIXES.get(plural, "api/v1").rpartition("/")
        parts = [group, version or usual, *place, plural]
        return "/" + "/".join([*parts, *(quote(part, safe="") for part in (name, subresource) if part)])

    def get(self, plural: str, name: str) -> Object:
        """One object of the namespace. Raises `ApiError`, `UnreachableError`."""
        return self.request("GET", self.path(plural, name))

    def may_exist(self, plural: str, name: str) -> bool:
        """Whether an object is there, or cannot be looked at. Nothing that it holds is read. Raises
        `UnreachableError`."""
        try:
            self.request("GET", self.path(plural, name), accept=_METADATA)
        except ApiError as error:
            return error.code != 404
        return True

    def items(
        self, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False, version: str = ""
    ) -> list[Object]:
        """All objects, in chunks; in another version than usual. Raises `ApiError`, `UnreachableError`."""
        found: list[Object] = []
        token = ""
        while True:
            page = {**(query or {}), "limit": "500", **({"continue": token} if token else {})}
            answer = self.request("GET", self.path(plural, everywhere=everywhere, version=version), query=page)
            kind = str(answer.get("kind", "")).removesuffix("List")
            found += [{"apiVersion": answer.get("apiVersion"), "kind": kind, **item} for item in answer["items"] or []]
            token = (answer.get("metadata") or {}).get("continue") or ""
            if not token:
                return found

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """Send one request, and again where a busy server asks for it. Raises `ApiError`, `UnreachableError`."""
        for pause in range(MOST_PAUSES + 1):
            response = self._open(method, path, query, body, content_type=content_type, accept=accept)
            data = self._read(response)
            if 200 <= response.status < 400:
                document = _document(data)
                # Whatever the API server answers has a kind: what has none comes from something in between.
                if response.status < 300 and document.get("kind"):
                    return document
                raise self._no_api_server(response)
            refusal = Refusal.of(response.status, _document(data), data, self.namespace)
            wait_s = response.headers.get("Retry-After", "")
            if refusal.code != 429 or pause == MOST_PAUSES or not wait_s.isdecimal():
                raise ApiError(refusal)
            time.sleep(min(float(wait_s), LONGEST_PAUSE_S))
        raise AssertionError

    def lines(self, path: str, query: Mapping[str, str], *, silence_s: float | None = None) -> Iterator[bytes]:
        """The lines of an answer as they come, each with its end but for the last: a log, a watch.

        Raises `ApiError`, and `UnreachableError` where the answer breaks off or nothing comes for `silence_s`.
        """
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - as above

        response = self._open("GET", path, query, None, silence_s=silence_s)
        try:
            if not 200 <= response.status < 300:
                data = self._read(response)
                raise ApiError(Refusal.of(response.status, _document(data), data, self.namespace))
            rest = b""
            for data in response.stream(2**16, decode_content=True):
                *whole, rest = (rest + data).split(b"\n")
                yield from (line + b"\n" for line in whole)
            if rest:
                yield rest
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            response.close()

    def authorization(self) -> str | None:
        """The value of the header, None where a certificate serves."""
        setting = self.configuration.auth_settings().get("BearerToken")
        return str(setting["value"]) if setting and setting["value"] else None

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        silence_s: float | None = REQUEST_S,
    ) -> Any:
        from urllib3 import Timeout  # noqa: PLC0415 - as above
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": MANAGER}
        token = self.authorization()
        if token:
            headers["Authorization"] = token
        time.sleep(max(0.0, self._asked_at_s + self.least_pause_s - time.monotonic()))
        self._asked_at_s = time.monotonic()
        url = self.configuration.host.rstrip("/") + path + ("?" + urlencode(query) if query else "")
        try:
            return self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=Timeout(connect=CONNECT_S, read=silence_s),
                retries=False,
                preload_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            raise self._unreachable(error) from error

    def _read(self, response: Any) -> bytes:
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - as above

        try:
            data: bytes = response.read()
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            response.release_conn()
        return data

    def _no_api_server(self, response: Any) -> UnreachableError:
        location = urlsplit(response.headers.get("Location", "")).hostname
        kind = response.headers.get("Content-Type", "").partition(";")[0] or "no content type"
        what = f"is redirected to {location}" if location else f"answers with {kind}, which no API server does"
        return UnreachableError(
            f"{self.configuration.host} {what}: a proxy or a login page is in between; log in there, or correct "
            "server in the kubeconfig"
        )

    def _unreachable(self, error: Exception) -> ClientError:
        from lora_trainer.storage.network import refused_certificate  # noqa: PLC0415 - as above

        host = self.configuration.host
        if refused := refused_certificate(error, _UNKNOWN_AUTHORITY):
            return ClientError(f"The API server {host} cannot be asked, since {refused}")
        return UnreachableError(
            f"The API server {host} does not answer ({_why(error)}): check the network and the context, which "
            "kubectl config current-context shows"
        )


def _why(error: Exception) -> str:
    """In words, also for what Python's libraries wrap in their own."""
    from lora_trainer.storage.network import cause_of  # noqa: PLC0415 - as above

    if cause_of(error, ConnectionError) and not cause_of(error, ConnectionRefusedError):
        return "it closed the connection"
    if cause_of(error, socket.gaierror):
        return "its name cannot be resolved"
    text = re.sub(r"\[Errno \d+\] ", "", " ".join(str(error).rpartition(": ")[2].split()))
    return text[:200] or type(error).__name__


def _document(data: bytes) -> Object:
    try:
        document = json.loads(data) if data else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def connect(context: str | None = None, namespace: str | None = None) -> Cluster:
    """The cluster of the kubeconfig's context, or of the pod that this runs in. Raises `ClientError`."""
    configuration, usual = configured(context)
    return Cluster(configuration, namespace or usual)
