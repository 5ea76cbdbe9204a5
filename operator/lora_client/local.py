"""Runs on this machine, by an installed `lora-trainer`: each is a process, its log in a file beside the claims."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_client.errors import ClientError
from lora_client.runs import Run
from lora_client.verbs.ask import answer_of, request_of
from lora_client.views.answers import Answer
from lora_client.views.changes import changes_to, free_name
from lora_client.views.changes import clone as changed
from lora_client.views.checked import own_problems, shown
from lora_client.views.resources import name_of

TRAINER = "lora-trainer"
_SUCCEEDED = "Succeeded"
_started: dict[Path, "LocalRun"] = {}
"""By its log, whichever client started it: a notebook's cell makes a new one whenever it is executed."""


def trainer() -> str:
    """Where it is. Raises `ClientError`."""
    program = shutil.which(TRAINER)
    if program is None:
        raise ClientError(
            f"There is no {TRAINER} on the PATH: pip install '.[trainer]', in the project's folder, brings it"
        )
    return program


class LocalRuns:
    """Runs whose claims lie below `folder`."""

    def __init__(self, folder: Path, config_maps: Path) -> None:
        self._folder = folder
        self._config_maps = config_maps
        self._known: dict[str, LocalRun] = {}

    def start(self, manifest: Mapping[str, Any]) -> Run:
        """Start the process, unless the same run is running: that one is returned. Raises `ClientError`."""
        problems = self.problems(manifest)
        if problems:
            raise ClientError("\n".join(problems))
        run = LocalRun(self, manifest, self._folder)
        running = _started.get(run.log.resolve())
        if running is None or running.process.poll() is not None:
            run.log.unlink(missing_ok=True)
            run.process = self.spawn(run)
        elif running.manifest == manifest:
            run = running
        else:
            raise ClientError(
                f"{run.name} is running with another manifest: wait() for it, suspend() it, or choose another name"
            )
        self._known[run.name] = _started[run.log.resolve()] = run
        return run

    def spawn(self, run: "LocalRun") -> "subprocess.Popen[bytes]":
        """A process that trains, from the newest checkpoint where there is one. Raises `ClientError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{run.name}.manifest.json"
        file.write_text(json.dumps(run.manifest), encoding="utf-8")
        run.summary.unlink(missing_ok=True)
        places = ["--claims", str(self._folder), "--configmaps", str(self._config_maps)]
        with run.log.open("ab") as stream:
            return subprocess.Popen(
                [trainer(), "run", "-f", str(file), "--uid", run.uid, *places, "--termination-log", str(run.summary)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

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
    """One process, or after `resume` one after the other, which finds by the uid what the last one saved."""

    process: "subprocess.Popen[bytes]"

    def __init__(self, runs: LocalRuns, manifest: Mapping[str, Any], claims: Path) -> None:
        self._runs = runs
        self.manifest = manifest
        self.name = name_of(manifest)
        self.uid = str(uuid.uuid4())
        self.log = claims / f"{self.name}.log"
        self.summary = claims / f"{self.name}.summary.json"
        self._claims = claims

    def __repr__(self) -> str:
        return f"<Run {self.name}: {self.state}, its log is {self.log}>"

    @property
    def state(self) -> str:
        """See `Run`."""
        code = self.process.poll()
        return "Running" if code is None else str(self._ending().get("reason") or f"ExitCode{code}")

    def wait(self, timeout_s: float | None = None) -> "LocalRun":
        """See `Run`."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ClientError(f"{self.name} has not ended within {timeout_s:g} s: it is {self.state}") from error
        if code:
            said = self._ending().get("message") or next(reversed(self.logs().strip().splitlines()), "")
            raise ClientError(f"{self.name} failed ({self.state}): {said}")
        return self

    def suspend(self) -> "LocalRun":
        """See `Run`: its process saves its state and ends."""
        self.process.terminate()
        self.process.wait()
        return self

    def resume(self) -> "LocalRun":
        """See `Run`: another process continues."""
        if self.process.poll() is not None and self.state != _SUCCEEDED:
            self.process = self._runs.spawn(self)
        return self

    def pull(self, folder: Path | str | None = None) -> Path:
        """See `Run`; a copy of the folder on the claim, whose digests the trainer has checked."""
        result, target = self._result(), Path(folder or self.name)
        if target.exists():
            raise ClientError(f"{target} exists already: name another folder, or remove it")
        shutil.copytree(result, target)
        return target

    def ask(self, question: str, *, gpu: bool = False, most_tokens: int = 64) -> Answer:
        """See `Run`: on a GPU where the machine has one, whatever `gpu` says."""
        command = [trainer(), "ask", "--claims", str(self._claims), "--adapter", str(self._result())]
        command += ["--input", "json", "--format", "json", "--max-new-tokens", str(most_tokens)]
        asked = subprocess.run(command, input=request_of(question), capture_output=True, check=False)
        if asked.returncode:
            said = asked.stderr.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
            raise ClientError(f"{TRAINER} ask ended with status {asked.returncode}: {said[-1]}")
        return answer_of(asked.stdout)

    def clone(self, changes: Mapping[str, Any], *, name: str | None = None) -> Run:
        """See `Run`."""
        new = name or free_name(self.name, {run.name for run in self._runs.all()})
        metadata = {"namespace": "default", **self.manifest["metadata"]}
        return self._runs.start(changed({**self.manifest, "metadata": metadata}, new, changes_to(changes)))

    def explain(self) -> Mapping[str, Any]:
        """Of a cluster alone. Raises `ClientError`."""
        raise self._of_a_cluster("explain", "logs() has what it did")

    def compare(self, other: Run) -> Mapping[str, Any]:
        """Of a cluster alone. Raises `ClientError`."""
        raise self._of_a_cluster("compare", "metrics.jsonl beside each result has the losses")

    def serve(self, kind: str = "vllm") -> Sequence[Mapping[str, Any]]:
        """Of a cluster alone. Raises `ClientError`."""
        raise self._of_a_cluster("serve", f"vllm serve takes the folder of pull() ({kind})")

    def logs(self) -> str:
        """See `Run`."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _of_a_cluster(self, verb: str, instead: str) -> ClientError:
        return ClientError(f"{verb} asks a cluster, and {self.name} is a run of this machine: {instead}")

    def _result(self) -> Path:
        artifact = self._ending().get("artifact") or {}
        address = str(artifact.get("uri", ""))
        if not address.startswith("pvc://"):
            raise ClientError(f"{self.name} has no adapter on a claim: its output is {address or 'not there yet'}")
        return self._claims / address.removeprefix("pvc://")

    def _ending(self) -> dict[str, Any]:
        try:
            document = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}
