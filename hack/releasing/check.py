"""Checks a release from its layout alone: every digest, who signed what, and whether the bills are complete."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

from lora_trainer.spec.release import RELEASE
from releasing import artifacts, contents, refusals, sbom
from releasing.errors import ReleaseError
from releasing.layout import described

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from localcluster.console import Console
    from releasing.layout import Descriptor, Json, Layout
    from releasing.signing import Cosign, Trust

_COMMANDS = ("lora", "kubectl-lora")


def check(layout: Layout, cosign: Cosign, trust: Trust, console: Console) -> list[str]:
    """A line for each artifact; ReleaseError with the first thing that is wrong."""
    with console.step("compare every file with its digest"):
        for problem in layout.problems():
            raise ReleaseError(f"The release in {layout.folder} is damaged: {problem}. Make it anew.")
    lines = []
    found = {name: layout.find(artifacts.place(name)) for name in artifacts.NAMES}
    for name, subject in found.items():
        with console.step(f"check {name}"):
            cosign.verified(layout, subject, artifacts.SIGNED, trust)
            bill = cosign.verified(layout, subject, artifacts.BILL_OF_MATERIALS, trust)
            for problem in _problems(layout, name, subject, bill, found):
                raise ReleaseError(f"{name}: {problem}.")
        lines.append(f"{name}:{RELEASE} {subject.digest} signed, {len(bill.get('components', ()))} components")
    with console.step("see another key and changed files refused"):
        refusals.require(layout, cosign, trust)
    return lines


def _problems(
    layout: Layout, name: str, subject: Descriptor, bill: Json, found: Mapping[str, Descriptor]
) -> Iterator[str]:
    if name == artifacts.CHART:
        yield from chart_problems(_layers(layout, subject), bill, {n: found[n] for n in found if n in _IMAGES})
    elif name == artifacts.CLIENT:
        yield from client_problems(_layers(layout, subject), bill)
    else:
        yield from image_problems(contents.read(layout, subject).paths, bill)


_IMAGES = {image.repository for image in artifacts.IMAGES}


def image_problems(paths: set[str], bill: Mapping[str, Any]) -> Iterator[str]:
    """What is installed and not in the bill of materials."""
    if missing := sorted(sbom.uncovered(bill, paths)):
        yield f"its bill of materials lacks {', '.join(missing)}"
    if not any(kind == "deb" for kind, _, _ in sbom.listed(bill)):
        yield "its bill of materials has no package of Debian"


def chart_problems(
    layers: Mapping[str, bytes], bill: Mapping[str, Any], images: Mapping[str, Descriptor]
) -> Iterator[str]:
    """Whether Helm can read the package, and whether it is for the images beside it."""
    ((name, content),) = layers.items()
    if name != f"{artifacts.CHART}-{RELEASE}.tgz":
        yield f"the package is {name}"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as archive:
        names = archive.getnames()
    if f"{artifacts.CHART}/Chart.yaml" not in names:
        yield "the package has no Chart.yaml"
    wanted = {("oci", name, image.digest) for name, image in images.items()}
    if sbom.listed(bill) != wanted:
        yield "its bill of materials has other images than the release"


def client_problems(layers: Mapping[str, bytes], bill: Mapping[str, Any]) -> Iterator[str]:
    """Whether the wheel has the commands, and whether the bill has every package that is pinned for it."""
    for name, content in layers.items():
        if name.endswith(".whl"):
            with zipfile.ZipFile(io.BytesIO(content)) as wheel:
                (entries,) = (entry for entry in wheel.namelist() if entry.endswith(".dist-info/entry_points.txt"))
                commands = {line.partition(" = ")[0] for line in wheel.read(entries).decode().splitlines()}
            if missing := set(_COMMANDS) - commands:
                yield f"{name} has no command {min(missing)}"
            if f"-{RELEASE}-" not in name:
                yield f"{name} is not of release {RELEASE}"
        else:
            pinned = {("pypi", package.name, package.version) for package in sbom.pinned_packages(content.decode())}
            if pinned != sbom.listed(bill):
                yield f"its bill of materials and {name} differ"


def _layers(layout: Layout, subject: Descriptor) -> dict[str, bytes]:
    """Title -> content of an artifact's files."""
    layers = map(described, layout.read_json(subject)["layers"])
    return {layer.annotations[artifacts.TITLE]: layout.path(layer.digest).read_bytes() for layer in layers}
