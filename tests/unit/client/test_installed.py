"""The client in an environment of its own, as `lora` and as a plugin of kubectl.

What it and its build need is among the tests' packages, and is not downloaded again; one that they lack is an error.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

from tests.pages.blocks import REPOSITORY
from tests.pages.executed import execute

_READ = ("pyproject.toml", "README.md", "LICENSE", "operator", "trainer_image")
# As kubectl itself finds a plugin.
_KUBECTL = '#!/bin/sh\nverb=$1; shift; exec "kubectl-$verb" "$@"\n'


def test_pip_installs_client_and_plugin(tmp_path: Path) -> None:
    """Both print the same help; nothing is downloaded, and nothing is written outside of the home."""
    folder, home, programs = (tmp_path / name for name in ("checkout", "home", "programs"))
    for made in (folder, home, programs):
        made.mkdir()
    for name in _READ:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    (programs / "kubectl").write_text(_KUBECTL)
    (programs / "kubectl").chmod(0o755)
    shared = "echo {} > $(echo ~/.venvs/lora/lib/python*/site-packages)/shared.pth"
    packages = shared.format(sysconfig.get_path("purelib"))
    typed = f"""{sys.executable} -m venv --without-pip ~/.venvs/lora && {packages}
export PATH=~/.venvs/lora/bin:$PATH
python3 -m pip install --quiet --no-index --no-build-isolation '.[client]'
lora --help
kubectl lora --help
"""
    environment = {"HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    printed = execute(typed, environment, folder)
    helps = printed.split("Usage: ")[1:]
    assert [help_.split(maxsplit=1)[0] for help_ in helps] == ["lora", "lora"]
    assert helps[0] == helps[1]
