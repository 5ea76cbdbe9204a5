"""Which images there are and what their content is: pure functions of the files in the repository."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# What the public default of the Dockerfiles is; a cluster of the user's own is built on it.
PUBLIC_BASE = "python:3.11-slim-bookworm"

# The second: 200 MB of time zones that no page of Prometheus reads.
_LEFT_OUT = {"__pycache__", "unpacked"}
# 1980-01-01, the earliest time that zip archives, and so Python wheels, can hold.
EPOCH_S = 315532800


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image: its Dockerfile, with the stage of it that is built (the last one where there is none), and the files
    and folders that it copies, relative to the repository. `machine` are those of Debian packages of the machine that
    builds it, which the Dockerfile finds in the folder of that name. `shared` is the stage that other images of the
    Dockerfile begin with too.

    `first_build_gib` is the free disk that its first build and its way to the node take.
    """

    name: str
    repository: str
    dockerfile: str
    inputs: tuple[str, ...]
    first_build_gib: int
    target: str = ""
    machine: tuple[str, ...] = ()
    shared: str = ""


# What holds a run's folder, without the rest of the trainer.
_LOCK = (
    "trainer_image/lora_trainer/errors.py",
    "trainer_image/lora_trainer/storage/__init__.py",
    "trainer_image/lora_trainer/storage/lock.py",
)
_CONTRACT = ("trainer_image/lora_trainer/__init__.py", "trainer_image/lora_trainer/spec")
_ACCEPTANCE = (
    "benchmarks/acceptance",
    "benchmarks/comparison",
    "benchmarks/gpu_acceptance.py",
    "benchmarks/trainer.py",
    *(f"benchmarks/memory{part}.py" for part in ("", "_as_gpu", "_estimate", "_simulation")),
)
OPERATOR = Image(
    name="operator",
    repository="lora-operator",
    dockerfile="Dockerfile",
    inputs=("requirements/operator.txt", "operator/lora_operator", *_CONTRACT, "trainer_image/lora_trainer/plan"),
    first_build_gib=2,
)
TRAINER = Image(
    name="trainer",
    repository="lora-trainer",
    dockerfile="trainer_image/Dockerfile",
    inputs=("requirements/trainer.txt", "trainer_image/lora_trainer", *_ACCEPTANCE),
    # torch and CUDA: 6 GB in Buildah's storage and on the node, and 3 GB packed in the registry and on the node.
    first_build_gib=22,
    shared="base",
)
PREFLIGHT = Image(
    name="preflight",
    repository="lora-preflight",
    dockerfile="trainer_image/Dockerfile",
    inputs=("requirements/preflight.txt", "trainer_image/lora_trainer"),
    first_build_gib=2,
    target="preflight",
    shared="base",
)
SCRIPTED_TRAINER = Image(
    name="test-trainer",
    repository="lora-scripted-trainer",
    dockerfile="tests/cluster/scripted_trainer/Dockerfile",
    inputs=("tests/cluster/scripted_trainer", *_CONTRACT, *_LOCK),
    first_build_gib=1,
)
PROMETHEUS = Image(
    name="prometheus",
    repository="lora-local-prometheus",
    dockerfile="hack/monitoring/Dockerfile",
    inputs=("hack/monitoring", "hack/localcluster/__init__.py", "hack/localcluster/api.py"),
    first_build_gib=2,
    machine=(
        "/usr/bin/prometheus",
        "/usr/bin/prometheus-alertmanager",
        "/usr/share/prometheus/web",
        *(f"/usr/share/prometheus/alertmanager/{name}.tmpl" for name in ("default", "email")),
    ),
)
IMAGES = {image.name: image for image in (OPERATOR, TRAINER, PREFLIGHT, SCRIPTED_TRAINER, PROMETHEUS)}


def tag(image: Image, base: str, repository: Path) -> str:
    """Twelve hexadecimal digits that change with any input, the Dockerfile and the base image."""
    digest = hashlib.sha256(base.encode())
    for name, path in _contents(image, repository).items():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"\0{name}\0{content}".encode())
    return digest.hexdigest()[:12]


def stage(image: Image, repository: Path, folder: Path) -> None:
    """Copy what a build reads into an empty folder, the same for every clone of the same content.

    Buildah takes modes for content: with those of another umask it would build every layer anew.
    """
    for name, path in _contents(image, repository).items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (EPOCH_S, EPOCH_S))


def _contents(image: Image, repository: Path) -> dict[Path, Path]:
    """Where each file of a build's context comes from, by its place there."""
    # What is laid out by name needs no .dockerignore, which would ignore what is not the repository's.
    own = (image.dockerfile, *image.inputs) if image.machine else (image.dockerfile, ".dockerignore", *image.inputs)
    found = {path.relative_to(repository): path for path in files(own, repository)}
    for path in files(image.machine, repository):
        found[Path("machine") / path.relative_to("/")] = path
    return found


def files(inputs: Iterable[str], repository: Path) -> list[Path]:
    """The files that a build reads, in a fixed order, without what .dockerignore leaves out."""
    found: set[Path] = set()
    for name in inputs:
        path = repository / name
        # Debian links what packages share.
        below = (Path(place) / file for place, _, names in os.walk(path, followlinks=True) for file in names)
        candidates = below if path.is_dir() else [path]
        found.update(file for file in candidates if file.is_file() and not _LEFT_OUT & {*file.relative_to(path).parts})
    return sorted(found)
