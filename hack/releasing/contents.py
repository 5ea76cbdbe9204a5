"""What files an image of a layout has, by a pass over its packed layers."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from releasing.errors import ReleaseError
from releasing.layout import Descriptor, Layout, described
from releasing.sbom import is_record

if TYPE_CHECKING:
    from collections.abc import Iterator

_REMOVED = ".wh."
_EMPTIED = ".wh..wh..opq"


@dataclass(slots=True)
class Contents:
    """Paths of the files, without a leading slash, and the content of those that record what is installed."""

    paths: set[str] = field(default_factory=set)
    records: dict[str, bytes] = field(default_factory=dict)

    def remove(self, path: str) -> None:
        """A file or folder that a later layer took away."""
        gone = {known for known in self.paths if known == path or known.startswith(f"{path}/")}
        self.paths -= gone
        for known in gone:
            self.records.pop(known, None)


def read(layout: Layout, image: Descriptor) -> Contents:
    """The files of an image, of its lowest layer first.

    Raises ReleaseError for layers that cannot be read.
    """
    contents = Contents()
    for layer in layout.read_json(image)["layers"]:
        descriptor = described(layer)
        above, removed = Contents(), []
        try:
            for member, file in _members(layout, descriptor):
                removed += add(above, member, file)
        except (tarfile.TarError, EOFError) as error:
            raise ReleaseError(
                f"The layer {descriptor.digest} cannot be read ({error}): make the release anew."
            ) from error
        for path in removed:
            contents.remove(path)
        contents.paths |= above.paths
        contents.records |= above.records
    return contents


def add(layer: Contents, member: tarfile.TarInfo, file: IO[bytes] | None) -> list[str]:
    """Take in one entry of a layer; returns what it removes of the layers below (image-spec, layer.md)."""
    path = PurePosixPath(member.name.removeprefix("./"))
    if path.name == _EMPTIED:
        return [str(path.parent)]
    if path.name.startswith(_REMOVED):
        return [str(path.with_name(path.name.removeprefix(_REMOVED)))]
    if not member.isdir():
        layer.paths.add(str(path))
        if file is not None and is_record(str(path)):
            layer.records[str(path)] = file.read()
    return []


def _members(layout: Layout, layer: Descriptor) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    path = layout.path(layer.digest)
    if not layer.media_type.endswith("+zstd"):
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                yield member, archive.extractfile(member) if member.isreg() else None
        return
    with (
        subprocess.Popen(["zstd", "--decompress", "--stdout", str(path)], stdout=subprocess.PIPE) as program,
        tarfile.open(fileobj=program.stdout, mode="r|") as archive,
    ):
        for member in archive:
            yield member, archive.extractfile(member) if member.isreg() else None
