"""Files of weights as large as real ones, of which only the headers take room on the disk."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

Shapes = Mapping[str, list[int]]


def header(shapes: Shapes) -> tuple[bytes, int]:
    """The header of a file of bf16 tensors, with the eight bytes before it, and the bytes that follow it."""
    document, start = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        document[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text, start


def write_weights(path: Path, shapes: Shapes) -> int:
    """Write the file, all zeros behind its header; the header's bytes."""
    beginning, size = header(shapes)
    with path.open("wb") as stream:
        stream.write(beginning)
        stream.truncate(len(beginning) + size)
    return len(beginning)


def quick_digests(location: Path, size_bytes: int) -> tuple[str, str]:
    """For `hub.repositories._digests`: of such files the header alone is hashed, since zeros of gigabytes take long."""
    with location.open("rb") as stream:
        content = stream.read(2**20)
    sha1 = hashlib.sha1(content + size_bytes.to_bytes(8, "little"), usedforsecurity=False)
    return hashlib.sha256(content).hexdigest(), sha1.hexdigest()
