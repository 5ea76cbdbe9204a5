"""Builds of several images at a time, with a stand-in for Buildah, whose race is too short to be met by chance."""

from pathlib import Path

import pytest

from localcluster import images, packages
from localcluster.console import Console

# The operator's build is the slowest; of each image there is an older build.
BUILDAH = """#!/bin/sh
shift 2
log() { echo "$1" >>"$(dirname "$0")/log"; }
last() { for word; do :; done; echo "$word"; }
case $1 in
inspect) case "$(last "$@")" in localhost/lora-base:*) exit 0 ;; *) exit 1 ;; esac ;;
images) echo "$(last "$@" | sed s/--filter=reference=//):old" ;;
build) case "$*" in *--tag=localhost/lora-operator:*) sleep 1 ;; esac; log build ;;
rmi) log "$*" ;;
esac
"""


def test_no_image_is_removed_while_another_one_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buildah 1.28 fails where an image goes away while it looks for a layer: "layer not known"."""
    program = tmp_path / "bin/buildah"
    program.parent.mkdir()
    program.write_text(BUILDAH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "ensure", lambda *_arguments: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    tags = images.build_all(["preflight", "operator"], images.LocalBuilder(cache=tmp_path, console=Console()))
    assert set(tags) == {"preflight", "operator"}
    assert (program.parent / "log").read_text().splitlines() == [
        "build",
        "build",
        "rmi localhost/lora-preflight:old",
        "rmi localhost/lora-operator:old",
    ]
