"""The Hub stand-in as an image: what goes into it is enough to run, and nothing else decides its tag."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hub import deploy, image


def test_the_files_of_the_image_run_with_the_standard_library_alone(tmp_path: Path) -> None:
    """Without site-packages and without the rest of the repository the server starts and explains itself."""
    (tmp_path / "hub").mkdir()
    for name in image.SOURCES:
        shutil.copy(image.FOLDER / name, tmp_path / "hub" / name)
    command = [sys.executable, "-S", "-m", "hub.server", "--help"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "--root" in done.stdout


def test_the_tag_follows_the_server_and_the_base_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited line and another base give other tags; the same content gives the same one."""
    before = image.image_tag("base:1")
    assert image.image_tag("base:1") == before
    assert image.image_tag("base:2") != before
    shutil.copytree(image.FOLDER, tmp_path / "hub")
    monkeypatch.setattr(image, "FOLDER", tmp_path / "hub")
    assert image.image_tag("base:1") == before
    (tmp_path / "hub" / "server.py").write_text("print('edited')\n")
    assert image.image_tag("base:1") != before


def test_the_manifests_name_the_image_and_keep_to_the_restricted_standard() -> None:
    """The endpoint that the chart is given is the Service's name, and the pod needs no privilege."""
    namespace, deployment, service = yaml.safe_load_all(deploy.manifests("registry/hub:1"))
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry/hub:1"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc" == deploy.ENDPOINT
    assert {item["metadata"]["namespace"] for item in (deployment, service)} == {namespace["metadata"]["name"]}
