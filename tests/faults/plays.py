"""Runs that are played side by side: what user and kubelet do, step by step, each when the status shows the last one.

A play is a generator that yields what it waits for. Many plays need one list of each kind per look.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import GeneratorType
from typing import Any

from tests.component.cluster_acts import finish_deletion
from tests.component.documents import Object, failed, finetune, succeeded
from tests.component.patience import DEADLINE_S
from tests.component.stage import Stage
from tests.faults.hostile_pods import Pods, answer, progress
from tests.faults.queue_kind import QUEUE, admit, make_workload, workload_path
from tests.unit.reports import make_report

from lora_operator.model.names import JOB_NAME_LABEL, NAME_LABEL, PREFLIGHT, TRAIN, place_of
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import Reason

Awaited = Callable[[], Any]
PAUSE_S = 0.2


@dataclass(kw_only=True)
class Player:
    """One LoRAFineTune, what the last look saw of it, and how far its play has come."""

    stage: Stage
    name: str
    play: "Play"
    played: Pods
    address: str
    finetune: Object = field(default_factory=dict)
    jobs: list[Object] = field(default_factory=list)
    pods: list[Object] = field(default_factory=list)
    over: bool = False
    steps: int = 0
    _steps: Iterator[Awaited] | None = None
    _awaited: Awaited | None = None

    def step(self) -> None:
        """Go on as far as what was seen allows."""
        if self._steps is None:
            self._steps = self.play(self)
        while not self.over and (self._awaited is None or self._awaited()):
            self._awaited = next(self._steps, None)
            self.steps += 1
            self.over = self._awaited is None

    def stuck(self) -> str:
        """What the play waits for, by its lines from the outer to the inner one, and what the last look saw."""
        lines, steps = [], self._steps
        while isinstance(steps, GeneratorType) and steps.gi_frame is not None:
            lines.append(steps.gi_frame.f_lineno)
            steps = steps.gi_yieldfrom
        seen = {"finetune": self.finetune, "jobs": self.jobs, "pods": self.pods}
        return f"{self.name} waits at {lines} of {Path(__file__).name}\n{json.dumps(seen, indent=1)}"

    # -- what is waited for

    def shows(self, kind: str, status: str, reason: str = "") -> Awaited:
        """A condition."""

        def look() -> bool:
            conditions = self.finetune.get("status", {}).get("conditions", [])
            found = next((c for c in conditions if c["type"] == kind), {"status": "", "reason": ""})
            return found["status"] == status and reason in ("", found["reason"])

        return look

    def goes_on(self, reason: str) -> Awaited:
        """The state of a run that goes on."""
        return self.shows("Complete", "Unknown", reason)

    def living(self, stage: str = TRAIN) -> Object:
        """Its pod that has not ended; empty where there is none."""
        pods = (p for p in self.pods if p["status"].get("phase") not in ("Succeeded", "Failed"))
        ours = (p for p in pods if place_of(p["metadata"]["labels"][JOB_NAME_LABEL])[1] == stage)
        return next((p for p in ours if not p["metadata"].get("deletionTimestamp")), {})

    def job(self, stage: str = TRAIN) -> Object:
        """Its newest Job; empty where there is none."""
        ours = [j for j in self.jobs if place_of(j["metadata"]["name"])[1] == stage]
        return max(ours, key=lambda job: str(job["metadata"]["name"]), default={})

    def job_condition(self, kind: str) -> str:
        """The status of a condition of its newest Job."""
        conditions = self.job().get("status", {}).get("conditions", [])
        return next((f"{c['status']}" for c in conditions if c["type"] == kind), "")

    # -- what is done

    def run(self, stage: str = TRAIN) -> Iterator[Awaited]:
        """Wait for the pod, give it a node, start it, each after the status has shown the last."""
        waits = self.shows("PodsReady", "False", Reason.VOLUME_NOT_READY)
        yield lambda: self.living(stage)
        yield waits
        pod = self.living(stage)
        self.stage.bind_pod(pod)
        yield lambda: not waits()
        self.stage.run_pod(pod, ip=self.address)
        yield self.shows("PodsReady", "True") if stage == TRAIN else self.goes_on(Reason.PREFLIGHT)

    def progress_is(self, step: int) -> Iterator[Awaited]:
        """Its trainer takes a step, and the status shows it."""
        self.played.play(self.address, partial(answer, body=progress(step=step)))
        yield lambda: self.finetune.get("status", {}).get("progress", {}).get("step") == step

    def succeed(self) -> Iterator[Awaited]:
        """Its trainer ends well, and the status shows it before the Job does, which may take less than a status."""
        yield from self._end_shown(Reason.PUBLISHING, 0, succeeded())

    def fail(self, exit_code: int) -> Iterator[Awaited]:
        """Its trainer ends early, and the status shows it before the Job counts the 10 s after which it retries."""
        yield from self._end_shown(Reason.RESTARTING, exit_code)

    def _end_shown(self, reason: Reason, exit_code: int, message: str = "") -> Iterator[Awaited]:
        pod = self.living()
        self.stage.end_pod(pod, exit_code, message, phase="Running")
        yield self.goes_on(reason)
        self.stage.clear_away(pod)

    def end(self, exit_code: int, message: str = "", stage: str = TRAIN) -> None:
        """Its pod ends."""
        self.stage.end_pod(self.living(stage), exit_code, message)


Play = Callable[[Player], Iterator[Awaited]]


def plain(player: Player) -> Iterator[Awaited]:
    """From the resource to the verified adapter."""
    player.stage.apply(player.name)
    yield from player.run()
    yield from player.succeed()
    yield player.shows("Complete", "True")


def looked_at(player: Player) -> Iterator[Awaited]:
    """With a preflight, whose report the status keeps."""
    player.stage.apply(player.name, preflight="Run")
    yield from player.run(PREFLIGHT)
    player.end(0, make_report().to_message(), PREFLIGHT)
    yield player.job
    yield from player.run()
    yield from player.succeed()
    yield player.shows("Complete", "True")


def retried(player: Player) -> Iterator[Awaited]:
    """The first pod is killed for want of memory, the second one ends well."""
    player.stage.apply(player.name)
    yield from player.run()
    lost = player.living()["metadata"]["uid"]
    yield from player.fail(137)
    # On a busy machine the next one is there before anybody looks.
    yield lambda: player.living().get("metadata", {}).get("uid") != lost
    yield from player.run()
    yield from player.succeed()
    yield player.shows("Complete", "True")


def expired(player: Player) -> Iterator[Awaited]:
    """Its Job goes as soon as the verdict is stored."""
    player.stage.apply(player.name, ttlSecondsAfterFinished=0)
    yield from player.run()
    player.end(ExitCode.DATASET_INVALID, failed(Reason.DATASET_INVALID, "line 17: no field 'output'"))
    yield player.shows("Failed", "True")
    yield lambda: not player.jobs


def recreated(player: Player) -> Iterator[Awaited]:
    """Its Job is deleted by hand, and then it is suspended and resumed."""
    player.stage.apply(player.name)
    yield player.shows("PodsReady", "False", Reason.VOLUME_NOT_READY)
    first = player.job()["metadata"]["name"]
    player.stage.api.delete(player.stage.path("jobs", first) + "?propagationPolicy=Background")
    yield lambda: player.job().get("metadata", {}).get("name", first) != first
    yield player.shows("PodsReady", "False", Reason.VOLUME_NOT_READY)
    player.stage.change(player.name, suspend=True)
    yield player.shows("Suspended", "True")
    # A Job controller that lags would still delete the pod when it has a node, where no kubelet ends it.
    yield lambda: player.job_condition("Suspended") == "True" and not player.pods
    player.stage.change(player.name, suspend=False)
    yield player.shows("Suspended", "False")
    yield from player.run()
    yield from player.succeed()
    yield player.shows("Complete", "True")


def on_two_nodes(player: Player) -> Iterator[Awaited]:
    """With a Service, by whose name the nodes find each other."""
    player.stage.apply(player.name, resources={"nodes": 2})
    yield lambda: len(player.pods) == 2
    yield player.shows("PodsReady", "False", Reason.VOLUME_NOT_READY)
    for pod in player.pods:
        player.stage.bind_pod(pod)
        player.stage.run_pod(pod, ip=player.address)
    yield player.shows("PodsReady", "True")
    leader, other = sorted(player.pods, key=lambda pod: str(pod["metadata"]["name"]))
    player.stage.end_pod(leader, 0, succeeded())
    # The Job controller stops the other one then, which its kubelet confirms.
    yield lambda: any(pod["metadata"].get("deletionTimestamp") for pod in player.pods)
    yield player.goes_on(Reason.PUBLISHING)
    finish_deletion(player.stage, other)
    yield player.shows("Complete", "True")


def queued(player: Player) -> Iterator[Awaited]:
    """Admitted by Kueue, held by its user, and admitted again."""
    workload = f"{player.name}-workload"

    def active() -> bool:
        return bool(player.stage.api.get(workload_path(player.stage, workload))["spec"]["active"])

    manifest = finetune(player.name)
    manifest["metadata"]["labels"] = QUEUE
    player.stage.api.post(player.stage.path("lorafinetunes"), manifest)
    yield player.job
    make_workload(player.stage, workload, player.job())
    admit(player.stage, workload, player.job(), admitted=False)
    yield player.shows("QuotaReserved", "False")
    admit(player.stage, workload, player.job(), admitted=True)
    yield player.shows("PodsReady", "False", Reason.VOLUME_NOT_READY)
    player.stage.change(player.name, suspend=True)
    yield lambda: not active()
    admit(player.stage, workload, player.job(), admitted=False)
    yield player.shows("Suspended", "True")
    yield lambda: player.job_condition("Suspended") == "True" and not player.pods
    player.stage.change(player.name, suspend=False)
    yield active
    admit(player.stage, workload, player.job(), admitted=True)
    yield player.shows("Suspended", "False")
    yield from player.run()
    yield from player.succeed()
    yield player.shows("Complete", "True")


def progressing(player: Player) -> Iterator[Awaited]:
    """Its trainer answers, and what it says is written into the status twice."""
    player.stage.apply(player.name)
    yield from player.run()
    yield from player.progress_is(5)
    yield from player.progress_is(10)
    yield from player.succeed()
    yield player.shows("Complete", "True")


def go_on(stage: Stage, players: list[Player], what: str, *, enough: Callable[[Player], bool]) -> None:
    """Let every play go on until it is enough for each; fails with `what` when none has gone on for long."""
    seen, since_s = -1, time.monotonic()
    while True:
        look(stage, players)
        if all(map(enough, players)):
            return
        steps = sum(player.steps for player in players)
        if steps != seen:
            seen, since_s = steps, time.monotonic()
        assert time.monotonic() < since_s + DEADLINE_S, f"not one step in {DEADLINE_S:.0f} s: {what}"
        time.sleep(PAUSE_S)


def look(stage: Stage, players: list[Player]) -> None:
    """List everything once, and let every play go on as far as it can."""
    finetunes = {item["metadata"]["name"]: item for item in stage.objects("lorafinetunes")}
    jobs, pods = stage.objects("jobs"), stage.objects("pods")
    for player in players:
        player.finetune = finetunes.get(player.name, {})
        player.jobs = [job for job in jobs if job["metadata"]["labels"][NAME_LABEL] == player.name]
        player.pods = [pod for pod in pods if pod["metadata"]["labels"][NAME_LABEL] == player.name]
        player.step()
