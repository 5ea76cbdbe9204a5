"""A release of a few hundred bytes."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from releasing import artifacts
from releasing.layout import Descriptor, Layout, manifest

ORIGIN = artifacts.Provenance(created="2026-01-02T03:04:05+00:00", revision="abc")
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u13
Description: GNU C Library
 of many lines

Package: libpam0g
Status: install ok installed
Architecture: amd64
Source: pam (1.5.2-6)
Version: 1.5.2-6+b1

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
SITE = "opt/venv/lib/python3.11/site-packages"
TORCH = "Metadata-Version: 2.4\nName: torch\nVersion: 2.15.0\n\nName: not this\n"
LOWER = {
    "var/lib/dpkg/status": STATUS,
    "var/lib/dpkg/info/libc6:amd64.list": "/.\n",
    "var/lib/dpkg/info/libpam0g:amd64.list": "/.\n",
    f"{SITE}/pip-25.dist-info/METADATA": "Name: pip\nVersion: 25\n",
    f"{SITE}/kept/a.py": "",
}
UPPER = {
    f"{SITE}/.wh.pip-25.dist-info": "",
    f"{SITE}/torch-2.15.0.dist-info/METADATA": TORCH,
    f"{SITE}/torch-2.15.0.dist-info/RECORD": "",
    "app/.hidden": "",
}


def packed(files: Mapping[str, str]) -> bytes:
    """A layer of these files, as gzip."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


def image_in(folder: Path, *layers: Mapping[str, str]) -> tuple[Layout, Descriptor]:
    """A new layout with an image of these layers, the lowest first."""
    layout = Layout(folder=folder)
    layout.create()
    parts = [layout.put(packed(files), "application/vnd.oci.image.layer.v1.tar+gzip") for files in layers]
    content = manifest(parts, annotations=ORIGIN.annotations("lora-operator"))
    return layout, layout.put_manifest(content, artifacts.place("lora-operator"))
