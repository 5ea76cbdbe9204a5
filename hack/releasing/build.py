"""Makes a release: images, chart and client into a layout, then a bill of materials and a signature of each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from cyclonedx.model.component import ComponentType
from packageurl import PackageURL

from localcluster import images, packages, space, tools
from localcluster.imagespec import EPOCH_S, files
from localcluster.settings import REPOSITORY
from lora_trainer.spec.release import RELEASE
from releasing import artifacts, chart_metadata, contents, sbom
from releasing import layout as oci
from releasing.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from localcluster.console import Console
    from releasing.artifacts import Provenance
    from releasing.layout import Descriptor, Json, Layout
    from releasing.signing import Cosign, Signer

_CHART = REPOSITORY / "helm" / artifacts.CHART
_PINS = REPOSITORY / "requirements" / "client.txt"
_LAYOUT_GIB = 5
# What the wheel is built from.
_WHEEL_INPUTS = ("pyproject.toml", "README.md", "LICENSE", "operator", "trainer_image/lora_trainer")


def provenance() -> Provenance:
    """Time and name of the commit; ReleaseError outside of a clone."""
    git = ("git", "-C", str(REPOSITORY))
    shown = subprocess.run([*git, "show", "-s", "--format=%cI %H"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    if shown.returncode != 0 or changed.returncode != 0:
        raise ReleaseError("A release is made of a commit: clone the repository with git.")
    created, revision = shown.stdout.split()
    return artifacts.Provenance(created=created, revision="" if changed.stdout else revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Makes one release in a layout that does not exist yet.

    `registry` and `source` are where it will be published and the address of the repository, or empty.
    """

    layout: Layout
    origin: Provenance
    cosign: Cosign
    signer: Signer
    cache: Path
    console: Console
    registry: str
    source: str

    def make(self) -> None:
        packages.ensure(packages.RELEASES, self.console, self.cache / "packages.log")
        space.require(self.layout.folder.parent, _LAYOUT_GIB, "pack the release")
        self.layout.create()
        made = self._images()
        bills = {name: self._bill_of_image(name, image) for name, image in made.items()}
        charts = [PackageURL.from_string(url) for url in artifacts.chart_components(made)]
        bills[artifacts.CHART] = sbom.document(artifacts.CHART, RELEASE, ComponentType.APPLICATION, charts)
        pins = sbom.pinned_packages(_PINS.read_text())
        bills[artifacts.CLIENT] = sbom.document(artifacts.CLIENT, RELEASE, ComponentType.APPLICATION, pins)
        with self.console.step("package the chart"):
            made[artifacts.CHART] = self._chart()
        with self.console.step("build the client's wheel"):
            made[artifacts.CLIENT] = self._client()
        with self.console.step("sign"):
            for name, subject in made.items():
                self._attach(subject, artifacts.SIGNED, {})
                self._attach(subject, artifacts.BILL_OF_MATERIALS, json.loads(bills[name]))

    def _images(self) -> dict[str, Descriptor]:
        """Build the images unless that very content was built today, and pack them; returns name -> manifest."""
        today = datetime.now(tz=UTC).date().isoformat()
        builder = images.LocalBuilder(cache=self.cache, console=self.console, day=today)
        tags = images.build_all([image.name for image in artifacts.IMAGES], builder)
        found = {}
        for image in artifacts.IMAGES:
            place = artifacts.place(image.repository)
            builder.save(image, tags[image.name], self.layout.folder, place)
            built = self.layout.find(place)
            content = artifacts.image_manifest(self.layout.read_json(built), image.repository, self.origin)
            found[image.repository] = self.layout.put_manifest(content, place)
            self.layout.path(built.digest).unlink()
        return found

    def _bill_of_image(self, name: str, image: Descriptor) -> str:
        with self.console.step(f"list what {name} contains"):
            recorded = sbom.recorded_packages(contents.read(self.layout, image).records)
        return sbom.document(name, RELEASE, ComponentType.CONTAINER, recorded)

    def _chart(self) -> Descriptor:
        """Package the chart as Helm does."""
        helm = tools.ensure(tools.HELM, self.cache, self.console) / "helm"
        chart = yaml.safe_load((_CHART / "Chart.yaml").read_text())
        changelog = (REPOSITORY / "CHANGELOG.md").read_text()
        chart = chart_metadata.published(chart, changelog, registry=self.registry, source=self.source)
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(_CHART, Path(folder, artifacts.CHART))
            (copy / "Chart.yaml").write_text(yaml.safe_dump(chart, sort_keys=False, allow_unicode=True))
            _run([str(helm), "package", str(copy), "--destination", folder])
            (package,) = Path(folder).glob("*.tgz")
            title = {artifacts.TITLE: package.name}
            layer = self.layout.put(package.read_bytes(), artifacts.CHART_LAYER, annotations=title)
        config = self.layout.put(oci.encoded(chart), artifacts.CHART_CONFIG)
        content = artifacts.chart_manifest(config, layer, self.origin)
        return self.layout.put_manifest(content, artifacts.place(artifacts.CHART))

    def _client(self) -> Descriptor:
        """Build the wheel, with the commands lora and kubectl-lora, and add the versions that it is tested with."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "source"), Path(folder, "wheel")
            # In the repository itself, setuptools would keep, and pack again, what earlier builds left.
            for path in files(_WHEEL_INPUTS, REPOSITORY):
                copy = source / path.relative_to(REPOSITORY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps")
            _run([*pip, "--wheel-dir", str(target), str(source)], {"SOURCE_DATE_EPOCH": str(EPOCH_S)})
            (wheel,) = target.iterdir()
            content = {wheel.name: (wheel.read_bytes(), "application/zip")}
        content[artifacts.REQUIREMENTS] = (_PINS.read_bytes(), "text/plain")
        layers = [
            self.layout.put(data, kind, annotations={artifacts.TITLE: name}) for name, (data, kind) in content.items()
        ]
        return self.layout.put_manifest(
            artifacts.client_manifest(layers, self.origin), artifacts.place(artifacts.CLIENT)
        )

    def _attach(self, subject: Descriptor, predicate_type: str, predicate: Json) -> None:
        """Sign a statement about an artifact, and let it refer to that."""
        signed = self.cosign.sign(artifacts.statement(subject, predicate_type, predicate), self.signer)
        bundle = self.layout.put(signed, artifacts.BUNDLE)
        content = artifacts.bundle_manifest(subject, bundle, predicate_type, self.origin.created)
        self.layout.put_manifest(content)


def _run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(variables or {})})
    if done.returncode != 0:
        raise ReleaseError(f"`{' '.join(map(os.path.basename, command[:3]))}` failed: {done.stderr.strip()}")
