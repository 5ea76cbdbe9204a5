"""A whole cluster in memory: API server, controllers, users and nodes, and operators that die, lag and take over."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tests.model.controllers import NODE, Controllers
from tests.model.invariants import KINDS, Witness, check_text, waiting
from tests.model.life import Chance, Life
from tests.model.objects import Object, run_uid
from tests.model.operators import BEGINNING, WATCHED, ModelOperator, Network, Request
from tests.model.queues import DISCOVERY, Queues
from tests.model.server import Server, labels_of
from tests.model.virtual_loop import VirtualLoop

from localcluster.api import ApiError as ClientError
from lora_operator.cluster.api import ApiError
from lora_operator.controller.logs import TextFormatter
from lora_operator.model.config import OperatorConfig
from lora_operator.model.names import QUEUE_LABEL, is_of_another
from lora_trainer.spec.progress import Phase, Progress

NAMESPACE = "team-a"
FOREIGN = "team.example/keep"
# Longer than any deadline and time to live, and than the clock of an operator may be slow.
_LONG_S = 3 * 3600
CONFIG = OperatorConfig(trainer_image="registry.example/lora-trainer:test", workers=2)
_LOGGER = logging.getLogger("lora_operator")


class ModelClient:
    """The server, for users and nodes."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def get(self, path: str) -> Object:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Object) -> Object:
        return self._ask("POST", path, body)

    def patch(self, path: str, body: Object) -> Object:
        return self._ask("PATCH", path, body)

    def delete(self, path: str) -> Object:
        return self._ask("DELETE", path, None)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Object:
        try:
            return self._server.handle(method, path, body)
        except ApiError as error:
            raise ClientError(error.code, error.message) from error


class _Log(logging.Handler):
    """Reads every line that the operators log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(TextFormatter())
        self.lines: list[str] = []
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        self.lines.append(line)
        if record.levelno >= logging.ERROR:
            self.unexpected.append(line)


class World:
    """One cluster and its operators."""

    def __init__(self, chance: Chance, config: OperatorConfig = CONFIG) -> None:
        self.loop = VirtualLoop()
        self.config = config
        self.server = Server(self.now)
        self.controllers = Controllers(self.server, self.now)
        self.queues: Queues | None = None
        self.network = Network(self.server, self.loop)
        self.life = Life(client=ModelClient(self.server), namespace=NAMESPACE, chance=chance, now=self.now, node=NODE)
        self.witness = Witness(self.life)
        self.operators: list[ModelOperator] = []
        self.started = 0
        self.progress: Progress | None = None
        self.seen_requests = 0
        self._seen_version = 0
        self.log = _Log()
        _LOGGER.addHandler(self.log)
        _LOGGER.setLevel(logging.INFO)

    def close(self) -> None:
        """End everything."""
        for operator in self.operators:
            operator.kill()
        self.loop.settle()
        self.loop.close()
        _LOGGER.removeHandler(self.log)
        _LOGGER.setLevel(logging.NOTSET)

    def now(self) -> datetime:
        """The cluster's time."""
        return BEGINNING + timedelta(seconds=self.loop.time())

    def install_kueue(self) -> None:
        """Runs in a queue wait for quota from now on; operators that run already learn it by a restart."""
        self.queues = Queues(self.server, self.now)
        self.controllers.sync_queues = self.queues.sync
        self.server.discovery = DISCOVERY
        self.life.queues = True

    def keep_runs(self, *, kept: bool) -> None:
        """Somebody's finalizer keeps the runs that are deleted from now on, or is taken away from all."""
        for run in list(self.server.all("lorafinetunes")):
            metadata = run["metadata"]
            if not kept or "deletionTimestamp" not in metadata:
                others = [name for name in metadata.get("finalizers", ()) if name != FOREIGN]
                finalizers = [*others, FOREIGN] if kept else others
                self.server.write({**run, "metadata": {**metadata, "finalizers": finalizers}}, "lorafinetunes")

    def lingers(self) -> bool:
        """Whether such a finalizer keeps a run that was deleted."""
        runs = [run["metadata"] for run in self.server.all("lorafinetunes")]
        return any("deletionTimestamp" in run and FOREIGN in run.get("finalizers", ()) for run in runs)

    # -- operators

    def start_operator(self, skew_s: float = 0.0, *, leads: bool = True) -> ModelOperator:
        """One more operator, which takes the Lease from the one that leads, or stands by until none leads any more."""
        self.started += 1
        self.life.clocks_agree &= not skew_s
        operator = ModelOperator(self.started, self.network, self.config, self._answer, skew_s=skew_s)
        self.operators.append(operator)
        operator.start()
        if leads:
            for former in self.operators:
                if former.has_lease:
                    former.lag()
            operator.lead()
        return operator

    def keep_one_running(self) -> None:
        """Whoever died is started again, as the cluster does, unless another one stood by."""
        self.operators = [operator for operator in self.operators if operator.alive]
        candidates = [operator for operator in self.operators if not operator.lags]
        if not candidates:
            self.start_operator()
        elif not any(operator.has_lease for operator in candidates):
            candidates[0].lead()

    def _answer(self, ip: str) -> Progress:
        if self.progress is None:
            raise ConnectionError(f"nobody answers at {ip}")
        return self.progress

    # -- time

    def settle(self) -> None:
        """Let everybody do what can be done at once."""
        self.loop.settle()
        self.keep_one_running()
        self.loop.settle()

    def pass_time(self, seconds: float) -> None:
        """The clock goes on."""
        self.loop.advance(seconds)
        self.keep_one_running()
        self.loop.settle()

    def come_to_rest(self) -> None:
        """No more faults, acts or lost events: everything reaches a fixed point, and nobody writes any more."""
        self.network.faults.clear()
        self.controllers.refuses_pods = ""
        self._let_hear()
        self._end_wrong_clocks()
        quiet = False
        for _ in range(20):
            version, requests = self.server.version, len(self.network.requests)
            self.life.stop_all()
            self.controllers.catch_up()
            self.pass_time(_LONG_S)
            was_quiet, quiet = quiet, self.server.version == version
            if was_quiet and quiet:
                self._tries_seldom(self.network.requests[requests:])
                return
        raise AssertionError(f"no fixed point; the last writes: {self._last_writes()}")

    def _end_wrong_clocks(self) -> None:
        """What a clock that is wrong says of how long something has lasted is not what others say of it."""
        for operator in self.operators:
            if operator.skew_s:
                operator.kill()
        self.keep_one_running()

    def _tries_seldom(self, requests: Sequence[Request]) -> None:
        """What was refused is tried again now and then, and nothing else."""
        tries = Counter((request.operator, request.path) for request in requests if request.writes)
        often = {key: count for key, count in tries.items() if count > 2 * _LONG_S / self.config.retry_max_s}
        assert not often, f"at rest, and yet it writes: {often}"

    def _let_hear(self) -> None:
        for operator in self.operators:
            operator.deaf.clear()
            for plural in WATCHED:
                operator.hear(plural)

    def _last_writes(self) -> list[Request]:
        return [request for request in self.network.requests if request.writes][-4:]

    # -- checks

    def check(self) -> None:
        """Everything that must hold at any time."""
        if self.server.version != self._seen_version:
            self._seen_version = self.server.version
            self.witness.look(self._everything())
        requests = self.network.requests[self.seen_requests :]
        self.seen_requests = len(self.network.requests)
        for request in requests:
            self._is_proper(request)
        assert not self.log.unexpected, self.log.unexpected[0]
        check_text("\n".join(self.log.lines))
        self.log.lines.clear()

    def check_rest(self) -> None:
        """Everything that must hold when nothing moves any more."""
        self.check()
        self.witness.at_rest(self._everything())

    def check_queues(self) -> None:
        """Once there is quota for all, whatever waited in a queue ends, unless its user or somebody's name holds it."""
        if self.queues is None:
            return
        self.queues.open()
        rounds = 0
        while left := list(waiting(self._everything())):
            rounds += 1
            assert rounds <= 8, f"I10: they wait for ever: {[run['status'] for run in left]}"
            self.controllers.catch_up()
            self.settle()
            self.life.end_all()
            self.controllers.catch_up()
            self.pass_time(self.config.retry_max_s + 1)
        self.check()

    def _everything(self) -> dict[str, list[Object]]:
        return {plural: list(self.server.all(plural)) for plural in (*KINDS, "workloads")}

    def _is_proper(self, request: Request) -> None:
        """I2: the operator deletes and changes nothing but what is its own, and suspends no Job that is in a queue."""
        plural = request.path.split("/namespaces/")[-1].split("/")[1] if "/namespaces/" in request.path else ""
        if request.error or request.method == "GET":
            return
        if plural == "jobs" and QUEUE_LABEL in labels_of(request.answer) and request.method != "DELETE":
            suspend = ((request.body or {}).get("spec") or {}).get("suspend")
            assert suspend is (True if request.method == "POST" else None), f"I2: Kueue's to decide: {request}"
        if request.method == "POST":
            return
        owners = request.answer["metadata"].get("ownerReferences", ())
        ours = any(owner["kind"] == "LoRAFineTune" for owner in owners)
        ours |= not owners and bool(run_uid(request.answer))  # somebody took the reference off
        # The run was deleted without its children while the request was under way.
        name = request.answer["metadata"]["name"]
        ours |= request.method == "PATCH" and any(not is_of_another(name, uid) for uid in self.life.orphaned)
        if request.method == "DELETE":
            assert plural == "jobs", f"I2: deleted {request.path}"
            assert ours, f"I2: deleted {request.path}"
            assert request.body is not None
            assert request.body["preconditions"]["uid"], f"I2: deleted {request.path} by name alone"
            return
        status = plural == "lorafinetunes" and request.path.endswith("/status") and request.method == "PUT"
        held = plural == "workloads" and (request.body or {})["spec"].keys() == {"active"}
        patched = request.method == "PATCH" and (held or (plural == "jobs" and ours))
        assert status or patched, f"I2: changed {request.path}"

    def restart_at_rest(self) -> None:
        """I9: when nothing happens, an operator that is started again writes nothing at all."""
        self.network.faults.clear()
        self._let_hear()
        self._end_wrong_clocks()
        self.pass_time(self.config.resync_interval_s + self.config.retry_max_s + 1)
        self.check()
        for operator in self.operators:
            operator.kill()
        requests = len(self.network.requests)
        self.settle()
        wrote = [request for request in self.network.requests[requests:] if request.writes and not request.error]
        assert not wrote, f"I9: a restart writes: {wrote[0]}"

    def report(self, step: int) -> None:
        """What running trainers answer from now on; a negative step is no answer."""
        self.progress = Progress(phase=Phase.TRAINING, step=step, total_steps=400, loss=1.5) if step >= 0 else None
