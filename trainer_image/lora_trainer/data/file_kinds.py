"""What a file's name says: whether and how rows are read from it, and whether it may hold rows that are not read."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

_KIND = re.compile(
    r".*(?:(?P<text>\.(?:jsonl|ndjson|json|csv))(?P<compression>\.gz|\.zst)?|(?P<parquet>\.parquet))", re.DOTALL
)

ENDINGS = ".jsonl, .ndjson, .json, .csv (these also with .gz or .zst) or .parquet"
"""What names of files that are read end in, as the part of a sentence."""

_ARCHIVES = {".gz", ".zst", ".bz2", ".xz", ".lzma", ".lz4", ".br", ".zip", ".7z", ".rar", ".tar", ".tgz"}
_TABLES = {".arrow", ".feather", ".avro", ".orc", ".tsv", ".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".h5", ".hdf5"}
_TABLES |= {".npy", ".npz", ".db", ".sqlite", ".sqlite3", ".msgpack", ".tfrecord", ".jsonlines"}
_DOUBTFUL = frozenset({".txt", ".text", ".xml", ".yaml", ".yml", ".html"})
_ABOUT = re.compile(r"[._].*|(?:readme|licen[cs]e|notice|requirements|checksums|sha256sums|md5sums)\b.*", re.IGNORECASE)
"""Files that describe a data set and hold none of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """The ending that says how rows are written, as `.jsonl`, and that of the compression around it, `.gz` or none."""

    suffix: str
    compression: str = ""


def file_kind(name: str) -> FileKind | None:
    """How a file of this name or path is read, None where it is not."""
    found = _KIND.fullmatch(name.lower())
    if found is None:
        return None
    return FileKind(suffix=found["text"] or found["parquet"], compression=found["compression"] or "")


def is_hidden(name: str) -> bool:
    """Whether a file of this name or path, or a folder on its way, is one that others keep for themselves."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def holds_unread_rows(name: str) -> bool:
    """Whether a file of this name or path is an archive or a table of a kind that is not read."""
    path = PurePosixPath(name)
    return file_kind(name) is None and path.suffix.lower() in _ARCHIVES | _TABLES and not _ABOUT.fullmatch(path.name)


def may_hold_rows(name: str) -> bool:
    """Whether a file of this name or path is text that is not read, and might be meant to be."""
    path = PurePosixPath(name)
    return path.suffix.lower() in _DOUBTFUL and not _ABOUT.fullmatch(path.name)


def some(names: Iterable[str]) -> str:
    """Names as the part of a sentence, eight of them at most."""
    listed: Sequence[str] = list(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more if listed else "nothing"
