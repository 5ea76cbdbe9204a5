"""What lies in safetensors files, read without the library, which would map whole files into memory.

The format: eight bytes with the header's length (little-endian), the header as JSON, then the tensors' bytes.
https://huggingface.co/docs/safetensors. Standard library only.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAX_HEADER_BYTES = 100_000_000
PREFIX_BYTES = 8
_TYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a file. `dtype` is the format's name for its type, `start` counts from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def header_length(prefix: bytes) -> int:
    """Bytes of the header by the eight bytes before it. Raises `ValueError` where no such file has them."""
    size = int(struct.unpack("<Q", prefix[:PREFIX_BYTES])[0]) if len(prefix) >= PREFIX_BYTES else 0
    if not 0 < size <= _MAX_HEADER_BYTES:
        raise ValueError("this is not a safetensors file")
    return size


def header_bytes(stream: BinaryIO) -> bytes:
    """The header with the eight bytes before it; leaves the stream at the first tensor. Raises `ValueError`."""
    prefix = stream.read(PREFIX_BYTES)
    length = header_length(prefix)
    header = stream.read(length)
    if len(header) != length:
        raise ValueError("the file ends within its header")
    return prefix + header


def entries_of(header: bytes) -> tuple[Entry, ...]:
    """The tensors by their place in the file. Raises `ValueError` for whatever else somebody put there."""
    try:
        document = json.loads(header[PREFIX_BYTES:])
        document.pop("__metadata__", None)
        entries = [_entry(name, tensor) for name, tensor in document.items()]
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError("its header does not list tensors") from error
    return tuple(sorted(entries, key=lambda entry: entry.start))


def _entry(name: str, tensor: Mapping[str, Any]) -> Entry:
    dtype, shape, (start, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    if not isinstance(dtype, str) or not isinstance(shape, list) or not whole or end < start:
        raise ValueError("its header does not list tensors")
    entry = Entry(name=name, dtype=dtype, shape=tuple(shape), start=start, size_bytes=end - start)
    # Types of less than a byte, and later ones, are not known here.
    if dtype in _TYPE_BYTES and entry.values * _TYPE_BYTES[dtype] != entry.size_bytes:
        raise ValueError(f"its header says that {name[:60]} has {entry.size_bytes} bytes, its shape says other")
    return entry


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
