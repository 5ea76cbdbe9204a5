"""What lies in safetensors files, read without the library, which would map whole files into memory.

The format: eight bytes with the header's length (little-endian), the header as JSON, then the tensors' bytes.
https://huggingface.co/docs/safetensors. Standard library only.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a file. `dtype` is the format's name for its type, `start` counts from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def header_bytes(stream: BinaryIO) -> bytes:
    """The header with the eight bytes before it; leaves the stream at the first tensor. Raises `ValueError`."""
    prefix = stream.read(8)
    size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 0 < size <= _MAX_HEADER_BYTES:
        raise ValueError("this is no safetensors file")
    return prefix + stream.read(size)


def entries_of(header: bytes) -> tuple[Entry, ...]:
    """The tensors by their place in the file. Raises `ValueError`."""
    document = json.loads(header[8:])
    document.pop("__metadata__", None)
    entries = [
        Entry(
            name=name,
            dtype=tensor["dtype"],
            shape=tuple(tensor["shape"]),
            start=tensor["data_offsets"][0],
            size_bytes=tensor["data_offsets"][1] - tensor["data_offsets"][0],
        )
        for name, tensor in document.items()
    ]
    return tuple(sorted(entries, key=lambda entry: entry.start))


def header_of(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """The header of a file with these tensors, with the eight bytes before it."""
    document: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry in entries:
        offsets = [entry.start, entry.start + entry.size_bytes]
        document[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    # The format's own writer puts the tensors at a multiple of eight bytes, which lets readers map them.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def metadata_of(header: bytes) -> dict[str, str]:
    """What a header says besides the tensors."""
    return dict(json.loads(header[8:]).get("__metadata__") or {})


def read_entries(path: Path) -> tuple[Entry, ...]:
    """The tensors of a file, from its header alone. Raises `OSError` and `ValueError`."""
    with path.open("rb") as stream:
        return entries_of(header_bytes(stream))


def chunks(stream: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """The next bytes of a stream in pieces. Raises `ValueError` where it ends before."""
    while size_bytes:
        data = stream.read(min(size_bytes, _CHUNK_BYTES))
        if not data:
            raise ValueError("the file ends within a tensor")
        size_bytes -= len(data)
        yield data
