"""An OCI image layout: files named by their digest, and an index that names some of them.

The format: opencontainers/image-spec, image-layout.md and manifest.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from releasing.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
NAME = "org.opencontainers.image.ref.name"
MARKER = '{"imageLayoutVersion":"1.0.0"}'
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHUNK_BYTES = 1 << 20
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What refers to a file of a layout; `size` is in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    def as_json(self) -> Json:
        optional = {"artifactType": self.artifact_type, "annotations": dict(self.annotations)}
        required = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return required | {name: value for name, value in optional.items() if value}


def described(content: Json) -> Descriptor:
    """The descriptor of its JSON; ReleaseError for one that is none."""
    digest, size = content.get("digest"), content.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or not isinstance(size, int):
        raise ReleaseError(f"The release refers to a file of digest {digest!r} and size {size!r}: make it anew.")
    return Descriptor(
        media_type=str(content.get("mediaType", "")),
        digest=digest,
        size=size,
        annotations=content.get("annotations") or {},
        artifact_type=content.get("artifactType", ""),
    )


def encoded(content: Json) -> bytes:
    """JSON that is the same for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def of_bytes(content: bytes, media_type: str, **more: Any) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Descriptor(media_type=media_type, digest=digest, size=len(content), **more)


def manifest(
    layers: Sequence[Descriptor],
    *,
    config: Descriptor | None = None,
    annotations: Mapping[str, str],
    subject: Descriptor | None = None,
    artifact_type: str = "",
) -> Json:
    """A manifest; with a `subject` it refers to that, and is found as one of its referrers."""
    content: Json = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": (config or of_bytes(b"{}", EMPTY)).as_json(),
        "layers": [layer.as_json() for layer in layers],
        "annotations": dict(annotations),
    }
    if artifact_type:
        content["artifactType"] = artifact_type
    if subject is not None:
        bare = Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size)
        content["subject"] = bare.as_json()
    return content


def parts(content: Json) -> Iterator[Descriptor]:
    """What a manifest or an index refers to."""
    named = [content[name] for name in ("config", "subject") if name in content]
    for part in (*named, *content.get("layers", ()), *content.get("manifests", ())):
        yield described(part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The folder of a layout."""

    folder: Path

    def create(self) -> None:
        (self.folder / "blobs" / "sha256").mkdir(parents=True)
        (self.folder / "oci-layout").write_text(MARKER)
        self.write_index([])

    def path(self, digest: str) -> Path:
        found = _DIGEST.fullmatch(digest)
        if found is None:
            raise ReleaseError(f"{digest!r} is no SHA-256 digest: make the release anew.")
        return self.folder / "blobs" / "sha256" / found[1]

    def entries(self) -> list[Descriptor]:
        """What the index names."""
        try:
            index = json.loads((self.folder / "index.json").read_text())
        except (FileNotFoundError, ValueError) as error:
            raise ReleaseError(f"{self.folder} has no index of a release: make one with `make release`.") from error
        return [described(entry) for entry in index.get("manifests", ())]

    def find(self, name: str) -> Descriptor:
        for entry in self.entries():
            if entry.annotations.get(NAME) == name:
                return entry
        raise ReleaseError(f"{self.folder} has no {name}: make the release anew.")

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """Manifests of the index that refer to another one."""
        manifests = [entry for entry in self.entries() if entry.media_type == MANIFEST]
        return [
            entry for entry in manifests if self.read_json(entry).get("subject", {}).get("digest") == subject.digest
        ]

    def read_json(self, descriptor: Descriptor) -> Json:
        content: Json = json.loads(self.path(descriptor.digest).read_bytes())
        return content

    def put(self, content: bytes, media_type: str, **more: Any) -> Descriptor:
        descriptor = of_bytes(content, media_type, **more)
        self.path(descriptor.digest).write_bytes(content)
        return descriptor

    def put_manifest(self, content: Json, name: str = "") -> Descriptor:
        """Write a manifest, and its place in the index: the one of `name` is replaced."""
        self.put(b"{}", EMPTY)
        annotations = {NAME: name} if name else {}
        more = {"annotations": annotations, "artifact_type": content.get("artifactType", "")}
        added = self.put(encoded(content), MANIFEST, **more)
        entries = self.entries()
        self.write_index([e for e in entries if not name or e.annotations.get(NAME) != name] + [added])
        return added

    def problems(self) -> Iterator[str]:
        """A sentence for every file that is missing, or is not what its digest and size say."""
        seen: set[str] = set()
        todo = self.entries()
        while todo:
            descriptor = todo.pop()
            if descriptor.digest in seen:
                continue
            seen.add(descriptor.digest)
            problem = self._problem(descriptor)
            if problem:
                yield problem
            elif descriptor.media_type in {MANIFEST, INDEX}:
                todo.extend(parts(self.read_json(descriptor)))

    def _problem(self, descriptor: Descriptor) -> str:
        path = self.path(descriptor.digest)
        if not path.is_file():
            return f"{descriptor.digest} is missing"
        if path.stat().st_size != descriptor.size:
            return f"{descriptor.digest} has {path.stat().st_size} bytes instead of {descriptor.size}"
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return "" if f"sha256:{digest.hexdigest()}" == descriptor.digest else f"{descriptor.digest} has other content"

    def write_index(self, entries: Sequence[Descriptor]) -> None:
        """Name these, and nothing else."""
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry.as_json() for entry in entries]}
        (self.folder / "index.json").write_bytes(encoded(index))
