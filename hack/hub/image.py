"""The stand-in as an image: the server's few files and the model's folder on top of the base image."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hub.model import CONVERSION_VERSION, REPO_ID, ensure_model
from localcluster import images, settings
from localcluster.errors import ClusterError
from localcluster.imagespec import OPERATOR, PUBLIC_BASE, Image
from localcluster.processes import locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localcluster.console import Console

SOURCES = (
    "__init__.py",
    "access.py",
    "answers.py",
    "faults.py",
    "repositories.py",
    "server.py",
    "uploads.py",
    "writing.py",
)
FOLDER = Path(__file__).parent
HUB = Image(
    name="hub-stand-in",
    repository="lora-hub-stand-in",
    dockerfile="hack/hub/Dockerfile",
    inputs=(),
    first_build_gib=2,
)


def image_tag(base: str) -> str:
    """Return twelve hexadecimal digits that change with the server, the model's conversion and the base image."""
    digest = hashlib.sha256(f"{base} {REPO_ID} {CONVERSION_VERSION}".encode())
    for name in (*SOURCES, "Dockerfile"):
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:12]


def build_for_local_cluster(registry_port: int, console: "Console") -> str:
    """Build with Buildah and push to the local cluster's registry, each only if needed; return the reference.

    Raises ClusterError with the log that says why.
    """
    builder = images.LocalBuilder(cache=settings.cache_directory(), console=console)
    base = images.base_image()
    tag = image_tag(base)
    reference = f"{settings.IMAGE_PREFIX}/{HUB.repository}:{tag}"
    if images.in_registry(registry_port, HUB.repository, tag):
        return reference
    buildah = ("buildah", f"--root={builder.folder}/storage", f"--runroot={builder.folder}/run")
    log = builder.folder / f"{HUB.repository}.log"
    name = f"localhost/{HUB.repository}:{tag}"
    # The lock of all builds: preparing ends what an interrupted one left, and must not meet one that runs.
    with locked(builder.folder / "lock", waiting=console.say), _context() as context:
        builder.prepare()
        builder.build(OPERATOR)  # makes the base image, on which this one stands too
        with console.step(f"build image {HUB.repository}:{tag}", log=log):
            options = ("--layers", "--isolation=chroot", f"--build-arg=BASE_IMAGE={base}", f"--tag={name}")
            _run((*buildah, "build", *options, f"--file={FOLDER / 'Dockerfile'}", str(context)), log)
        builder.push(HUB, tag, registry_port)
    return reference


def build_for_registry(prefix: str, console: "Console") -> str:
    """Build on the public base image and push below `prefix`; return the reference. Raises ClusterError."""
    program = next((name for name in ("docker", "podman", "buildah") if shutil.which(name)), None)
    if program is None:
        raise ClusterError("Neither docker, podman nor buildah is on PATH: install one of them to build the images.")
    reference = f"{prefix.rstrip('/')}/{HUB.repository}:{image_tag(PUBLIC_BASE)}"
    log = settings.cache_directory() / "images" / f"{HUB.repository}-{program}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _context() as context, console.step(f"build and push {reference} with {program}", log=log):
        where = ("--file", str(FOLDER / "Dockerfile"), "--tag", reference, str(context))
        _run((program, "build", *images.platform_of_nodes(), *where), log)
        _run((program, "push", reference), log)
    return reference


@contextmanager
def _context() -> "Iterator[Path]":
    """Lay out what the Dockerfile copies, the model's files as links to those in the cache."""
    model = ensure_model(settings.cache_directory())
    with tempfile.TemporaryDirectory(dir=settings.cache_directory(), prefix=".hub-image-") as folder:
        context = Path(folder)
        (context / "hub").mkdir()
        for name in SOURCES:
            shutil.copy(FOLDER / name, context / "hub" / name)
        shutil.copytree(model, context / "repositories" / "models" / REPO_ID, copy_function=os.link)
        yield context


def _run(command: "Sequence[str]", log: Path) -> None:
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`{command[0]}` failed; it says why.", log=log)
