"""Files are handed to workers by kind; nothing is lost, and nothing repeated, when a worker crashes."""

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.scheduling import FULL_CLUSTER, LONG, Kind, Scheduling, kind, next_kind, unit

from localcluster.settings import REPOSITORY

COMPONENT = ["tests/component/test_a.py::test_1", "tests/component/test_a.py::test_2"]
FAULTS = ["tests/faults/test_b.py::test_1"]
TRAINER = [f"tests/trainer/test_c.py::test_{number}" for number in range(4)]
CLUSTER = ["tests/cluster/test_d.py::test_1", "tests/e2e/test_e.py::test_1"]
ALL = [*COMPONENT, *FAULTS, *TRAINER, *CLUSTER]


@dataclass(eq=False, kw_only=True)
class Worker:
    """What the scheduling asks of a worker, and what it was sent."""

    name: str
    shutting_down: bool = False
    sent: list[str] = field(default_factory=list)

    @property
    def gateway(self) -> SimpleNamespace:
        """What has its name."""
        return SimpleNamespace(id=self.name)

    def send_runtest_some(self, indices: list[int]) -> None:
        """Take tests."""
        self.sent += [ALL[index] for index in indices]

    def shutdown(self) -> None:
        """Take no more."""
        self.shutting_down = True


@dataclass(kw_only=True)
class Line:
    """A scheduling and its workers."""

    scheduling: Any
    workers: list[Worker]

    def run(self, worker: Worker) -> None:
        """The worker ends the first of its tests that has not ended."""
        open_ = [t for unit in self.scheduling.assigned_work[worker].values() for t, done in unit.items() if not done]
        self.scheduling.mark_test_complete(worker, ALL.index(open_[0]))


def start(config: pytest.Config, count: int) -> Line:
    """So many workers that have collected all tests and got their first units."""
    scheduling = Scheduling(config)
    scheduling.numnodes = count
    workers = [Worker(name=f"gw{number}") for number in range(count)]
    for worker in workers:
        scheduling.add_node(cast("Any", worker))
        scheduling.add_node_collection(cast("Any", worker), ALL)
    scheduling.schedule()
    return Line(scheduling=scheduling, workers=workers)


@pytest.fixture
def line(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Line:
    """Three workers."""
    monkeypatch.setattr(pytestconfig.option, "tx", ["popen"] * 3)
    return start(pytestconfig, 3)


def test_a_unit_is_a_file_and_the_full_cluster_is_one() -> None:
    """A cluster of its own stands beside it."""
    assert [unit(test) for test in CLUSTER] == [FULL_CLUSTER] * 2
    assert unit(COMPONENT[0]) == "tests/component/test_a.py"
    beside = unit("tests/cluster/test_local_cluster_life.py::test_1[a::b]")
    assert (beside, kind(beside)) == ("tests/cluster/test_local_cluster_life.py", Kind.CONTROL_PLANE)
    assert [kind(unit(test)) for test in (CLUSTER[0], FAULTS[0], TRAINER[0])] == [*Kind]


def test_the_files_that_begin_first_exist() -> None:
    """A renamed one would silently come late."""
    assert [file for file in LONG if not (REPOSITORY / file).is_file()] == []


def test_one_worker_is_the_full_clusters_and_the_others_take_turns() -> None:
    """However many there are; a crashed one's successor takes its place."""
    taken: Counter[Kind] = Counter()
    for expected in (Kind.CLUSTER, Kind.CONTROL_PLANE, Kind.PROCESSOR, Kind.CONTROL_PLANE, Kind.PROCESSOR):
        found = next_kind(taken)
        assert found is expected
        taken[found] += 1
    taken[Kind.CLUSTER] -= 1
    assert next_kind(taken) is Kind.CLUSTER


def test_each_worker_gets_files_of_its_kind_first_and_all_tests_are_run_once(line: Line) -> None:
    """Who has none of its kind left helps the others."""
    cluster, control_plane, processor = line.workers
    assert cluster.sent[:2] == CLUSTER
    assert control_plane.sent[:2] == COMPONENT
    assert processor.sent[:4] == TRAINER
    while line.scheduling.has_pending:
        for worker in line.workers:
            if any(not all(tests.values()) for tests in line.scheduling.assigned_work[worker].values()):
                line.run(worker)
    assert sorted(test for worker in line.workers for test in worker.sent) == sorted(ALL)


def test_what_a_crashed_worker_left_is_run_by_others_but_not_the_test_in_which_it_crashed(line: Line) -> None:
    """That one failed: again it would crash the next worker too."""
    processor = line.workers[2]
    line.run(processor)
    crashed = line.scheduling.remove_node(processor)
    assert crashed == TRAINER[1]
    successor = Worker(name="gw3")
    line.scheduling.add_node(successor)
    line.scheduling.add_node_collection(successor, ALL)
    line.scheduling.schedule()
    again = [test for worker in (*line.workers[:2], successor) for test in worker.sent if test in TRAINER]
    assert sorted(again) == TRAINER[2:]


def test_a_worker_that_has_run_everything_leaves_nothing(line: Line) -> None:
    """No test is taken for a crash."""
    control_plane = line.workers[1]
    while any(not all(tests.values()) for tests in line.scheduling.assigned_work[control_plane].values()):
        line.run(control_plane)
    assert line.scheduling.remove_node(control_plane) is None
