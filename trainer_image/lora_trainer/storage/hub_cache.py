"""Large files in the Hub client's cache: fetched in pieces, compared with their sha256, once for all runs.

The client library fetches a file anew after every cut, and compares its length alone. It takes what lies under its own
name, so a large file is put there first. A stamp with size and time of change spares the next run the arithmetic.
"""

import contextlib
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import urllib3

from lora_trainer.errors import TransientError
from lora_trainer.storage.downloads import fetch_whole
from lora_trainer.storage.lock import held
from lora_trainer.storage.network import http_pool, is_own
from lora_trainer.storage.sealed import entry_of

_STAMPS = ".verified"
_FETCHES = 2
"""How often a file is fetched that arrives with other bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeFile:
    """What the Hub says of a file's content."""

    sha256: str
    size_bytes: int


def fetch_large(
    storage: Path,
    file: LargeFile,
    locate: Callable[[], str],
    *,
    token: str | bool,
    endpoint: str | None,
    what: str,
) -> None:
    """Put a file under its sha256 into `storage`/blobs. `locate` asks the Hub for its address, which may expire.

    Raises `TransientError` where it keeps being cut off or arrives with other bytes, and what `locate` raises.
    """
    blob = storage / "blobs" / file.sha256
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(blob)
    # A full cache that has the file is good enough. Who has the lock may be removing a damaged one.
    with contextlib.suppress(FileNotFoundError):
        if _is_intact(blob, file):
            return
    with held(blob.with_name(f".{file.sha256}.lock"), what) as lock:
        if _is_intact(blob, file):
            return
        blob.unlink(missing_ok=True)
        for _ in range(_FETCHES):
            fetch_whole(
                partial,
                file.size_bytes,
                lambda have: _open(locate(), have, token, endpoint),
                what=what,
                may_write=lock.check,
            )
            if entry_of(partial.parent, partial.name).sha256 == file.sha256:
                lock.check()
                partial.rename(blob)
                _stamp(blob)
                return
            partial.unlink()
        raise TransientError(f"{what} arrived with other bytes than the sha256 that the Hub names")


def blob_or_partial(storage: Path, file: LargeFile) -> Path:
    """Where a file lies in `storage`, or what has arrived of it; neither need exist."""
    blob = storage / "blobs" / file.sha256
    return blob if blob.is_file() else _partial(blob)


def _partial(blob: Path) -> Path:
    return blob.with_name(f".{blob.name}.partial")


def _open(url: str, have: int, token: str | bool, endpoint: str | None) -> urllib3.BaseHTTPResponse:
    return opened(url, (206,) if have else (200,), token, endpoint, wanted=f"bytes={have}-" if have else None)


def opened(
    url: str, statuses: Container[int], token: str | bool, endpoint: str | None, *, wanted: str | None
) -> urllib3.BaseHTTPResponse:
    """A file of the Hub, or the bytes of it that `wanted` (a header `Range`) names; an answer of another status is
    raised as what `explain_hub` understands."""
    # A storage that the Hub redirects to has its own signature in the address, and must not see the token.
    own = is_own(url, endpoint or "https://huggingface.co")
    headers = {"Authorization": f"Bearer {token}"} if token and own else {}
    if wanted:
        headers["Range"] = wanted
    response = http_pool(url).request(
        "GET", url, headers={**headers, "Accept-Encoding": "identity"}, preload_content=False
    )
    if response.status not in statuses:
        response.drain_conn()
        raise _AnswerError(response)
    return response


class _AnswerError(Exception):
    """An answer without content; `response` as the Hub's own errors have it."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        super().__init__(f"HTTP status {response.status}")
        self.response = _Answer(status_code=response.status, headers=dict(response.headers))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status_code: int
    headers: dict[str, str]


def _is_intact(blob: Path, file: LargeFile) -> bool:
    if not blob.is_file() or blob.stat().st_size != file.size_bytes:
        return False
    stamp = _stamp_file(blob)
    if stamp.is_file() and stamp.read_text(encoding="ascii") == _state(blob):
        return True
    if entry_of(blob.parent, blob.name).sha256 != file.sha256:
        return False
    _stamp(blob)
    return True


def _stamp(blob: Path) -> None:
    stamp = _stamp_file(blob)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(_state(blob), encoding="ascii")


def _stamp_file(blob: Path) -> Path:
    return blob.parent.parent / _STAMPS / blob.name


def _state(blob: Path) -> str:
    found = blob.stat()
    return f"{found.st_size} {found.st_mtime_ns}"
