"""Shows that a check can fail: another key and changed files are refused, or a check that passes means nothing."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from releasing import artifacts
from releasing.errors import ReleaseError
from releasing.layout import Layout, described
from releasing.signing import PublicKey

if TYPE_CHECKING:
    from releasing.layout import Descriptor
    from releasing.signing import Cosign, Trust


def require(layout: Layout, cosign: Cosign, trust: Trust) -> None:
    """Raises ReleaseError for an artifact that is accepted with another key, or with a changed file."""
    with tempfile.TemporaryDirectory() as folder:
        cosign.generate(Path(folder), secrets.token_urlsafe())
        foreign = PublicKey(path=Path(folder, "cosign.pub"))
        for name in artifacts.NAMES:
            _refused(cosign, layout, layout.find(artifacts.place(name)), foreign, "another key")
        client = layout.find(artifacts.place(artifacts.CLIENT))
        for number, digest in enumerate(_files(layout, client)):
            copy = _copy(layout, client, Path(folder, str(number)))
            flip(copy.path(digest))
            if not any(digest in problem for problem in copy.problems()):
                raise ReleaseError(f"A changed byte of {digest} was not noticed: trust no check of this release.")
        copy = _copy(layout, client, Path(folder, "signatures"))
        for referrer in copy.referrers(client):
            flip(copy.path(copy.read_json(referrer)["layers"][0]["digest"]))
        _refused(cosign, copy, client, trust, "changed signatures")


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _refused(cosign: Cosign, layout: Layout, subject: Descriptor, trust: Trust, what: str) -> None:
    for kind in (artifacts.SIGNED, artifacts.BILL_OF_MATERIALS):
        try:
            cosign.verified(layout, subject, kind, trust)
        except ReleaseError:
            continue
        raise ReleaseError(f"{subject.digest} was accepted with {what}: trust no check of this release.")


def _files(layout: Layout, subject: Descriptor) -> list[str]:
    """The manifest of an artifact, what it refers to and what refers to it."""
    manifests = [subject, *layout.referrers(subject)]
    parts = [described(layer) for one in manifests for layer in layout.read_json(one)["layers"]]
    return [part.digest for part in (*manifests, *parts)]


def _copy(layout: Layout, subject: Descriptor, folder: Path) -> Layout:
    """A layout of this artifact alone."""
    copy = Layout(folder=folder)
    copy.create()
    for digest in {*_files(layout, subject), *_configs(layout, subject)}:
        shutil.copyfile(layout.path(digest), copy.path(digest))
    copy.write_index([subject, *layout.referrers(subject)])
    return copy


def _configs(layout: Layout, subject: Descriptor) -> list[str]:
    return [layout.read_json(one)["config"]["digest"] for one in (subject, *layout.referrers(subject))]
