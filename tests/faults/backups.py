"""Backups of the etcd of a test's own control plane, taken and put back while nothing runs, as administrators do it."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.component.patience import eventually
from tests.component.stage import Stage

from localcluster import lifecycle, processes, settings


def back_up(stage: Stage, to: Path) -> None:
    """Keep what etcd holds now."""
    with _stopped(stage):
        shutil.copytree(_data(stage), to)


def restore(stage: Stage, backup: Path) -> None:
    """Have etcd hold what it held then; all components begin anew, as their caches would be of the future."""
    data = _data(stage)
    with _stopped(stage):
        shutil.rmtree(data)
        shutil.copytree(backup, data)


@contextmanager
def _stopped(stage: Stage) -> Iterator[None]:
    """No component runs meanwhile, as their supervisor, which starts them again, is frozen."""
    places = settings.places(stage.cluster.name or "")
    supervisor = processes.load(lifecycle.supervisor_file(places))
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        # One that writes to its disk ends when that is done.
        eventually(lambda: not _killed(supervisor.pid), "all components have ended")
        yield
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)


def _killed(supervisor: int) -> list[processes.ProcessId]:
    """The components that were still there, and are killed."""
    found = processes.children(supervisor)
    for component in found:
        with suppress(ProcessLookupError):
            os.kill(component.pid, signal.SIGKILL)
    return found


def _data(stage: Stage) -> Path:
    (folder,) = settings.places(stage.cluster.name or "").state.glob("etcd-*")
    return folder
