"""`lora-trainer run` in the test's own process; its stages are forked from one that has imported the libraries."""

import os
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer.runs import Finished, Workplace, read_config
from tests.trainer.stages import CONTEXT, on_one_cpu

from lora_trainer import stage
from lora_trainer.cli import main
from lora_trainer.host.launch import ONE_PROCESS
from lora_trainer.host.supervisor import Ending, Settings, Supervisor
from lora_trainer.storage.volumes import Volumes

_POPEN = "lora_trainer.host.child.subprocess"


class ForkedStage:
    """In place of `subprocess.Popen` with the command of a stage."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        process_group: int,
        env: Mapping[str, str],
        stderr: int,
    ) -> None:
        assert (tuple(command[: len(ONE_PROCESS.command)]), process_group) == (ONE_PROCESS.command, 0)
        arguments, (report,) = command[len(ONE_PROCESS.command) : -1], pass_fds
        pipes = [Connection(os.dup(descriptor), readable=False) for descriptor in (report, stderr)]
        self._process = CONTEXT.Process(target=_run, args=(arguments, *pipes, dict(env)))
        self._process.start()
        for pipe in pipes:
            pipe.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self) -> int:
        """Until it has ended; its exit status."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To that process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        self._process.kill()


def _run(arguments: Sequence[str], report: Connection, errors: Connection, environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.setpgid(0, 0)
    os.dup2(errors.fileno(), 2)
    on_one_cpu()
    os._exit(stage.main([*arguments, str(report.fileno())]))


def run(workplace: Workplace, **sections: Any) -> Ending:
    """A run to its end, by a supervisor alone."""
    config = read_config(workplace.config_file(**sections))
    volumes = Volumes(claims=workplace.claims, config_maps=workplace.root / "configmaps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_POPEN, SimpleNamespace(Popen=ForkedStage))
        return Supervisor(config=config, settings=Settings(volumes=volumes, port=None)).run()


class ForkedRuns:
    """As `Workplace.run`, but in this process. `stages` has all that were started, the last one last."""

    def __init__(self, workplace: Workplace, capture: pytest.CaptureFixture[str]) -> None:
        self.workplace, self.capture = workplace, capture
        self.stages: list[ForkedStage] = []

    def run(self, *arguments: str | Path | int) -> Finished:
        """Run to the end."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.capture.readouterr()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_POPEN, SimpleNamespace(Popen=self._start))
                status = main(["run", *map(str, arguments), *map(str, self.workplace.places())])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        output, errors = self.capture.readouterr()
        return Finished(status=status, output=output, log=errors, summary=self.workplace.summary())

    def _start(self, command: Sequence[str], **options: Any) -> ForkedStage:
        self.stages.append(ForkedStage(command, **options))
        return self.stages[-1]
