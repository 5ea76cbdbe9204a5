"""An API server in memory: what an operator asks of a real one, with the same answers, and a log of all that happened.

Versions, uids, generations, conflicts, defaults, label selectors, deletion in the background, in the foreground and
with orphans, finalizers, graceful deletion of pods. Stored documents are never changed in place.
"""

import copy
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
import yaml
from tests.unit.status_schema import check_status

from lora_operator.cluster.api import ApiError
from lora_operator.model.names import CONTROLLER_UID_LABEL
from lora_operator.model.wording import instant

Object = dict[str, Any]
_CRD = Path(__file__).parents[2] / "crds" / "lorafinetunes.yaml"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<rest>.+)"
)
_IMMUTABLE_IN_JOBS = ("completions", "completionMode", "podFailurePolicy", "podReplacementPolicy", "selector")
FOREGROUND, ORPHAN, TRACKING = "foregroundDeletion", "orphan", "batch.kubernetes.io/job-tracking"


def _schema() -> Object:
    crd = yaml.safe_load(_CRD.read_text())
    schema: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


_SCHEMA = _schema()


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object lies."""

    plural: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the log: ADDED, MODIFIED or DELETED, the document as of then, and as it was `before`."""

    version: int
    type: str
    plural: str
    document: Object
    before: Object | None


_REQUIREMENT = re.compile(r"([^\s,=]+)(?: in \(([^)]*)\)|=([^,]*))")


def _requirements(selector: str) -> Iterator[tuple[str, list[str]]]:
    """A label selector's keys, each with the values that it may have."""
    for match in _REQUIREMENT.finditer(selector):
        yield match[1], match[2].split(",") if match[2] is not None else [match[3]]


class Server:
    """The objects of one cluster. `now` gives their times; `listeners` hear of each change, after it was made."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.objects: dict[Place, Object] = {}
        self.log: list[Happening] = []
        self.listeners: list[Callable[[Happening], None]] = []
        self.discovery: Mapping[str, Object] = {}
        self._uids = 0
        self._forms: set[bytes] = set()
        self.version = 100

    # -- requests

    def handle(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Object:
        """Answer one request with a document of the caller's own. Raises `ApiError` where a server would refuse."""
        parts = urlsplit(path)
        query = {**{key: values[0] for key, values in parse_qs(parts.query).items()}, **(query or {})}
        if parts.path in self.discovery:
            return _copy(self.discovery[parts.path])
        match = _PATH.fullmatch(parts.path)
        if match is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        plural, *rest = [unquote(part) for part in match["rest"].split("/")]
        namespace = match["namespace"] or ""
        document = _copy(body) if body is not None else {}
        if not rest:
            answer = (
                self._create(plural, namespace, document) if method == "POST" else self._list(plural, namespace, query)
            )
        else:
            place = Place(plural, namespace, rest[0])
            answer = self._on_one(method, place, rest[1] if len(rest) > 1 else "", document, query)
        return _copy(answer)

    def _on_one(self, method: str, place: Place, subresource: str, body: Object, query: Mapping[str, str]) -> Object:
        if place not in self.objects:
            raise ApiError(404, "NotFound", f'{place.plural} "{place.name}" not found')
        if method == "GET":
            return self.objects[place]
        if method == "DELETE":
            return self._delete(place, {**query, **body})
        if subresource == "binding":
            stored = self.objects[place]
            return self._store(place, {**stored, "spec": {**stored["spec"], "nodeName": body["target"]["name"]}})
        if subresource == "eviction":
            return self._evict(place)
        if method == "PUT":
            return self._replace_status(place, subresource, body)
        return self._patch(place, subresource, body)

    def _create(self, plural: str, namespace: str, document: Object) -> Object:
        metadata = document["metadata"]
        name = metadata.get("name") or f"{metadata['generateName']}{self._uids:05d}"
        place = Place(plural, namespace, name)
        if place in self.objects:
            raise ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')
        self._uids += 1
        document["metadata"] = {
            **metadata,
            "name": name,
            "namespace": namespace,
            "uid": str(uuid.UUID(int=self._uids)),
            "generation": 1,
            "creationTimestamp": instant(self._now()),
        }
        if plural == "lorafinetunes":
            document.pop("status", None)
            _fill_in(_SCHEMA, document)
        elif plural in {"jobs", "pods"}:
            document["status"] = {"phase": "Pending"} if plural == "pods" else {}
        if plural == "jobs":
            template = document["spec"]["template"].setdefault("metadata", {})
            template["labels"] = {**template.get("labels", {}), CONTROLLER_UID_LABEL: document["metadata"]["uid"]}
        return self._store(place, document, "ADDED")

    def _list(self, plural: str, namespace: str, query: Mapping[str, str]) -> Object:
        """All at once: the pages of a list are the client's affair, and tested there."""
        wanted = list(_requirements(query.get("labelSelector", "")))
        fields = [clause.partition("=") for clause in query.get("fieldSelector", "").split(",") if clause]
        items = [
            document
            for place, document in sorted(self.objects.items(), key=lambda item: (item[0].namespace, item[0].name))
            if place.plural == plural
            and namespace in ("", place.namespace)
            and all(labels_of(document).get(key) in values for key, values in wanted)
            and all(_field(document, path) == value for path, _, value in fields)
        ]
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    def _replace_status(self, place: Place, subresource: str, body: Object) -> Object:
        stored = self.objects[place]
        assert (place.plural, subresource) == ("lorafinetunes", "status"), "nobody replaces anything else"
        for key in ("resourceVersion", "uid"):
            if body["metadata"].get(key) not in (None, stored["metadata"][key]):
                raise ApiError(409, "Conflict", f"the object has been modified: {key}")
        self._check(body.get("status", {}))
        return self._store(place, {**stored, "status": body["status"]})

    def _check(self, status: Object) -> None:
        """Refuse what the schema refuses; two that differ in their numbers alone are checked once."""
        form = re.sub(rb"\d+", b"0", orjson.dumps(status))
        if form not in self._forms:
            check_status(status)
            self._forms.add(form)

    def _patch(self, place: Place, subresource: str, body: Object) -> Object:
        stored = self.objects[place]
        if subresource:
            body = {subresource: body.get(subresource)}
        elif place.plural in {"lorafinetunes", "jobs", "pods"}:
            body = {key: value for key, value in body.items() if key != "status"}
        if (
            body.get("metadata", {}).get("resourceVersion", stored["metadata"]["resourceVersion"])
            != (stored["metadata"]["resourceVersion"])
        ):
            raise ApiError(409, "Conflict", "the object has been modified")
        changed = merged(stored, body)
        if place.plural == "jobs":
            fixed = [key for key in _IMMUTABLE_IN_JOBS if stored["spec"].get(key) != changed["spec"].get(key)]
            if fixed:
                raise ApiError(422, "Invalid", f"spec.{fixed[0]}: field is immutable")
        if place.plural == "lorafinetunes" and not subresource:
            _fill_in(_SCHEMA, changed)
        if changed.get("spec") != stored.get("spec"):
            changed["metadata"] = {**changed["metadata"], "generation": stored["metadata"]["generation"] + 1}
        return self._store(place, changed)

    def _evict(self, place: Place) -> Object:
        """As a drain asks for it: the pod says why it goes."""
        status = self.objects[place]["status"]
        mark = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        marked = {**mark, "lastTransitionTime": instant(self._now())}
        others = [c for c in status.get("conditions", ()) if c["type"] != "DisruptionTarget"]
        self._store(place, {**self.objects[place], "status": {**status, "conditions": [*others, marked]}})
        return self._delete(place, {})

    def _delete(self, place: Place, options: Mapping[str, Any]) -> Object:
        stored = self.objects[place]
        uid = (options.get("preconditions") or {}).get("uid", stored["metadata"]["uid"])
        if uid != stored["metadata"]["uid"]:
            raise ApiError(409, "Conflict", "the uid in the precondition does not match")
        metadata = dict(stored["metadata"])
        finalizers = list(metadata.get("finalizers", ()))
        marker = {"Foreground": FOREGROUND, "Orphan": ORPHAN}.get(str(options.get("propagationPolicy", "")))
        if marker is not None and marker not in finalizers:
            finalizers.append(marker)
        grace_s = 0
        if place.plural == "pods" and stored["spec"].get("nodeName") and not _is_over(stored):
            grace_s = int(options.get("gracePeriodSeconds", stored["spec"].get("terminationGracePeriodSeconds", 30)))
        metadata.setdefault("deletionTimestamp", instant(self._now()))
        before = metadata.get("deletionGracePeriodSeconds", grace_s)
        changed = {
            **stored,
            "metadata": {**metadata, "finalizers": finalizers, "deletionGracePeriodSeconds": min(before, grace_s)},
        }
        return self._store(place, changed)

    # -- what stores

    def _store(self, place: Place, document: Object, kind: str = "MODIFIED") -> Object:
        """Keep a document, or drop it where nothing holds it any more; an equal one changes nothing."""
        stored = self.objects.get(place)
        if stored == document:
            return stored
        self.version += 1
        document = {**document, "metadata": {**document["metadata"], "resourceVersion": str(self.version)}}
        metadata = document["metadata"]
        gone = "deletionTimestamp" in metadata and not metadata.get("finalizers")
        if gone and not metadata.get("deletionGracePeriodSeconds"):
            kind = "DELETED"
            self.objects.pop(place, None)
        else:
            self.objects[place] = document
        happening = Happening(self.version, kind, place.plural, document, stored)
        self.log.append(happening)
        for listener in list(self.listeners):
            listener(happening)
        return document

    # -- for the controllers of the cluster

    def all(self, plural: str) -> Iterator[Object]:
        """The stored documents of a kind, which are not to be changed."""
        return iter([document for place, document in self.objects.items() if place.plural == plural])

    def write(self, document: Object, plural: str) -> Object:
        """Store a changed copy, as a controller does, whatever came in between; one that is gone stays gone."""
        metadata = document["metadata"]
        place = Place(plural, metadata["namespace"], metadata["name"])
        return self._store(place, document) if place in self.objects else document


def _copy(document: Mapping[str, Any]) -> Object:
    """As it is after the wire: plain JSON, and nobody else's."""
    received: Object = orjson.loads(orjson.dumps(document))
    return received


def labels_of(document: Mapping[str, Any]) -> Mapping[str, str]:
    """Labels; empty where there are none."""
    labels: Mapping[str, str] = document["metadata"].get("labels") or {}
    return labels


def merged(target: Any, patch: Mapping[str, Any]) -> Any:
    """A JSON merge patch, applied to a copy."""
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merged(result.get(key), value)
        else:
            result[key] = value
    return result


def _fill_in(schema: Mapping[str, Any], value: Object) -> None:
    """Defaults of a structural schema, in place."""
    for key, part in schema.get("properties", {}).items():
        if "default" in part and key not in value:
            value[key] = copy.deepcopy(part["default"])
        if isinstance(value.get(key), dict):
            value[key] = dict(value[key])
            _fill_in(part, value[key])


def _field(document: Mapping[str, Any], path: str) -> str:
    value: Any = document
    for key in path.split("."):
        value = value.get(key, {}) if isinstance(value, Mapping) else {}
    return str(value)


def _is_over(pod: Mapping[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
