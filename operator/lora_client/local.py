"""Runs on this machine, by an installed `lora-trainer`: each is a process, its log in a file beside the claims."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_client.errors import ClientError
from lora_client.runs import Run
from lora_client.views.checked import own_problems, shown
from lora_client.views.resources import name_of

TRAINER = "lora-trainer"


class LocalRuns:
    """Runs whose claims lie below `folder`."""

    def __init__(self, folder: Path, config_maps: Path) -> None:
        self._folder = folder
        self._config_maps = config_maps
        self._known: dict[str, LocalRun] = {}

    def start(self, manifest: Mapping[str, Any]) -> Run:
        """Start the process. Raises `ClientError`."""
        problems = self.problems(manifest)
        if problems:
            raise ClientError("\n".join(problems))
        program = shutil.which(TRAINER)
        if program is None:
            raise ClientError(
                f"There is no {TRAINER} on the PATH: pip install '.[trainer]', in the project's folder, brings it"
            )
        name = name_of(manifest)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{name}.manifest.json"
        file.write_text(json.dumps(manifest), encoding="utf-8")
        log, summary = self._folder / f"{name}.log", self._folder / f"{name}.summary.json"
        summary.unlink(missing_ok=True)
        command = [
            program,
            "run",
            "-f",
            str(file),
            "--claims",
            str(self._folder),
            "--configmaps",
            str(self._config_maps),
        ]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, "--termination-log", str(summary)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self._known[name] = LocalRun(name, process, log, summary, self._folder)
        return self._known[name]

    def problems(self, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        """By the contract's rules."""
        return tuple(map(shown, own_problems(manifest)))

    def get(self, name: str) -> Run:
        """One that was started here."""
        if name not in self._known:
            raise ClientError(
                f"No run {name} was started by this client: LoRAClient(backend='local').run(spec) starts one"
            )
        return self._known[name]

    def all(self) -> Sequence[Run]:
        """Those that were started here."""
        return list(self._known.values())


class LocalRun:
    """One process."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path, summary: Path, claims: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._summary = summary
        self._claims = claims

    @property
    def state(self) -> str:
        """See `Run`."""
        code = self._process.poll()
        return "Running" if code is None else str(self._ending().get("reason") or f"ExitCode{code}")

    def wait(self, timeout_s: float | None = None) -> "LocalRun":
        """See `Run`."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ClientError(f"{self.name} has not ended within {timeout_s:g} s: it is {self.state}") from error
        if code:
            said = self._ending().get("message") or next(reversed(self.logs().strip().splitlines()), "")
            raise ClientError(f"{self.name} failed ({self.state}): {said}")
        return self

    def stop(self) -> "LocalRun":
        """Let it save its state and end."""
        self._process.terminate()
        self._process.wait()
        return self

    def pull(self, folder: Path | str | None = None) -> Path:
        """See `Run`; a copy of the folder on the claim, whose digests the trainer has checked."""
        artifact = self._ending().get("artifact") or {}
        address = str(artifact.get("uri", ""))
        if not address.startswith("pvc://"):
            raise ClientError(f"{self.name} has no adapter on a claim: its output is {address or 'not there yet'}")
        target = Path(folder or self.name)
        if target.exists():
            raise ClientError(f"{target} exists already: name another folder, or remove it")
        shutil.copytree(self._claims / address.removeprefix("pvc://"), target)
        return target

    def logs(self) -> str:
        """See `Run`."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _ending(self) -> dict[str, Any]:
        try:
            document = json.loads(self._summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}
