"""`lora pull`: the result of a run in a folder here, every byte of it checked against the run's digest."""

import hashlib
import importlib.resources
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lora_client.cluster.connection import Cluster, Object
from lora_client.cluster.helper import helper
from lora_client.cluster.process import Lasting, Process
from lora_client.errors import ClientError
from lora_client.output import Form, note, show
from lora_client.views.helper_pod import CONTAINER, Need, adapter_place, folder_of
from lora_client.views.resources import name_of, text
from lora_operator.model.wording import byte_size

CHUNK = 4 * 2**20
"""Bytes that are asked for at a time: what is under way is held in memory."""
MANIFEST = "manifest.json"
_MOST_MANIFEST = 64 * 2**20
_ANSWER_S = 120.0
_HIDDEN = ".lora-pull-"
_NO_PART = frozenset({MANIFEST, ".run", ".manifest"})
_DEVICE = r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])[ ]*(?:\.[^/]*)?(?:/|\Z)"
_PART = rf'(?!(?i:{_DEVICE}))[^\x00-\x1f<>:"/\\|?*]*[^\x00-\x1f<>:"/\\|?*. ]'
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
"""What names a file below a folder on every system: on Windows `C:x` leads elsewhere, `nul.txt` is a device, and what
ends in a dot or a blank is a file of another name."""


class Source(Protocol):
    """A process that hands out files as `in_pod.files` does."""

    def write(self, data: bytes) -> None: ...
    def line(self, timeout_s: float) -> bytes: ...
    def bytes(self, count: int, timeout_s: float) -> bytes: ...


def pull(cluster: Cluster, name: str, folder: str | None, form: Form) -> None:
    """Copy the result and print its folder. Raises as `pulled`."""
    run = cluster.get("lorafinetunes", name)
    target = pulled(cluster, run, folder)
    show(form, [run], [f"{target}: the adapter of {name}, its digest as the run reported it"])


def pulled(cluster: Cluster, run: Object, folder: str | None) -> Path:
    """Copy the result and return its folder. Raises `ClientError`, also for a result that is not what was trained."""
    target = Path(folder or name_of(run))
    adapter_place(run)
    require_new(target)
    with _files(cluster, run, whole=True) as source:
        fetch(source, target, text(run, "status", "artifact", "digest"), note)
    return target


def read_file(cluster: Cluster, run: Object, name: str) -> bytes:
    """One file of a result, which memory has room for. Raises `ClientError`."""
    with _files(cluster, run) as source:
        sizes = listed(source)
        if name not in sizes:
            raise ClientError(f"There is no {name} beside the adapter of {name_of(run)}")
        return b"".join(chunks(source, name, sizes[name]))


@contextmanager
def _files(cluster: Cluster, run: Object, *, whole: bool = False) -> Iterator[Source]:
    place = adapter_place(run)
    program = importlib.resources.files("lora_client.in_pod").joinpath("files.py").read_text(encoding="utf-8")
    command = ["python3", "-c", program, folder_of(place)]
    with (
        helper(cluster, run, Need(verb="pull", whole=whole)) as pod,
        Lasting(lambda: Process(cluster, pod, CONTAINER, command)) as process,
    ):
        yield process


def require_new(folder: Path) -> None:
    """Raises `ClientError` where there is something already, which is never overwritten, or where nothing can be."""
    folder = folder.absolute()
    try:
        if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise ClientError(f"{folder} exists already: name another folder, or remove it")
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> ClientError:
    return ClientError(f"{folder} cannot be written ({error.strerror}): name another folder")


def fetch(source: Source, folder: Path, digest: str, report: Callable[[str], None]) -> None:
    """Copy a result into a new folder, whole or not at all. Raises `ClientError` for one that was changed."""
    sizes = listed(source)
    if MANIFEST not in sizes or sizes[MANIFEST] > _MOST_MANIFEST:
        raise ClientError(f"There is no {MANIFEST} at the adapter's place: it was moved or removed after the run")
    manifest = b"".join(chunks(source, MANIFEST, sizes[MANIFEST]))
    found = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    if found != digest:
        raise ClientError(
            f"{MANIFEST} has the digest {found[:19]}…, and the run reported {digest[:19]}…: the adapter was "
            "changed after the run, and nothing was copied"
        )
    wanted = _entries(manifest)
    added = sizes.keys() - wanted.keys() - _NO_PART
    if added:
        raise ClientError(f"{min(added)} was added to the adapter after the run, and nothing was copied")
    report(f"Copying {len(wanted)} files, {byte_size(sum(size for _, size in wanted.values()))}")
    folder = folder.absolute()
    try:
        with _beside(folder) as partial:
            for name, (sha256, size) in wanted.items():
                _copy(source, partial / name, name, sha256=sha256, size=size, there=sizes.get(name))
            (partial / MANIFEST).write_bytes(manifest)
            _move(partial, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new folder on the volume of this one, gone afterwards: within an empty one, which may be a volume's own."""
    place = folder if folder.is_dir() else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=place, ignore_cleanup_errors=True) as hidden:
        partial = Path(hidden) / "files"  # what is made by tempfile itself, others could not read
        partial.mkdir()
        yield partial


def _move(partial: Path, folder: Path) -> None:
    """Raises `ClientError`, `OSError` where something has come there in the meantime."""
    if not folder.is_dir():
        partial.rename(folder)
        return
    if any(not path.name.startswith(_HIDDEN) for path in folder.iterdir()):
        raise ClientError(f"{folder} exists already: name another folder, or remove it")
    for path in list(partial.iterdir()):
        path.rename(folder / path.name)


def _copy(source: Source, path: Path, name: str, *, sha256: str, size: int, there: int | None) -> None:
    if there != size:
        state = "is missing" if there is None else f"has {there:,} bytes instead of {size:,}"
        raise ClientError(f"{name} {state}: the adapter was changed or damaged after the run, and nothing was kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("xb") as stream:  # names that differ in case are one file on Windows and macOS
        for data in chunks(source, name, size):
            digest.update(data)
            stream.write(data)
    if digest.hexdigest() != sha256:
        raise ClientError(
            f"{name} has another sha256 than the run's manifest says: the adapter was changed or damaged after the "
            "run, and nothing was kept"
        )


def _entries(manifest: bytes) -> dict[str, tuple[str, int]]:
    """Path to digest and size, by the manifest, whose other fields another release may have changed."""
    try:
        files: list[Mapping[str, Any]] = json.loads(manifest)["files"]
        entries = {str(f["path"]): (str(f["sha256"]), int(f["size_bytes"])) for f in files}
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(
            f"{MANIFEST} cannot be read: the adapter was made by a release that this client does not know"
        ) from error
    for path in entries:
        if not _PATH.fullmatch(path):
            raise ClientError(
                f"{MANIFEST} names {path!r}, which leads out of the adapter's folder or is not a file's name on every "
                "system: nothing was copied"
            )
    return entries


def listed(source: Source) -> dict[str, int]:
    """File to size in bytes."""
    answer = _ask(source, {"list": True})
    return {str(name): int(size) for name, size in answer["files"]}


def chunks(source: Source, name: str, size: int) -> Iterator[bytes]:
    """A file in parts."""
    for start in range(0, size, CHUNK):
        wanted = min(CHUNK, size - start)
        count = int(_ask(source, {"read": name, "from": start, "bytes": wanted})["bytes"])
        if count != wanted:
            raise ClientError(
                f"{name} became shorter while it was copied: the adapter is being changed; nothing was kept"
            )
        yield source.bytes(count, _ANSWER_S)


def _ask(source: Source, request: Mapping[str, Any]) -> dict[str, Any]:
    source.write(json.dumps(request).encode() + b"\n")
    line = source.line(_ANSWER_S)
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise ClientError(f"The pod answered what cannot be read ({line[:80]!r}): try again") from error
    if "error" in answer:
        what = f"{request['read']}: " if "read" in request else ""
        raise ClientError(
            f"The adapter cannot be read ({what}{answer['error']}): it was moved or removed after the run"
        )
    return answer
