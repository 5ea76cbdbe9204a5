"""A laptop whose system is not Linux: a Mac has neither /proc nor some of the system's calls.

In a mount namespace of its own, with an empty /proc, and with Python's standard library as macOS has it.
"""

import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.trainer.runs import TRAINER, Workplace

REPOSITORY = TRAINER.parent
AS_ON_A_MAC = """
import ctypes, errno, os
unknown = ("sched_", "posix_fa", "POSIX_FADV", "memfd_", "eventfd", "pidfd", "copy_file_range", "splice", "getrandom")
for name in dir(os):
    if name.startswith(unknown):
        delattr(os, name)
del errno.EREMOTEIO
found = ctypes.CDLL.__getattr__
def missing(library, name):
    if name == "prctl":
        raise AttributeError(name)
    return found(library, name)
ctypes.CDLL.__getattr__ = missing
"""
WITHOUT_PROC = 'mount -t tmpfs none /proc && exec "$@"'


def test_a_run_is_trained_and_verified(workplace: Workplace, tmp_path: Path) -> None:
    """By the very processes of a run, each of which is a Python of its own."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(AS_ON_A_MAC, encoding="utf-8")
    manifest = workplace.manifest_file()
    finished = workplace.run(
        "-f", manifest, PYTHONPATH=f"{site}:{TRAINER}", launcher=("unshare", "--mount", "sh", "-c", WITHOUT_PROC, "sh")
    )
    assert finished.status == 0, finished.log
    assert finished.summary.results is not None
    assert finished.summary.results.verification is not None


MAC = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"}


def required(texts: Iterable[str], extra: str = "") -> Iterator[Requirement]:
    """Those that a Mac installs."""
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({**MAC, "extra": extra}):
            yield requirement


def test_what_a_mac_installs_is_built_for_it() -> None:
    """Neither Triton nor CUDA is: `pip install '.[trainer]'` would end with an error that names them."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    left = [*required([*project["dependencies"], *project["optional-dependencies"]["trainer"]])]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            found.add(name)
            for extra in ("", *requirement.extras):
                left += required(metadata.requires(name) or (), extra)
    assert {"torch", "peft", "bitsandbytes"} <= found
    assert [name for name in sorted(found) if name.startswith(("triton", "nvidia", "cuda"))] == []
