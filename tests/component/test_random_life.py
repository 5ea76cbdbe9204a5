"""The same random acts as in the cluster in memory, against a real API server and real operator processes."""

import os
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, TypeVar

from tests.component.documents import Object
from tests.component.operator_process import OperatorProcess
from tests.component.patience import DEADLINE_S, eventually
from tests.component.stage import Stage
from tests.faults.queue_kind import ServedObjects, kueue
from tests.model.invariants import KINDS, Witness, check_text, waiting
from tests.model.life import ACTS, Life
from tests.model.queues import QUEUE_ACTS, Queues

from localcluster.api import ApiError

__all__ = ["kueue"]

T = TypeVar("T")
# 0 is another life each time.
SEED = int(os.environ.get("RANDOM_LIFE_SEED", "1"))
DURATION_S = float(os.environ.get("RANDOM_LIFE_SECONDS", "50"))
NAMES = ("tone", "mood", "voice", "style")
# The operators look at what waits every half second, and list everything anew every five.
QUIET_S = 6.0
LEASE: dict[str, Any] = {"leaseDurationSeconds": 6, "renewDeadlineSeconds": 5, "retryPeriodSeconds": 0.5}
# Long enough for another one to lead meanwhile.
FROZEN_S = 8.0


class Dice:
    """Choices by chance, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 - to be repeated, not to be secret

    def pick(self, among: Sequence[T]) -> T:
        """One of them."""
        return among[self._random.randrange(len(among))]

    def number(self, low: int, high: int) -> int:
        """From low to high."""
        return self._random.randint(low, high)


class RandomLife:
    """Acts and operator kills on a stage, with a look at everything after each."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.dice = Dice(seed)
        self.life = Life(
            client=stage.api,
            namespace=stage.namespace,
            chance=self.dice,
            now=lambda: datetime.now(UTC),
            node=stage.node,
            queues=True,
            names=NAMES,
        )
        self.served = ServedObjects(stage)
        self.queues = Queues(self.served, lambda: datetime.now(UTC))
        self.witness = Witness(self.life)
        self.acts: list[str] = []
        self.frozen: dict[int, float] = {}
        self.start()

    def see(self) -> dict[str, list[Object]]:
        """Everything there is. Children first: a run's status is never older than the children that it tells of."""
        children_first = {kind: self.life.objects(kind) for kind in reversed(KINDS)}
        return {"workloads": list(self.served.all("workloads")), **children_first}

    def step(self) -> None:
        """One act, and sometimes the death or birth of an operator, or its sleep for longer than its Lease lasts."""
        chance = self.dice.number(0, 39)
        self.thaw()
        living = self.living()
        if chance == 0 and living:
            self.acts.append("kill")
            self.dice.pick(living).kill()
        if chance == 12 and living:
            self.acts.append("freeze")
            self.freeze(self.dice.pick(living))
        if len(living) < 1 or (chance == 1 and len(living) < 2):
            self.acts.append("start")
            self.start()
        if chance in range(2, 8):
            self.change_queues()
        elif chance in range(8, 12):
            self.acts.append("replace")
            self.life.do(replace)
        else:
            act = self.dice.pick(ACTS)
            self.acts.append(act.__name__)
            self.life.do(act)
        if self.dice.number(0, 1):
            self.sync_queues()
        self.collect_pods()
        self.witness.look(self.see())

    def collect_pods(self) -> None:
        """Every 20 seconds the cluster's pod garbage collector fails pods that were deleted before they had a node."""
        for pod in self.life.objects("pods"):
            if "deletionTimestamp" in pod["metadata"] and not pod["spec"].get("nodeName"):
                self.life.note_failure(pod)

    def change_queues(self) -> None:
        """Quota comes and goes, and Workloads with it."""
        act = self.dice.pick(QUEUE_ACTS)
        self.acts.append(f"queue_{act.__name__}")
        self.life.do(lambda _: act(self.queues, self.dice))

    def sync_queues(self) -> None:
        """Kueue looks at the Jobs; it looks again later where somebody was faster."""
        try:
            self.queues.sync()
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def start(self) -> None:
        """One more operator, which lists everything anew every five seconds; what a run reads is fetched first."""
        self.stage.start(resyncIntervalSeconds=5, **LEASE)

    def freeze(self, operator: OperatorProcess) -> None:
        """Nothing of it goes on; a leader loses its Lease by that, and finds out when it goes on."""
        operator.process.send_signal(signal.SIGSTOP)
        self.frozen.setdefault(operator.process.pid, time.monotonic() + FROZEN_S)

    def thaw(self, *, now: bool = False) -> None:
        """Those whose time has come go on, or all of them."""
        for operator in self.stage.operators:
            pid = operator.process.pid
            if pid in self.frozen and (now or time.monotonic() > self.frozen[pid]):
                del self.frozen[pid]
                operator.process.send_signal(signal.SIGCONT)

    def living(self) -> list[OperatorProcess]:
        """Operators that run and are not frozen; none has ended by itself but one that lost its Lease."""
        for operator in self.stage.operators:
            status, text = operator.process.poll(), operator.text()
            assert status in (None, -9) or (status == 1 and "The Lease " in text), text[-4000:]
        awake = (operator for operator in self.stage.operators if operator.process.pid not in self.frozen)
        return [operator for operator in awake if operator.process.poll() is None]

    def look_at_rest(self) -> None:
        """All that must hold by now; only what is deleted may take a slow garbage collector some time yet."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self.witness.at_rest(self.see())
            except AssertionError as error:
                if not str(error).startswith("I5:") or time.monotonic() > end:
                    raise
            time.sleep(1)

    def come_to_rest(self) -> None:
        """No more acts: everything reaches a fixed point, and nobody writes any more."""
        self.thaw(now=True)
        if not self.living():
            # The last of the acts was its death.
            self.start()
        last: tuple[object, float] = (None, 0.0)

        def quiet() -> bool:
            nonlocal last
            if not self.living():
                self.start()
            self.life.stop_all()
            self.sync_queues()
            seen = [
                (document["metadata"]["uid"], document["metadata"]["resourceVersion"])
                for documents in self.see().values()
                for document in documents
            ]
            if seen != last[0]:
                last = (seen, time.monotonic())
            return time.monotonic() - last[1] > QUIET_S

        eventually(quiet, "everything has come to rest", deadline_s=2 * DEADLINE_S)
        self.look_at_rest()

    def empty_queues(self) -> None:
        """Once there is quota for all, whatever waited in a queue ends, unless its user or somebody's name holds it."""

        def empty() -> bool:
            self.life.do(lambda _: self.queues.open())
            self.sync_queues()
            self.life.end_all()
            self.life.stop_all()
            seen = self.see()
            self.witness.look(seen)
            return not list(waiting(seen))

        eventually(empty, "whatever waited in a queue has ended")

    def read_logs(self) -> None:
        """No operator has told a secret, or had an exception that it did not expect."""
        for operator in self.stage.operators:
            text = operator.text()
            check_text(text)
            # At the beginning of a line: what trainers say may hold that word, too.
            own = text.find("\nTraceback")
            assert own < 0, text[max(0, own - 1000) :][:4000]


def replace(life: Life) -> None:
    """The user takes runs away that have ended, as their names are few, and creates another."""
    for run in life.objects("lorafinetunes"):
        stated = {(c["type"], c["status"]) for c in run.get("status", {}).get("conditions", ())}
        if stated & {("Complete", "True"), ("Failed", "True")}:
            life.client.delete(life.path("lorafinetunes", run["metadata"]["name"]))
    life.create()


def test_no_random_life_breaks_an_invariant_on_a_real_api_server(stage: Stage, kueue: None) -> None:
    """Acts of users and nodes, SIGKILLs and second operators, until the time is up; then everything comes to rest."""
    seed = SEED or int(time.time())
    life = RandomLife(stage, seed)
    end = time.monotonic() + DURATION_S
    try:
        while time.monotonic() < end:
            life.step()
        life.come_to_rest()
        life.empty_queues()
        life.read_logs()
    except (AssertionError, ApiError) as error:
        error.add_note(f"RANDOM_LIFE_SEED={seed}, after {len(life.acts)} acts, the last of them: {life.acts[-25:]}")
        raise
