"""Keeps the components of one cluster running: `python3 -m localcluster.supervisor PLAN`.

It is the parent of every component, and the kernel kills them with it: ending this one process
ends the cluster. A component that ends by itself is started again after a pause.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localcluster import network
from localcluster.api import Api
from localcluster.components import Component
from localcluster.processes import die_with_parent, write_atomically

_POLL_S = 0.1
_RESTART_PAUSE_S = 1.0
_IDLE_S = 2.0
_EXIT_NOT_EXECUTABLE = 126


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run, and whether the network of a node is to be set up first."""

    components: tuple[Component, ...]
    logs: str
    status: str
    api_port: int
    ca_file: str
    node_network: bool

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> Plan:
        values = json.loads(text)
        components = tuple(
            Component(name=c["name"], argv=tuple(c["argv"]), needs_api=c["needs_api"]) for c in values.pop("components")
        )
        return Plan(components=components, **values)


@dataclass(slots=True, kw_only=True)
class Supervised:
    """The state of one component: `last_exit` is its last exit status, negative for a signal."""

    component: Component
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    last_exit: int | None = None
    not_before_s: float = 0.0

    def poll(self, now_s: float) -> bool:
        """Notice whether the process has ended; returns whether it just did."""
        if self.process is None or self.process.poll() is None:
            return False
        self.last_exit = self.process.returncode
        self.process = None
        self.not_before_s = now_s + _RESTART_PAUSE_S
        return True

    def start(self, logs: Path, now_s: float) -> None:
        self.starts += 1
        with (logs / f"{self.component.name}.log").open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    self.component.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_child,  # noqa: PLW1509 - this process has one thread
                )
            except OSError as error:
                log.write(f"{error}\n".encode())
                self.last_exit = _EXIT_NOT_EXECUTABLE
                self.not_before_s = now_s + _RESTART_PAUSE_S


@dataclass(slots=True, kw_only=True)
class Supervisor:
    plan: Plan
    supervised: list[Supervised] = field(default_factory=list)
    api_ready: bool = False

    def run(self) -> None:
        """Start what may be started, again and again; ends only with this process."""
        self.supervised = [Supervised(component=component) for component in self.plan.components]
        while True:
            now_s = time.monotonic()
            changed = sum(item.poll(now_s) for item in self.supervised) > 0
            self.api_ready = self.api_ready or self._probe()
            for item in self.supervised:
                if item.process is None and now_s >= item.not_before_s and self._may_start(item):
                    item.start(Path(self.plan.logs), now_s)
                    changed = True
            if changed:
                self._report()
            # SIGCHLD is blocked, so this returns at once when a component ends.
            signal.sigtimedwait({signal.SIGCHLD}, _POLL_S if not self.api_ready else _IDLE_S)

    def _may_start(self, item: Supervised) -> bool:
        return self.api_ready or not item.component.needs_api

    def _probe(self) -> bool:
        return Api(port=self.plan.api_port, ca_file=Path(self.plan.ca_file), token="").ready()

    def _report(self) -> None:
        state = {
            item.component.name: {
                "pid": item.process.pid if item.process else None,
                "starts": item.starts,
                "lastExit": item.last_exit,
            }
            for item in self.supervised
        }
        write_atomically(Path(self.plan.status), json.dumps(state))


def _child() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    die_with_parent()


def main(plan_file: str) -> None:
    """Run the plan. In namespaces of its own, the pod network is set up before anything starts."""
    plan = Plan.parse(Path(plan_file).read_text())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    if plan.node_network:
        network.prepare_node(Path(plan.status).parent)
    Supervisor(plan=plan).run()


if __name__ == "__main__":
    main(sys.argv[1])
