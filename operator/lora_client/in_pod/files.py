"""Hand out the files below a folder: a request as JSON on each line of standard input, its answer on standard output.

{"list": true}                             -> {"files": [["train.log", 123], ...]}
{"read": "a/b", "from": 0, "bytes": 4096}  -> {"bytes": n} and n bytes after the line's end
Whatever goes wrong is answered with {"error": "..."}. The client sends it to `python3 -c`, so it imports none of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO


def main(folder: Path, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the input ends."""
    for line in source:
        answer: dict[str, Any] = {}
        data = b""
        try:
            request: dict[str, Any] = json.loads(line)
            if request.get("list"):
                answer = {"files": listed(folder)}
            else:
                data = read(folder, request["read"], request["from"], request["bytes"])
                answer = {"bytes": len(data)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            answer = {"error": getattr(error, "strerror", None) or str(error) or type(error).__name__}
        sink.write(json.dumps(answer).encode() + b"\n" + data)
        sink.flush()


def listed(folder: Path) -> "list[tuple[str, int]]":
    """Every regular file with its size; a link could lead to any file of the pod."""
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


def read(folder: Path, name: str, start: int, count: int) -> bytes:
    """A part of one file."""
    if name not in dict(listed(folder)):
        raise ValueError("there is no such file in the folder")
    with (folder / name).open("rb") as stream:
        stream.seek(start)
        return stream.read(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
