"""The API server of the test's own control plane, killed; its supervisor starts it again a second later."""

import os
import signal
import time
from contextlib import suppress

from tests.component.patience import eventually
from tests.component.stage import Stage

from localcluster import lifecycle, settings


def kill_api_server(stage: Stage) -> None:
    """SIGKILL, and wait until nobody answers any more."""
    _kill(stage)
    eventually(lambda: not stage.api.ready(), "the API server is gone")


def wait_api_server(stage: Stage) -> None:
    """Wait until it is ready."""
    eventually(stage.api.ready, "the API server is back")


def keep_away(stage: Stage, seconds: float) -> None:
    """An outage of at least so long: whenever the API server comes back it is killed again."""
    end = time.monotonic() + seconds
    kill_api_server(stage)
    while time.monotonic() < end:
        eventually(
            lambda: stage.api.ready() or time.monotonic() >= end, "the API server is back", deadline_s=seconds + 60
        )
        if time.monotonic() < end:
            _kill(stage)


def _kill(stage: Stage) -> None:
    pid = lifecycle.component_states(settings.places(stage.cluster.name or ""))["kube-apiserver"]["pid"]
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
