"""The real shell of the operator in a cluster in memory, in which anything may happen in any order."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.model.life import ACTS, Chance, Life
from tests.model.operators import WATCHED, Fault
from tests.model.queues import QUEUE_ACTS, Queues
from tests.model.world import CONFIG, World

T = TypeVar("T")
_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
# By default what waits or trains is looked at every few seconds, and most of the hours in which a life comes to rest
# would be looks at what stands still.
_SELDOM = dataclasses.replace(CONFIG, pending_check_s=60.0, progress_interval_s=60.0)


class Drawn:
    """Choices that hypothesis makes, and can make smaller."""

    def __init__(self) -> None:
        self.data: st.DataObject | None = None

    def pick(self, among: Sequence[T]) -> T:
        """One of them."""
        return among[self.number(0, len(among) - 1)]

    def number(self, low: int, high: int) -> int:
        """From low to high."""
        assert self.data is not None
        return self.data.draw(st.integers(low, high))


class ClusterLife(RuleBasedStateMachine):
    """Users, nodes, controllers, the network and the operators act; after each act everything must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = Drawn()
        self.world = World(self.chance, CONFIG if _SOAK else _SELDOM)

    @initialize(data=st.data(), kueue=st.booleans(), ahead_s=st.sampled_from([0, 0, -660, 660]))
    def begin(self, data: st.DataObject, kueue: bool, ahead_s: int) -> None:
        """An operator runs, in a cluster with or without Kueue and nodes with a wrong clock; somebody applies a run."""
        self.chance.data = data
        self.world.life.node_ahead_s = ahead_s
        if kueue:
            self.world.install_kueue()
        self.world.start_operator()
        self.world.settle()
        self.world.life.create()

    @rule(data=st.data(), act=st.sampled_from(ACTS))
    def act(self, data: st.DataObject, act: Callable[[Life], None]) -> None:
        """Somebody does something, and the operators hear of it or not."""
        self.chance.data = data
        self.world.life.do(act)
        self.world.settle()

    @rule()
    def controllers(self) -> None:
        """The cluster's controllers catch up."""
        self.world.controllers.catch_up()
        self.world.settle()

    @rule()
    def jobs_first(self) -> None:
        """The Job controller looks once, and the garbage collector is late."""
        self.world.controllers.sync_jobs()
        self.world.settle()

    @rule()
    def live(self) -> None:
        """Everything goes its way for a while: pods are made, those that must stop do."""
        self.world.controllers.catch_up()
        self.world.settle()
        self.world.life.stop_all()
        self.world.controllers.catch_up()
        self.world.settle()

    @rule(seconds=st.sampled_from([1, 12, 61, 301, 700]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.world.pass_time(seconds)

    @rule(fault=st.sampled_from(Fault), method=st.sampled_from(["", "", "POST", "PUT", "PATCH", "DELETE", "GET"]))
    def fault(self, fault: Fault, method: str) -> None:
        """The next request that fits goes wrong."""
        self.world.network.faults.append((fault, method))

    @rule(
        data=st.data(),
        act=st.sampled_from(ACTS),
        fault=st.sampled_from([(Fault.MEANWHILE, ""), (Fault.OVERTAKEN, ""), (Fault.OVERTAKEN, "GET")]),
    )
    def meanwhile(self, data: st.DataObject, act: Callable[[Life], None], fault: tuple[Fault, str]) -> None:
        """Something happens between an operator's look and its next write, or before an answer is there."""
        chance = self.chance

        def happen() -> None:
            chance.data = data
            self.world.life.do(act)

        self.world.network.meanwhile = happen
        self.world.network.faults.append(fault)
        self.world.settle()
        self.world.network.meanwhile = lambda: None

    @rule()
    def crash(self) -> None:
        """An operator is killed, and one is started if none is left."""
        self.world.operators[0].kill()
        self.world.settle()

    @rule(skew_s=st.sampled_from([0, 0, -7200, 7200]))
    def take_over(self, skew_s: int) -> None:
        """Another operator gets the Lease, perhaps with a wrong clock, and the one that led has yet to notice."""
        if len(self.world.operators) < 2:
            self.world.start_operator(skew_s)
            self.world.settle()

    @rule()
    def stand_by(self) -> None:
        """Another operator lists and watches, and works on nothing before the first has died."""
        if len(self.world.operators) < 2:
            self.world.start_operator(leads=False)
            self.world.settle()

    @rule(plural=st.sampled_from(WATCHED))
    def lag(self, plural: str) -> None:
        """A watch of an operator falls behind."""
        self.world.operators[0].deaf.add(plural)

    @rule(plural=st.sampled_from(WATCHED), most=st.sampled_from([1, 3, 1000]))
    def hear(self, plural: str, most: int) -> None:
        """Some of what was kept back arrives, kind by kind in any order."""
        self.world.operators[0].hear(plural, most)
        self.world.settle()

    @rule(plural=st.sampled_from(WATCHED), relisted=st.booleans())
    def miss(self, plural: str, relisted: bool) -> None:
        """What was kept back is lost, and the watch goes on or begins anew."""
        operator = self.world.operators[0]
        operator.deaf.discard(plural)
        operator.relist(plural) if relisted else operator.miss(plural)
        self.world.settle()

    @rule(back=st.integers(1, 30))
    def hear_old_news(self, back: int) -> None:
        """An old event comes again."""
        old = self.world.server.log[-back:][:1]
        for happening in old:
            if happening.plural in WATCHED:
                self.world.operators[0].take_in(happening)
        self.world.settle()

    @rule(refusal=st.sampled_from(["", "", 'pods "x" is forbidden: exceeded quota: gpus']))
    def quota(self, refusal: str) -> None:
        """The namespace's quota is used up, or is not any more."""
        self.world.controllers.refuses_pods = refusal

    @rule(data=st.data())
    def delete_kept(self, data: st.DataObject) -> None:
        """A run is deleted that somebody's finalizer keeps to the end of the life."""
        self.chance.data = data
        self.world.keep_runs(kept=True)
        self.world.life.do(Life.delete)
        self.world.settle()

    @precondition(lambda self: self.world.queues is not None)
    @rule(data=st.data(), act=st.sampled_from(QUEUE_ACTS))
    def queue(self, data: st.DataObject, act: Callable[[Queues, Chance], None]) -> None:
        """Quota comes and goes, and Workloads with it."""
        self.chance.data = data
        if self.world.queues is not None:
            act(self.world.queues, self.chance)
        self.world.settle()

    @rule(step=st.integers(-1, 400))
    def report(self, step: int) -> None:
        """Trainers answer, or do not."""
        self.world.report(step)

    @rule()
    def restart_at_rest(self) -> None:
        """An operator that is started again at rest writes nothing."""
        self.world.restart_at_rest()

    @invariant()
    def everything_holds(self) -> None:
        """The invariants."""
        self.world.check()

    def teardown(self) -> None:
        """In the end everything comes to rest."""
        try:
            if self.world.lingers():
                self.world.come_to_rest()
                self.world.check_rest()
            self.world.keep_runs(kept=False)
            self.world.come_to_rest()
            self.world.check_rest()
            self.world.check_queues()
        finally:
            self.world.close()


TestClusterLife = ClusterLife.TestCase
TestClusterLife.settings = settings(
    max_examples=2000 if _SOAK else 90,
    derandomize=not _SOAK,
    database=None,
    # Where time is short, a failure is told as it was found, and not made smaller for minutes.
    phases=tuple(Phase) if _SOAK else (Phase.generate,),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
