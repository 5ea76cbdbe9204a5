"""Builds of several images at a time, with a stand-in for Buildah, whose race is too short to be met by chance."""

import shutil
from pathlib import Path

import pytest

from localcluster import images, packages
from localcluster.console import Console

# The operator's build is the slowest; of each image there is an older build, for releases too. Of names it knows the
# local cluster's base image, which is of any age.
BUILDAH = """#!/bin/sh
shift 2
log() { echo "$1" >>"$(dirname "$0")/log"; }
last() { for word; do :; done; echo "$word"; }
case $1 in
inspect) case "$(last "$@")" in LOCAL_BASE) exit 0 ;; *) exit 1 ;; esac ;;
images) name=$(last "$@" | sed s/--filter=reference=//); echo "$name:old"; echo "$name:release-old" ;;
build) case "$*" in *--tag=localhost/lora-operator:*) sleep 1 ;; esac
  case "$*" in *--tag=*) what=build ;; *) what="build the stage $(echo "$*" | sed 's/.*--target=//; s/ .*//')" ;; esac
  log "$what on $(echo "$*" | sed 's/.*BASE_IMAGE=//; s/ .*//')" ;;
commit) log "commit $(last "$@")" ;;
rmi) log "$*" ;;
esac
"""
MMDEBSTRAP = """#!/bin/sh
for word; do :; done
touch "$word"
echo mmdebstrap >>"$(dirname "$0")/log"
"""
LOCAL_BASE = images.base_image()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-ins, and what they did in `log`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("buildah", BUILDAH.replace("LOCAL_BASE", LOCAL_BASE)), ("mmdebstrap", MMDEBSTRAP)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    # Links to what the stand-ins are written with, and no kubectl of the machine.
    for name in ("sh", "sed", "sleep", "touch", "dirname", "cat"):
        (folder / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(packages, "ensure", lambda *_arguments: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return folder


def test_no_image_is_removed_while_another_one_is_built(tmp_path: Path, programs: Path) -> None:
    """Buildah 1.28 fails where an image goes away while it looks for a layer: "layer not known"."""
    tags = images.build_all(["preflight", "operator"], images.LocalBuilder(cache=tmp_path, console=Console()))
    assert set(tags) == {"preflight", "operator"}
    assert (programs / "log").read_text().splitlines() == [
        f"build the stage base on {LOCAL_BASE}",
        f"build on {LOCAL_BASE}",
        f"build on {LOCAL_BASE}",
        "rmi localhost/lora-preflight:old",
        "rmi localhost/lora-operator:old",
        "rmi localhost/lora-base:old",
    ]


def test_what_two_images_begin_with_is_built_once_and_before_them(tmp_path: Path, programs: Path) -> None:
    """Else both would make it at the same time, and a later build would find the layers of one of them alone."""
    images.build_all(["trainer", "preflight"], images.LocalBuilder(cache=tmp_path, console=Console()))
    first, *others = (programs / "log").read_text().splitlines()[:3]
    assert first == f"build the stage base on {LOCAL_BASE}"
    assert others == [f"build on {LOCAL_BASE}"] * 2


def test_a_release_is_built_on_the_packages_of_its_day(tmp_path: Path, programs: Path) -> None:
    """Fixes of Debian reach users with a release; the local cluster keeps its base and images, whatever their age."""
    builder = images.LocalBuilder(cache=tmp_path, console=Console(), day="2026-03-01")
    tags = images.build_all(["preflight", "operator"], builder)
    base = images.base_image("2026-03-01")
    assert base != images.base_image("2026-03-02")
    assert all(tag.startswith("release-") for tag in tags.values())
    assert (programs / "log").read_text().splitlines() == [
        "mmdebstrap",
        f"commit {base}",
        f"build the stage base on {base}",
        f"build on {base}",
        f"build on {base}",
        "rmi localhost/lora-preflight:release-old",
        "rmi localhost/lora-operator:release-old",
        "rmi localhost/lora-base:release-old",
    ]


@pytest.mark.parametrize(
    ("kubectl", "option"),
    [("echo -n amd64 amd64", "--platform=linux/amd64 "), ("echo -n amd64 arm64", ""), ("exit 1", ""), ("", "")],
)
def test_an_image_for_a_cluster_of_ones_own_is_for_its_nodes(
    tmp_path: Path, programs: Path, kubectl: str, option: str
) -> None:
    """A Mac with Apple silicon would build for itself; without an answer Docker decides, as it is set up."""
    texts = {"docker": f'echo "$*" >>{tmp_path}/docker'} | ({"kubectl": kubectl} if kubectl else {})
    for name, text in texts.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    images.build_for_registry(["operator"], "registry.example.com/team", tmp_path, Console())
    built, pushed = (tmp_path / "docker").read_text().splitlines()
    assert built.startswith(f"build {option}--file ")
    assert pushed.startswith("push registry.example.com/team/lora-operator:")
