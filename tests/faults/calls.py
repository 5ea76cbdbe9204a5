"""Requests to an API server as the fault proxy sees them."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(kw_only=True)
class Call:
    """One request, and what became of it. `code` is the answer's status, 0 while there is none or never was.

    `at_s` is the monotonic time at which it came.
    """

    method: str
    path: str
    query: Mapping[str, str]
    body: Any = None
    code: int = 0
    at_s: float = field(default_factory=time.monotonic, repr=False)

    def _part(self, name: str) -> str:
        match = _PATH.fullmatch(self.path)
        return (match[name] or "") if match else ""

    @property
    def group(self) -> str:
        """API group; empty for the core API."""
        return self._part("group")

    @property
    def namespace(self) -> str:
        """Namespace; empty for requests about the whole cluster."""
        return self._part("namespace")

    @property
    def resource(self) -> str:
        """Plural of the kind; empty for what is no resource, such as discovery."""
        return self._part("resource")

    @property
    def name(self) -> str:
        """Name of the object, for a creation the one in the body."""
        return self._part("name") or str(self._metadata().get("name", ""))

    @property
    def subresource(self) -> str:
        """Subresource, such as `status`."""
        return self._part("subresource")

    @property
    def verb(self) -> str:
        """The verb as roles name it."""
        if self.method != "GET":
            return _VERBS.get(self.method, self.method.lower())
        if self.is_watch:
            return "watch"
        return "get" if self._part("name") else "list"

    @property
    def is_watch(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.query.get("watch", "") in ("true", "1")

    @property
    def mutates(self) -> bool:
        """Whether it changes something; a question about one's own rights is a POST that does not."""
        return self.method in _VERBS and not self.group.startswith(("authorization.", "authentication."))

    @property
    def right(self) -> str:
        """The right that it needs, such as `update lorafinetunes.lora-operator.io/status`."""
        plural = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {plural}" + (f"/{self.subresource}" if self.subresource else "")

    @property
    def what(self) -> str:
        """Verb, kind and subresource in short, such as `update lorafinetunes/status`."""
        return f"{self.verb} {self.resource}" + (f"/{self.subresource}" if self.subresource else "")

    @property
    def about(self) -> str:
        """Name of the LoRAFineTune that a change is made for; of a child without labels its own, which begins so."""
        if self.resource == "events":
            return str((self.body or {}).get("involvedObject", {}).get("name", ""))
        return str((self._metadata().get("labels") or {}).get("lora-operator.io/name", self.name))

    def _metadata(self) -> Mapping[str, Any]:
        metadata = self.body.get("metadata") if isinstance(self.body, dict) else None
        return metadata if isinstance(metadata, dict) else {}


def parse_body(data: bytes) -> Any:
    """A body as it was sent, None where it is empty or no JSON."""
    try:
        return json.loads(data) if data else None
    except ValueError:
        return None


def status_document(code: int, reason: str, message: str) -> dict[str, Any]:
    """A Status as the API server answers with."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
