"""Files to streams of bytes: what is compressed is decompressed as it is read, in bounded memory."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_trainer.data.file_kinds import FileKind
from lora_trainer.errors import DatasetError

_LIBRARIES = {".gz": "gzip", ".zst": "zstd"}
_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1\x15": "Parquet",
}
"""How files begin that are no text; none of these is the beginning of a text that could be meant."""

_REMEDIES = {"gzip": "name it {name}.gz", "zstd": "name it {name}.zst", "Parquet": "let its name end in .parquet"}


@contextmanager
def open_text(name: str, path: Path, kind: FileKind) -> Iterator[io.BufferedReader]:
    """The text of a file. What is read within may raise `DatasetError`, for what is cut off, damaged or no text."""
    with path.open("rb") as raw:
        if not kind.compression:
            _check_is_text(name, raw)
            yield raw
            return
        try:
            with io.BufferedReader(_decompressed(raw, kind)) as stream:
                _check_is_text(name, stream, compressed=True)
                yield stream
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the volume failed, not the file; the libraries' own errors have no number
            text = " ".join(str(error).split())[:200]
            raise DatasetError(
                f"{name}: cut off, damaged or no {_LIBRARIES[kind.compression]} ({text}); compress or copy it again, "
                f"or leave {kind.compression} out of its name if it is not compressed"
            ) from error


def _decompressed(raw: io.BufferedReader, kind: FileKind) -> Any:
    if kind.compression == ".gz":
        return gzip.GzipFile(fileobj=raw)
    import pyarrow  # noqa: PLC0415 - takes a second to import

    return pyarrow.CompressedInputStream(raw, _LIBRARIES[kind.compression])


def _check_is_text(name: str, stream: io.BufferedReader, *, compressed: bool = False) -> None:
    beginning = stream.peek(16)[:16]
    found = next((what for signature, what in _SIGNATURES.items() if beginning.startswith(signature)), None)
    if found is None:
        return
    remedy = "compress it once, as text" if compressed else _REMEDIES.get(found, "unpack it").format(name=name)
    raise DatasetError(f"{name}: the file is {found} and not text; {remedy}")
