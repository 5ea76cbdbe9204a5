"""The pinned requirements: exact, within the ranges of pyproject.toml, consistent with each other."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from localcluster.settings import REPOSITORY

# file -> the extras that it resolves
FILES = {
    "operator": ("operator",),
    "trainer": ("trainer", "tracking"),
    "preflight": ("preflight",),
    "client": ("client",),
    "release": ("release",),
    "test": ("client", "operator", "trainer", "preflight", "tracking", "release", "test"),
}
# In an environment of its own, without the project.
APART = {"audit": ("audit",)}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def _lines(name: str) -> list[str]:
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _pins(name: str) -> dict[str, str]:
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in _lines(name)}


@pytest.mark.parametrize("name", [*FILES, *APART, "trainer-cuda12"])
def test_every_line_is_one_package_at_one_version(name: str) -> None:
    """No address of a registry, no option, no range: what is installed depends on this file alone."""
    for line in _lines(name):
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "==", line
        assert "*" not in specifier.version, line
        assert line == f"{Requirement(line).name}=={specifier.version}"


@pytest.mark.parametrize("name", [*FILES, *APART])
def test_every_direct_requirement_is_pinned_within_its_range(name: str) -> None:
    """A range that was raised without `hack/pin` shows here, and not in a pod."""
    extras = PROJECT["project"]["optional-dependencies"]
    pins = _pins(name)
    own = PROJECT["project"]["dependencies"] if name in FILES else []
    for text in [*own, *(text for extra in {**FILES, **APART}[name] for text in extras[extra])]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("name", ["operator", "trainer", "preflight", "client", "release"])
def test_what_is_tested_is_what_is_shipped(name: str) -> None:
    """The tests' file holds every package of the images at the same version."""
    assert _pins(name).items() <= _pins("test").items()


def test_preflight_ships_without_torch_and_encodes_as_the_trainer_does() -> None:
    """Its image is small because of it; rows that it encodes are read by the trainer, of the same versions alone."""
    pins = _pins("preflight")
    assert not {"torch", "peft", "bitsandbytes", "accelerate"} & pins.keys()
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    assert pins.items() <= _pins("trainer").items()


def test_the_image_for_cuda_12_differs_in_pytorch_alone() -> None:
    """Its packages are those of the trainer, but for PyTorch and what that takes of CUDA, which its own wheel pins."""
    ours, theirs = _pins("trainer"), _pins("trainer-cuda12")
    of_cuda_13 = {name for name in ours if name.startswith(("cuda-", "nvidia-"))}
    assert ours.keys() - theirs.keys() == of_cuda_13
    assert {name for name, pin in theirs.items() if ours.get(name) != pin} == {"torch", "triton"}
    assert "+cu12" in theirs["torch"]


def test_the_operator_ships_without_torch() -> None:
    """Its image is small because of it."""
    assert not {"torch", "transformers", "numpy"} & _pins("operator").keys()
