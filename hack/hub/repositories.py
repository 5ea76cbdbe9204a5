"""Repositories as the Hub shows them, read from plain folders.

    ROOT/models/<org>/<name>            revision "main" of a model
    ROOT/models/<org>/<name>@<revision> another revision (branch or tag) of it
    ROOT/datasets/<org>/<name>          the same for data sets

A file's id and a repository's commit are computed from the content, so they are the same on every machine.
Files whose path has a part that begins with a dot are not part of a repository, except .gitattributes.
"""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["models", "datasets"]
LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".parquet", ".gguf", ".h5", ".onnx", ".zip", ".gz"})
LFS_SIZE_BYTES = 10 * 1024 * 1024
"""The Hub keeps larger files, and those with the suffixes above, in large file storage, with a sha256 as their id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """One file of a revision. `etag` is the sha256 of a large file, else its git blob id (sha1)."""

    path: str
    location: Path
    size_bytes: int
    sha256: str
    blob_id: str
    is_lfs: bool

    @property
    def etag(self) -> str:
        """Return what the Hub's ETag identifies the content by."""
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One revision of a repository: its files by path, and the commit computed from them (40 hex digits)."""

    repo: str
    name: str
    commit: str
    files: dict[str, RepoFile]


class Repositories:
    """Reads revisions below `root`; a file is hashed again only after its size or time of change changed."""

    def __init__(self, root: Path) -> None:
        """Serve the folders below `root`, which may be empty or filled later."""
        self._root = root
        self._known: dict[tuple[str, int, int], tuple[str, str]] = {}
        self._lock = threading.Lock()

    def revisions(self, kind: Kind, repo: str) -> list[Revision]:
        """Return every revision of `repo` ("org/name"), "main" first; an empty list means: no such repository."""
        folder = self._root / kind / repo
        others = sorted(folder.parent.glob(f"{folder.name}@*")) if folder.parent.is_dir() else []
        named = [("main", folder), *((other.name.split("@", 1)[1], other) for other in others)]
        return [self._read(repo, name, path) for name, path in named if path.is_dir()]

    def find(self, kind: Kind, repo: str, revision: str) -> Revision | None:
        """Return the revision of that name or commit, or None."""
        for candidate in self.revisions(kind, repo):
            if revision in {candidate.name, candidate.commit, f"refs/heads/{candidate.name}"}:
                return candidate
        return None

    def _read(self, repo: str, name: str, folder: Path) -> Revision:
        files = {}
        for location in sorted(folder.rglob("*")):
            parts = location.relative_to(folder).parts
            hidden = any(part.startswith(".") and part != ".gitattributes" for part in parts)
            if location.is_file() and not hidden:
                file = self._file("/".join(parts), location)
                files[file.path] = file
        listing = "\n".join(f"{file.path} {file.sha256}" for file in files.values())
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        return Revision(repo=repo, name=name, commit=commit, files=files)

    def _file(self, path: str, location: Path) -> RepoFile:
        found = location.stat()
        key = (str(location), found.st_size, found.st_mtime_ns)
        with self._lock:
            if key not in self._known:
                self._known[key] = _digests(location, found.st_size)
            sha256, blob_id = self._known[key]
        is_lfs = found.st_size > LFS_SIZE_BYTES or location.suffix in LFS_SUFFIXES
        return RepoFile(
            path=path, location=location, size_bytes=found.st_size, sha256=sha256, blob_id=blob_id, is_lfs=is_lfs
        )


def _digests(location: Path, size_bytes: int) -> tuple[str, str]:
    """Return (sha256, git blob id) of a file in one pass."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    with location.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()
