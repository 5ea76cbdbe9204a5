"""Temporary folders: gone with their owner, and those of killed ones with the next of their kind."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trainer.runs import TRAINER

from lora_trainer.storage.lock import held
from lora_trainer.storage.temporary import temporary_folder

OWNER = (
    "import sys, time\nfrom pathlib import Path\nfrom lora_trainer.storage.temporary import temporary_folder\n"
    "with temporary_folder('lora-x-', Path(sys.argv[1])) as folder:\n"
    "    (folder / 'tokens').mkdir()\n    print(folder, flush=True)\n    time.sleep(600)\n"
)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Another process, and the folder that it made in `tmp_path`."""
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(TRAINER)})
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_process_left_goes_with_the_next_one(
    owner: tuple["subprocess.Popen[str]", Path], tmp_path: Path
) -> None:
    """Not before its owner is dead."""
    process, folder = owner
    with temporary_folder("lora-x-", tmp_path):
        assert (folder / "tokens").is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with temporary_folder("lora-other-", tmp_path):
        assert folder.is_dir()
    with temporary_folder("lora-x-", tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    """Folders that no owner was in, files, and where links lead; nor one's own other folder."""
    with held(tmp_path / "precious", "what somebody held"):
        pass
    (tmp_path / "lora-x-folder").mkdir()
    (tmp_path / "lora-x-file").touch()
    (tmp_path / "lora-x-link").symlink_to(tmp_path / "precious")
    before = sorted(tmp_path.iterdir())
    with temporary_folder("lora-x-", tmp_path) as one, temporary_folder("lora-x-", tmp_path) as other:
        assert one.is_dir()
        assert other.is_dir()
    assert sorted(tmp_path.iterdir()) == before
    assert list((tmp_path / "precious").iterdir())
