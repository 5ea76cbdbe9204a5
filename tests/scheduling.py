"""Which worker runs which tests under `pytest -n N`: a file stays whole, and a worker keeps to one kind of files.

Tests that wait share the cores with tests that compute. Each kind has workers of its own as long as it has files left,
so that few workers start a control plane, few load torch, and what needs the full cluster is one after the other.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from itertools import chain, repeat
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

FULL_CLUSTER = "the full cluster"
"""The unit of all tests on it: they install charts, offer GPUs and kill its kubelet."""

_ON_FULL_CLUSTER = ("tests/cluster/", "tests/e2e/")
_ON_CONTROL_PLANE = (
    "tests/component/",
    "tests/faults/",
    "tests/chart/test_chart_on_api_server.py",
    "tests/chart/test_prometheus_operator.py",
    "tests/chart/test_switches_on_api_server.py",
    "tests/chart/test_upgrade.py",
)
# A cluster of its own beside the others.
_BESIDE = "tests/cluster/test_local_cluster_life.py"
# The files that take much longer than others with as many tests begin first, in this order.
LONG: Mapping[str, float] = {
    "tests/faults/test_control_plane.py": 500,
    "tests/component/test_random_life.py": 480,
    "tests/faults/test_crash_sweep.py": 470,
    "tests/component/test_explain.py": 460,
    "tests/component/test_bad_input.py": 450,
    "tests/faults/test_hostile_pods.py": 440,
    "tests/trainer/test_run.py": 430,
    "tests/model/test_operator_model.py": 420,
    "tests/model/test_lagging_operators.py": 410,
}


class Kind(Enum):
    """What a unit of tests is bound by."""

    CLUSTER = "full cluster"
    CONTROL_PLANE = "control plane"
    PROCESSOR = "processor"


def unit(nodeid: str) -> str:
    """What is run by one worker, one test after the other: a file, or all on the full cluster."""
    file = nodeid.partition("::")[0]
    return FULL_CLUSTER if file.startswith(_ON_FULL_CLUSTER) and file != _BESIDE else file


def kind(of: str) -> Kind:
    """The kind of a unit."""
    if of == FULL_CLUSTER:
        return Kind.CLUSTER
    return Kind.CONTROL_PLANE if of.startswith((*_ON_CONTROL_PLANE, _BESIDE)) else Kind.PROCESSOR


def next_kind(taken: Counter[Kind]) -> Kind:
    """The kind of one more worker: one for the full cluster, then by turns."""
    left = taken.copy()
    for wanted in chain([Kind.CLUSTER], chain.from_iterable(repeat((Kind.CONTROL_PLANE, Kind.PROCESSOR)))):
        if not left[wanted]:
            return wanted
        left[wanted] -= 1
    raise AssertionError("never reached: the kinds repeat without end")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands units to workers; of a worker that crashed, all but the test in which it did is run by another one."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._kinds: dict[WorkerController, Kind] = {}

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if node not in self._kinds:
            self._kinds[node] = next_kind(Counter(self._kinds[other] for other in self.nodes if other in self._kinds))
        ours = [scope for scope in self.workqueue if kind(scope) is self._kinds[node]]
        longest = max(ours or self.workqueue, key=lambda scope: LONG.get(scope, len(self.workqueue[scope])))
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take a worker off; returns the test in which it crashed, if it did."""
        workload = self.assigned_work.pop(node)
        crashed: str | None = next(
            (test for tests in workload.values() for test, done in tests.items() if not done), None
        )
        for scope, tests in workload.items():
            if crashed in tests:
                tests[crashed] = True
            if not all(tests.values()):
                self.workqueue[scope] = tests
        for other in self.nodes:
            self._reschedule(other)
        return crashed
