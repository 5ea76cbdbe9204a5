"""The clusters that tests run on, a namespace for each test, and what is printed of it when the test fails."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as examples
from xdist.scheduler import LoadScopeScheduling

from localcluster import client, lifecycle, settings
from localcluster.client import HACK_CLUSTER, Client, CommandError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from xdist.remote import Producer

_IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"

# Few examples in an ordinary run, and none that has to be done within a time; `make soak` takes more.
examples.register_profile(
    "unit", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
examples.register_profile("soak", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unit"))

# The name under which this process, and no other that lives, runs a control plane.
_CONTROL_PLANE = re.compile(r"tests-(\d+)(-[a-z]+)?")
# Tests on the full cluster install charts, offer GPUs and kill its kubelet: one after the other.
_FULL_CLUSTER, _ON_FULL_CLUSTER = "full-cluster", ("tests/cluster/", "tests/e2e/")
_CLUSTERS_OF_ITS_OWN = "tests/cluster/test_local_cluster_life.py"
# Groups that take much longer than others with as many tests, as if they had so many.
_LONG = {
    _FULL_CLUSTER: 1000,
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
_SET_BY_PYTEST = "PYTEST_CURRENT_TEST"
_FAILED = pytest.StashKey[bool]()
_USED: list[TextIO] = []


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test calls logs for the rest of its process, to a stream that pytest closes after the test."""
    loggers = [logging.getLogger(name) for name in (None, "lora_operator", "lora_trainer", "bitsandbytes")]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """A command that a test calls sets variables, also for the processes that later tests start."""
    before = {name: value for name, value in os.environ.items() if name != _SET_BY_PYTEST}
    yield
    for name in os.environ.keys() - before.keys() - {_SET_BY_PYTEST}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def cluster() -> Client:
    """The full local cluster with a node that runs pods, or the user's own with CLUSTER=current.

    One that exists already is used and left; one that the tests make is ended by the last session
    that uses it.
    """
    if client.uses_own_cluster():
        return client.current()
    places = settings.places(settings.DEFAULT_NAME)
    _join(places.state)
    ours = lifecycle.load_record(places) is None
    _hack_cluster("up")
    if ours:
        _marker(places.state).touch()
    return client.local(settings.DEFAULT_NAME)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Client]:
    """An API server, controllers and a scheduler of this process alone, without a node: pods never run."""
    _end_leftover_control_planes()
    with own_control_plane(f"tests-{os.getpid()}") as started:
        yield started


@contextlib.contextmanager
def own_control_plane(name: str) -> Iterator[Client]:
    """A control plane under a name that begins with `tests-` and the number of this process; it ends with the block."""
    try:
        _hack_cluster("up", "--profile=control-plane", f"--name={name}")
        yield client.local(name)
    finally:
        _hack_cluster("down", f"--name={name}")


@pytest.fixture
def namespace(cluster: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of its own for the test, on the full cluster."""
    with _namespace(cluster, request) as name:
        yield name


@pytest.fixture
def control_plane_namespace(control_plane: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of its own for the test, on the control plane without a node."""
    with _namespace(control_plane, request) as name:
        yield name


@contextlib.contextmanager
def _namespace(on: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:10]}"
    on.kubectl("create", "namespace", name)
    try:
        yield name
        if request.node.stash.get(_FAILED, False):
            print(_describe(on, name))
    finally:
        on.kubectl("delete", "namespace", name, "--wait=false")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what takes long to the soak, and begin with what ends last."""
    long = [] if _IS_SOAK else [item for item in items if item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    sizes = Counter(_group(item.nodeid) for item in items)
    items.sort(key=lambda item: (-_LONG.get(_group(item.nodeid), sizes[_group(item.nodeid)]), _group(item.nodeid)))


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """With `-n` a file goes to one worker, and so does all that is on the full cluster.

    So would marks and `--dist=loadgroup` have it, but pytest-xdist 3.8 does not find its groups under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    """Asked by pytest-xdist."""
    return Groups(config, log)


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return _FULL_CLUSTER if file.startswith(_ON_FULL_CLUSTER) and file != _CLUSTERS_OF_ITS_OWN else file


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test failed, for the fixtures that describe its namespace."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a cluster that tests started, unless another session still uses it, and what a killed worker left."""
    while _USED:
        _USED.pop().close()
    if hasattr(config, "workerinput"):
        return
    _end_leftover_control_planes()
    places = settings.places(settings.DEFAULT_NAME)
    if not _marker(places.state).exists():
        return
    with _users(places.state).open("a") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _hack_cluster("down")


def _join(state: Path) -> None:
    """Count as a user of the cluster: a lock that the kernel drops when this process ends, however it ends."""
    users = _users(state)
    users.parent.mkdir(parents=True, exist_ok=True)
    file = users.open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    _USED.append(file)


def _users(state: Path) -> Path:
    return state.with_name(f"{state.name}.users")


def _marker(state: Path) -> Path:
    """Exists while a cluster runs that tests started; `down` deletes it with the rest of the state."""
    return state / "started-by-tests"


def _end_leftover_control_planes() -> None:
    """End those of test processes that were killed."""
    for state in settings.places(settings.DEFAULT_NAME).state.parent.glob("tests-*"):
        match = _CONTROL_PLANE.fullmatch(state.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _hack_cluster("down", f"--name={state.name}")


def _hack_cluster(*arguments: str) -> None:
    """Run hack/cluster; what it says is shown by pytest when the fixture fails."""
    done = subprocess.run(
        [str(HACK_CLUSTER), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"hack/cluster {' '.join(arguments)}:\n{done.stderr}"


def _describe(on: Client, namespace: str) -> str:
    """Events, conditions and the ends of the logs of a namespace, for the report of a failed test."""
    condition = '{"\\n  "}{.type}={.status} {.reason}: {.message}'
    conditions = (
        f'{{range .items[*]}}{{.metadata.name}}{{range .status.conditions[*]}}{condition}{{end}}{{"\\n"}}{{end}}'
    )
    questions = [
        ("get", "lorafinetunes", f"--output=jsonpath={conditions}"),
        ("get", "jobs,pods,persistentvolumeclaims", "--output=wide"),
        ("get", "events", "--sort-by=.lastTimestamp"),
    ]
    answers = [_answer(on, *question, f"--namespace={namespace}") for question in questions]
    for pod in _answer(on, "get", "pods", "--output=name", f"--namespace={namespace}").split():
        tail = ("logs", pod, "--all-containers", "--tail=40", "--prefix")
        answers.append(_answer(on, *tail, f"--namespace={namespace}"))
    return f"namespace {namespace}:\n" + "\n".join(answer for answer in answers if answer)


def _answer(on: Client, *command: str) -> str:
    try:
        return on.kubectl(*command)
    except CommandError as error:
        return str(error)
