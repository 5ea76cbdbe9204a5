"""Builds the images, with what is at hand, and pushes them where the cluster's nodes find them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localcluster import packages, settings, space
from localcluster.attempts import twice
from localcluster.errors import ClusterError
from localcluster.imagespec import IMAGES, PUBLIC_BASE, Image, stage, tag
from localcluster.processes import locked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localcluster.console import Console

_BASE_PACKAGES = "python3,python3-venv,ca-certificates,tini"
_BASE_RECIPE = (
    "--variant=minbase",
    f"--include={_BASE_PACKAGES}",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "bookworm",
)
_BASE = "lora-base"
_RELEASES = "release-"
# Seen by pip while it runs, and never part of an image: a secret leaves no trace, and the folder is in every base.
_PIP_CONFIGURATION = Path("/etc/pip.conf")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# zstd packs several times faster than the default gzip, and the node unpacks it faster too.
PACKING = ("--compression-format=zstd", "--compression-level=1")
_ACCEPT = "application/vnd.oci.image.manifest.v1+json,application/vnd.docker.distribution.manifest.v2+json"


def base_image(day: str = "") -> str:
    """The name of the base image in Buildah's storage; it changes with the recipe, and of a release with the day."""
    recipe = hashlib.sha256(" ".join(_BASE_RECIPE).encode()).hexdigest()[:12]
    return f"localhost/{_BASE}:{f'{_RELEASES}{day}-' if day else ''}{recipe}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBuilder:
    """Buildah with a storage of its own: nothing of it shows up among the user's images, `purge` takes it all.

    With a `day`, builds for a release: on the Debian packages of that day, while the local cluster keeps its base, of
    any age, and all that was built on it.
    """

    cache: Path
    console: Console
    day: str = ""

    @property
    def folder(self) -> Path:
        return self.cache / "images"

    def build(self, image: Image) -> str:
        """Build unless the very content is built; returns the image's tag."""
        name = self._local_name(image)
        wanted = name.rpartition(":")[2]
        if self._has(name):
            return wanted
        if not self._tags(image.repository):
            space.require(self.folder, image.first_build_gib, f"build {image.repository}")
        log = self.folder / f"{image.repository}.log"
        with self.console.step(f"build image {image.repository}:{wanted}", log=log):
            log.unlink(missing_ok=True)
            self._build(image, name, log)
        return wanted

    def build_shared(self, images: Iterable[Image]) -> None:
        """Build what images of one Dockerfile begin with, before they are built at the same time.

        Each of them would make it for itself. Of two Buildah always finds the same one, so that a later build of the
        image with the other one finds none of its layers: PyTorch would be installed a second time.
        """
        for image in {(each.dockerfile, each.shared): each for each in images if each.shared}.values():
            log = self.folder / f"{image.repository}-{image.shared}.log"
            log.unlink(missing_ok=True)
            self._build(dataclasses.replace(image, target=image.shared), "", log)

    def _build(self, image: Image, name: str, log: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder / "tmp") as folder:
            stage(image, settings.REPOSITORY, Path(folder))
            arguments = build_arguments(image, name, base_image(self.day), Path(folder))
            twice(lambda: self._buildah(arguments, log), self.console)

    def remove_older(self, repository: str, image_tag: str) -> None:
        """Remove an image's other builds, a release's or the local cluster's; layers that a kept one shares stay.

        Never beside a build: one that looks for its layers fails where an image goes away meanwhile ("layer not
        known", Buildah's issue 5674).
        """
        log = self.folder / f"{repository}.log"
        for name in self._tags(repository):
            if name != f"localhost/{repository}:{image_tag}":
                self._buildah(("rmi", name), log)

    def push(self, image: Image, image_tag: str, registry_port: int) -> None:
        """Push to the cluster's registry unless it is there."""
        if in_registry(registry_port, image.repository, image_tag):
            return
        target = f"docker://127.0.0.1:{registry_port}/{image.repository}:{image_tag}"
        log = self.folder / f"{image.repository}-push.log"
        with self.console.step(f"push {image.repository}:{image_tag} to the registry", log=log):
            source = f"localhost/{image.repository}:{image_tag}"
            self._buildah(("push", *PACKING, "--tls-verify=false", source, target), log)

    def save(self, image: Image, image_tag: str, layout: Path, name: str) -> None:
        """Add to an OCI image layout, as `name`; the layout is made if there is none."""
        log = self.folder / f"{image.repository}-save.log"
        with self.console.step(f"pack {image.repository}:{image_tag}", log=log):
            source = f"localhost/{image.repository}:{image_tag}"
            self._buildah(("push", *PACKING, "--format=oci", source, f"oci:{layout}:{name}"), log)

    def push_program(self, binary: Path, path: str, name: str, registry_port: int) -> None:
        """Push an image from scratch with one static program, which leaves nothing in the storage."""
        self._make_folders()
        log = self.folder / f"{name.partition(':')[0]}.log"
        with self.console.step(f"push image {name} to the registry", log=log):
            log.unlink(missing_ok=True)
            container = self._buildah(("from", "--quiet", "scratch"), log)
            self._buildah(("copy", "--quiet", container, str(binary), path), log)
            entry = ("--entrypoint", json.dumps([path]), "--user", "65532:65532")
            self._buildah(("config", *entry, container), log)
            self._buildah(("commit", "--quiet", "--rm", container, f"localhost/{name}"), log)
            target = f"docker://127.0.0.1:{registry_port}/{name}"
            self._buildah(("push", *PACKING, "--tls-verify=false", f"localhost/{name}", target), log)
            self._buildah(("rmi", f"localhost/{name}"), log)

    def _make_folders(self) -> None:
        if os.geteuid() != 0:
            raise ClusterError("Building images needs root here: run it with sudo.")
        for name in ("storage", "run", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Check root, install the programs that are missing, make the base image, clear up after a killed build."""
        self._make_folders()
        log = self.folder / f"{_BASE}.log"
        # A build that was killed leaves a container with all that it had downloaded.
        self._buildah(("rm", "--all"), log)
        if self._has(base_image(self.day)):
            return
        archive = self.folder / "tmp" / "base.tar"
        with self.console.step("build the base image from Debian packages", log=log):
            log.unlink(missing_ok=True)
            twice(lambda: _debootstrap(archive, log), self.console)
            container = self._buildah(("from", "--quiet", "scratch"), log)
            self._buildah(("add", "--quiet", container, str(archive), "/"), log)
            self._buildah(("commit", "--quiet", "--rm", container, base_image(self.day)), log)
            archive.unlink()

    def has_all(self, names: Sequence[str]) -> bool:
        """Whether nothing is to be built."""
        return all(self._has(self._local_name(IMAGES[name])) for name in names)

    def _has(self, name: str) -> bool:
        command = (*self.command, "inspect", "--type=image", name)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _local_name(self, image: Image) -> str:
        made = tag(image, base_image(self.day), settings.REPOSITORY)
        return f"localhost/{image.repository}:{_RELEASES if self.day else ''}{made}"

    def _tags(self, repository: str) -> list[str]:
        """Names of an image's builds in the storage: of those for releases, or of the others."""
        shape = ("--noheading", "--format={{.Name}}:{{.Tag}}", f"--filter=reference=localhost/{repository}")
        command = (*self.command, "images", *shape)
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        return [name for name in names if name.rpartition(":")[2].startswith(_RELEASES) == bool(self.day)]

    def _buildah(self, arguments: Sequence[str], log: Path) -> str:
        # Buildah keeps its cache mounts, and with them pip's downloads, below TMPDIR.
        environment = {**os.environ, "TMPDIR": str(self.folder / "tmp")}
        return _run((*self.command, *arguments), log, environment)

    @property
    def command(self) -> tuple[str, ...]:
        """Buildah on this storage."""
        return ("buildah", f"--root={self.folder}/storage", f"--runroot={self.folder}/run")


def _debootstrap(archive: Path, log: Path) -> None:
    archive.unlink(missing_ok=True)
    _run(("mmdebstrap", *_BASE_RECIPE, str(archive)), log)


def build_arguments(image: Image, name: str, base: str, context: Path) -> tuple[str, ...]:
    """What Buildah is asked to do, without what depends on the user's storage. Nothing is named without a `name`."""
    host = []
    if _PIP_CONFIGURATION.exists():
        host.append(f"--secret=id=pip.conf,src={_PIP_CONFIGURATION}")
    if _CERTIFICATES.exists():
        host.append(f"--volume={_CERTIFICATES.parent}:{_CERTIFICATES.parent}:ro")
    return (
        # Else a failed build leaves its container, of the trainer's image with 6 GB.
        *("build", "--layers", "--force-rm", "--isolation=chroot", "--network=host", *host),
        *([f"--target={image.target}"] if image.target else ()),
        *(f"--build-arg=BASE_IMAGE={base}", f"--file={context / image.dockerfile}"),
        *([f"--tag={name}"] if name else ()),
        str(context),
    )


def in_registry(port: int, repository: str, image_tag: str) -> bool:
    """Whether the registry on 127.0.0.1 has the tag."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("HEAD", f"/v2/{repository}/manifests/{image_tag}", headers={"Accept": _ACCEPT})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def build_all(names: Sequence[str], builder: LocalBuilder) -> dict[str, str]:
    """Build several images at the same time; returns name -> tag."""
    packages.ensure(packages.IMAGES, builder.console, builder.cache / "packages.log")
    with locked(builder.folder / "lock", waiting=builder.console.say):
        complete = builder.has_all(names)
        if not complete:
            builder.prepare()
            builder.build_shared(IMAGES[name] for name in names)
        with ThreadPoolExecutor() as pool:
            tags = dict(zip(names, pool.map(lambda name: builder.build(IMAGES[name]), names), strict=True))
        if not complete:
            for name, image_tag in tags.items():
                builder.remove_older(IMAGES[name].repository, image_tag)
            builder.remove_older(_BASE, base_image(builder.day).rpartition(":")[2])
        return tags


def provide_all(names: Sequence[str], builder: LocalBuilder, registry_port: int) -> dict[str, str]:
    """See to it that the cluster's registry has the images; returns name -> reference as pods write it."""
    tags = {name: tag(IMAGES[name], base_image(), settings.REPOSITORY) for name in names}
    missing = [name for name in names if not in_registry(registry_port, IMAGES[name].repository, tags[name])]
    if missing:
        # What was built counts: somebody may have edited a file since the question.
        tags |= build_all(missing, builder)
        for name in missing:
            builder.push(IMAGES[name], tags[name], registry_port)
    return {name: f"{settings.IMAGE_PREFIX}/{IMAGES[name].repository}:{tags[name]}" for name in names}


def provide_program(binary: Path, path: str, name: str, builder: LocalBuilder, registry_port: int) -> str:
    """See to it that the cluster's registry has the image `name`, with one static program in it, at `path`; returns the
    reference as pods write it."""
    repository, _, image_tag = name.partition(":")
    if not in_registry(registry_port, repository, image_tag):
        packages.ensure(packages.IMAGES, builder.console, builder.cache / "packages.log")
        with locked(builder.folder / "lock", waiting=builder.console.say):
            builder.push_program(binary, path, name, registry_port)
    return f"{settings.IMAGE_PREFIX}/{name}"


def build_for_registry(names: Sequence[str], prefix: str, cache: Path, console: Console) -> dict[str, str]:
    """Build on the public base image and push to the user's own registry; returns name -> reference."""
    program = next((name for name in ("docker", "podman", "buildah") if shutil.which(name)), None)
    if program is None:
        raise ClusterError("Neither docker, podman nor buildah is on PATH: install one of them to build the images.")
    log_folder = cache / "images"
    log_folder.mkdir(parents=True, exist_ok=True)
    platform = platform_of_nodes()
    references = {}
    for name in names:
        image = IMAGES[name]
        if image.machine:
            raise ClusterError(f"Image {name} is made of this machine's Debian packages: it is for the local cluster.")
        reference = f"{prefix.rstrip('/')}/{image.repository}:{tag(image, PUBLIC_BASE, settings.REPOSITORY)}"
        log = log_folder / f"{image.repository}-{program}.log"
        dockerfile = str(settings.REPOSITORY / image.dockerfile)
        with console.step(f"build and push {reference} with {program}", log=log):
            target = ("--target", image.target) if image.target else ()
            where = ("--file", dockerfile, "--tag", reference, str(settings.REPOSITORY))
            _run((program, "build", *platform, *target, *where), log)
            _run((program, "push", reference), log)
        references[name] = reference
    return references


def platform_of_nodes() -> tuple[str, ...]:
    """The option to build for the current cluster's nodes, which a Mac would not; empty where they differ, or nobody
    says what they are."""
    jsonpath = "--output=jsonpath={.items[*].status.nodeInfo.architecture}"
    with contextlib.suppress(OSError):
        asked = ("kubectl", "get", "nodes", jsonpath, "--request-timeout=30s")
        kinds = set(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split())
        return (f"--platform=linux/{kinds.pop()}",) if len(kinds) == 1 else ()
    return ()


def _run(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> str:
    """Run to the end, everything it says in the log; returns its standard output's last line."""
    with log.open("a+b") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        )
        if done.returncode != 0:
            raise ClusterError(f"`{' '.join(command[:1])}` failed; it says why.", log=log)
        output.seek(0)
        return output.read().decode(errors="replace").strip().rsplit("\n", 1)[-1]
