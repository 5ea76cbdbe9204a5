"""A file fetched in as many pieces as the network cuts it into, each byte once."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import urllib3

from lora_trainer.errors import TransientError
from lora_trainer.storage.network import ATTEMPTS

_CHUNK_BYTES = 2**20


def fetch_whole(
    partial: Path,
    size_bytes: int,
    open_at: Callable[[int], urllib3.BaseHTTPResponse],
    *,
    what: str,
    may_write: Callable[[], None] = lambda: None,
) -> None:
    """Complete `partial`, which an earlier attempt may have begun; `open_at` asks for the content from a byte on,
    `may_write` raises where the file is another's by now.

    Raises `TransientError` after several answers in a row that brought nothing, and what `open_at` raises: that has
    tried its request several times, and is not asked for more.
    """
    have = partial.stat().st_size if partial.is_file() else 0
    if have > size_bytes:
        partial.unlink()
        have = 0
    partial.touch()
    in_vain = 0
    while have != size_bytes:
        response = open_at(have)
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            _append(partial, response, may_write)
        before, have = have, partial.stat().st_size
        in_vain = 0 if have > before else in_vain + 1
        if in_vain == ATTEMPTS or have > size_bytes:
            raise TransientError(
                f"{what} is cut off after {have} of {size_bytes} bytes; what has arrived is kept, and the next attempt "
                "continues from there"
            )


def _append(partial: Path, response: urllib3.BaseHTTPResponse, may_write: Callable[[], None]) -> None:
    with contextlib.closing(response), partial.open("ab") as out:
        # read1 gives what has arrived: of a cut connection nothing is lost.
        while chunk := response.read1(_CHUNK_BYTES):
            may_write()
            out.write(chunk)
            # What a buffer keeps would be written at the end, whoever has the file by then.
            out.flush()
