"""What the Hub answers, as functions of a revision: file lists, repository descriptions, byte ranges."""

import re
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from io import BufferedIOBase

from hub.access import Refusal, RefusedError, Restriction
from hub.repositories import RepoFile, Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """First and last byte to send, both included."""

    first: int
    last: int


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """Return the single range that a Range header asks for, or None for the whole file.

    Raises ValueError when nothing of the file lies inside it.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first_text, last_text = found.groups()
    if first_text == "":
        return ByteRange(first=max(0, size_bytes - int(last_text)), last=size_bytes - 1)
    first = int(first_text)
    last = min(int(last_text), size_bytes - 1) if last_text else size_bytes - 1
    if first > last:
        raise ValueError(f"range {header} of {size_bytes} bytes")
    return ByteRange(first=first, last=last)


def read_body(stream: BufferedIOBase, headers: Message) -> bytes:
    """Read the body of a request, sent with its length or in chunks."""
    if headers.get("Transfer-Encoding", "").lower() != "chunked":
        return stream.read(int(headers.get("Content-Length") or 0))
    chunks = []
    while size := int(stream.readline().split(b";")[0], 16):
        chunks.append(stream.read(size))
        stream.readline()
    stream.readline()
    return b"".join(chunks)


def tree_records(revision: Revision, folder: str, *, is_recursive: bool) -> list[dict[str, object]]:
    """List the files and folders below `folder` ("" for all); only the direct ones unless `is_recursive`.

    Raises RefusedError when there is no such folder.
    """
    prefix = f"{folder}/" if folder else ""
    below = [file for path, file in revision.files.items() if path.startswith(prefix)]
    if folder and not below:
        message = f'"{folder}" does not exist on "{revision.name}"'
        raise RefusedError(Refusal(status=HTTPStatus.NOT_FOUND, code="EntryNotFound", message=message))
    folders: set[str] = set()
    for file in below:
        parts = file.path[len(prefix) :].split("/")[:-1]
        depths = range(1, len(parts) + 1) if is_recursive else range(1, min(len(parts), 1) + 1)
        folders |= {prefix + "/".join(parts[:depth]) for depth in depths}
    listed = [file for file in below if is_recursive or "/" not in file.path[len(prefix) :]]
    records: list[dict[str, object]] = [
        {"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)
    ]
    return records + [file_record(file) for file in listed]


def reference_records(revisions: list[Revision]) -> dict[str, list[dict[str, str]]]:
    """Return every revision as a branch."""
    branches = [
        {"name": revision.name, "ref": f"refs/heads/{revision.name}", "targetCommit": revision.commit}
        for revision in revisions
    ]
    return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}


def repository_record(
    revision: Revision, restriction: Restriction | None, *, with_file_metadata: bool
) -> dict[str, object]:
    """Describe a repository at a revision."""
    visibility = restriction.visibility if restriction else "public"
    siblings: list[dict[str, object]] = []
    for file in revision.files.values():
        sibling: dict[str, object] = {"rfilename": file.path}
        if with_file_metadata:
            sibling |= {"size": file.size_bytes, "blobId": file.blob_id}
            sibling |= {"lfs": _lfs_record(file)} if file.is_lfs else {}
        siblings.append(sibling)
    return {
        "_id": revision.commit[:24],
        "id": revision.repo,
        "modelId": revision.repo,
        "author": revision.repo.split("/", maxsplit=1)[0],
        "sha": revision.commit,
        "lastModified": "2025-01-01T00:00:00.000Z",
        "private": visibility == "private",
        "gated": "auto" if visibility == "gated" else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


def file_record(file: RepoFile) -> dict[str, object]:
    """Describe a file as the listing of a tree does."""
    record: dict[str, object] = {"type": "file", "oid": file.blob_id, "size": file.size_bytes, "path": file.path}
    return record | ({"lfs": _lfs_record(file)} if file.is_lfs else {})


def _lfs_record(file: RepoFile) -> dict[str, object]:
    """Return the large file's record; the tree calls its id "oid", the list of siblings "sha256"."""
    return {"oid": file.sha256, "sha256": file.sha256, "size": file.size_bytes, "pointerSize": 134}
