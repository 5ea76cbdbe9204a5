"""The image that holds a pod's namespaces: one static program, packed without any image tool."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.go import check_go

IMAGE = "localhost/pause:1"
_SOURCE = Path(__file__).parent / "pause" / "main.go"


def ensure(cache: Path) -> Path:
    """Build the image archive once; returns its path."""
    key = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:8]
    archive = cache / "tools" / f"pause-{key}.tar"
    if archive.exists():
        return archive
    check_go()
    work = archive.with_name(".building-pause")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copy(_SOURCE, work / "main.go")
    (work / "go.mod").write_text("module localcluster/pause\n\ngo 1.24\n")
    done = subprocess.run(
        ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", "pause", "."],
        cwd=work,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError(f"The pause program could not be built: {done.stderr.strip()}")
    (work / "pause.tar").write_bytes(image_archive((work / "pause").read_bytes()))
    (work / "pause.tar").rename(archive)
    shutil.rmtree(work)
    return archive


def image_archive(program: bytes) -> bytes:
    """A docker-archive with one layer that holds /pause, run as user 65535."""
    layer = _tar({"pause": program}, mode=0o755)
    configuration = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    return _tar(
        {
            "layer.tar": layer,
            "config.json": json.dumps(configuration).encode(),
            "manifest.json": json.dumps(manifest).encode(),
        },
        mode=0o644,
    )


def _architecture() -> str:
    """The machine's name as images spell it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
