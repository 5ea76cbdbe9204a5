"""Bills of materials: what packages an image has, by the records of dpkg and pip, as a CycloneDX document."""

from __future__ import annotations

import email
import re
import uuid
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DPKG_STATUS = "var/lib/dpkg/status"
_DPKG_LIST = re.compile(r"var/lib/dpkg/info/([^/:]+)(?::[^/]+)?\.list")
_DIST_INFO = re.compile(r"(?:.*/)?([^/]+)-([^/-]+)\.dist-info(?:/.*)?")
_SOURCE = re.compile(r"(\S+)(?: \((\S+)\))?")
_NAMESPACE = uuid.UUID("5f0b6c52-0c3c-4a53-9b0e-5d2a7e8f6f11")


def debian_packages(status: str, distribution: str = "debian-12") -> Iterator[PackageURL]:
    """The installed packages of dpkg's status file, with their source packages, which security trackers go by."""
    for stanza in status.split("\n\n"):
        fields = email.message_from_string(stanza)
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        qualifiers = {"arch": fields["Architecture"], "distro": distribution}
        if source := _SOURCE.match(fields.get("Source", "")):
            qualifiers["upstream"] = "@".join(filter(None, source.groups()))
        yield PackageURL("deb", "debian", fields["Package"], fields["Version"], qualifiers)


def python_package(metadata: str) -> PackageURL:
    """The package of a METADATA file, core metadata of PyPA."""
    fields = email.message_from_string(metadata)
    return PackageURL("pypi", None, fields["Name"], fields["Version"])


def pinned_packages(requirements: str) -> Iterator[PackageURL]:
    """The packages of a file with exact requirements."""
    for line in requirements.splitlines():
        name, equal, version = line.partition("==")
        if equal and not line.startswith("#"):
            yield PackageURL("pypi", None, name, version)


def is_record(path: str) -> bool:
    """Whether a file of an image says what is installed."""
    parts = PurePosixPath(path).parts
    return path == DPKG_STATUS or (len(parts) > 1 and parts[-1] == "METADATA" and parts[-2].endswith(".dist-info"))


def recorded_packages(records: Mapping[str, bytes]) -> list[PackageURL]:
    """What the records of an image list; a package that lies there twice is listed once."""
    found = list(debian_packages(records.get(DPKG_STATUS, b"").decode()))
    found += [python_package(content.decode()) for path, content in records.items() if path != DPKG_STATUS]
    return sorted(set(found), key=str)


def document(name: str, version: str, kind: ComponentType, packages: Iterable[PackageURL]) -> str:
    """A CycloneDX 1.6 document, the same for the same packages but for its time."""
    chosen = list(packages)
    serial = uuid.uuid5(_NAMESPACE, "\n".join([name, version, *map(str, chosen)]))
    components = [_component(package) for package in chosen]
    bom = Bom(components=components, serial_number=serial)
    bom.metadata.component = Component(name=name, version=version, type=kind, bom_ref=name)
    if components:
        bom.register_dependency(bom.metadata.component, components)
    return str(JsonV1Dot6(bom).output_as_string())


def _component(package: PackageURL) -> Component:
    kind = ComponentType.CONTAINER if package.type == "oci" else ComponentType.LIBRARY
    return Component(name=package.name, version=package.version, type=kind, purl=package, bom_ref=str(package))


def listed(content: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    """(ecosystem, name, version) of each component of a document."""
    found = (PackageURL.from_string(component["purl"]) for component in content.get("components", ()))
    return {(package.type, package.name, package.version or "") for package in found}


def uncovered(content: Mapping[str, Any], paths: Iterable[str]) -> set[str]:
    """What the names of an image's files show to be installed, and its document does not list.

    dpkg keeps a list of files for each package, and pip a folder NAME-VERSION.dist-info: neither is what the document
    was made of.
    """
    components = listed(content)
    debian = {name for ecosystem, name, _ in components if ecosystem == "deb"}
    python = {(_canonical(name), version) for ecosystem, name, version in components if ecosystem == "pypi"}
    missing = set()
    for path in paths:
        if (found := _DPKG_LIST.fullmatch(path)) and found[1] not in debian:
            missing.add(f"Debian's package {found[1]}")
        if (found := _DIST_INFO.fullmatch(path)) and (_canonical(found[1]), found[2]) not in python:
            missing.add(f"Python's package {found[1]} {found[2]}")
    return missing


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
