"""Chart.yaml as it is published: with the annotations of Artifact Hub that are known at a release alone.

The format: artifacthub/hub, docs/helm_annotations.md. There is no signKey, which is a PGP key of Helm's own provenance
files: Artifact Hub finds cosign's signatures in the registry.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from lora_trainer.spec.release import RELEASE
from releasing.artifacts import IMAGES
from releasing.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_KINDS = {"added", "changed", "deprecated", "removed", "fixed", "security"}
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def published(chart: Mapping[str, Any], changelog: str, *, registry: str = "", source: str = "") -> dict[str, Any]:
    """Chart.yaml with what has changed, and with the images and the repository's links where these are known."""
    annotations = {**chart["annotations"], "artifacthub.io/changes": _text(list(changes(changelog)))}
    content = dict(chart)
    if registry:
        images = [
            {"name": image.repository, "image": f"{registry.rstrip('/')}/{image.repository}:{RELEASE}"}
            for image in IMAGES
        ]
        annotations["artifacthub.io/images"] = _text(images)
    if source:
        content |= {"home": source, "sources": [source]}
        links = {"Source": source, "Documentation": f"{source}/blob/HEAD/README.md", "Support": f"{source}/issues"}
        annotations["artifacthub.io/links"] = _text([{"name": name, "url": url} for name, url in links.items()])
    return content | {"annotations": annotations}


def changes(changelog: str) -> Iterator[dict[str, str]]:
    """The entries of the changelog's newest section, without links, whose targets are files of the repository."""
    newest = changelog.split("\n## ")[1]
    for part in newest.split("\n### ")[1:]:
        heading, _, text = part.partition("\n")
        kind = heading.strip().lower()
        if kind not in _KINDS:
            raise ReleaseError(f"CHANGELOG.md has the heading {heading!r}: use one of {', '.join(sorted(_KINDS))}.")
        for entry in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
            yield {"kind": kind, "description": _LINK.sub(r"\1", " ".join(entry.split()))}


def _text(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
