"""Processes of the local cluster: known by pid and start time, ended with their children, kept running."""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster import lifecycle, processes, settings, supervisor
from localcluster.components import Component
from localcluster.errors import ClusterError
from localcluster.lifecycle import Record
from localcluster.processes import ProcessId, children, end, identify, is_running, load, save, wait_until

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, for ten minutes at most."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    "stat",
    [
        "7 (etcd) S 1 7 7 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 9 0 815 1 2 3",
        "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 9 0 815 1 2 3",
    ],
)
def test_the_start_time_is_found_behind_any_name_of_a_program(stat: str) -> None:
    """The name may hold spaces and parentheses."""
    assert processes.parse_start_ticks(stat) == 815


def test_a_pid_that_belongs_to_another_process_now_is_not_ours(sleeper: subprocess.Popen[bytes]) -> None:
    """The kernel reuses pids; start time and boot do not repeat."""
    process = identify(sleeper.pid)
    assert process is not None
    assert is_running(process)
    assert not is_running(dataclasses.replace(process, start_ticks=process.start_ticks - 1))
    assert not is_running(dataclasses.replace(process, boot_id="an earlier boot"))


def test_a_process_that_is_not_ours_is_not_ended(sleeper: subprocess.Popen[bytes]) -> None:
    """A stale pid file must not cost a stranger's life."""
    process = identify(sleeper.pid)
    assert process is not None
    assert end(dataclasses.replace(process, start_ticks=process.start_ticks - 1)) is False
    assert sleeper.poll() is None


def test_ending_a_process_that_is_gone_does_nothing(sleeper: subprocess.Popen[bytes]) -> None:
    """`down` can be repeated."""
    process = identify(sleeper.pid)
    assert end(process) is True
    assert end(process) is False
    assert end(None) is False


@pytest.mark.parametrize("text", ["", '{"pid": 1', '{"pid": 1}', "[]", "null"])
def test_a_pid_file_that_was_cut_short_counts_as_none(tmp_path: Path, text: str) -> None:
    """A power cut may leave any of these."""
    (tmp_path / "pid").write_text(text)
    assert load(tmp_path / "pid") is None


def test_a_pid_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Saving and loading are inverse; a missing file is None."""
    process = ProcessId(pid=1, start_ticks=2, boot_id="b")
    save(process, tmp_path / "pid")
    assert load(tmp_path / "pid") == process
    assert load(tmp_path / "missing") is None


def test_a_detached_process_is_noted_and_in_a_session_of_its_own(tmp_path: Path) -> None:
    """It outlives the command and the terminal that started it."""
    process = processes.start_detached(
        SLEEP, pid_file=tmp_path / "pid", log=tmp_path / "log", environment=lifecycle.python_environment()
    )
    try:
        assert load(tmp_path / "pid") == process
        assert os.getsid(process.pid) == process.pid
    finally:
        assert end(process)


def test_a_detached_program_that_does_not_exist_is_an_error_with_its_log(tmp_path: Path) -> None:
    """The sentence names the program."""
    with pytest.raises(ClusterError, match="/nonexistent/program could not be started") as error:
        processes.start_detached(
            ["/nonexistent/program"],
            pid_file=tmp_path / "missing" / "pid",
            log=tmp_path / "log",
            environment=lifecycle.python_environment(),
        )
    assert error.value.log == tmp_path / "log"


def test_a_lock_whose_file_was_deleted_by_its_holder_is_taken_on_the_next_file(tmp_path: Path) -> None:
    """`down` leaves no file behind, and yet two never hold the lock at once."""
    path = tmp_path / "lock"
    said: list[str] = []

    def delete_while_waiting(text: str) -> None:
        said.append(text)
        path.unlink()
        holder.close()

    holder = path.open("w")
    fcntl.flock(holder, fcntl.LOCK_EX)
    holder.write("4711")
    holder.flush()
    with processes.locked(path, waiting=delete_while_waiting):
        assert path.read_text() == str(os.getpid())
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert said == ["waiting for another hack/cluster (process 4711) to finish"]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[tuple[ProcessId, Path]]:
    """A supervisor of one component that stays and one that ends with status 3; and the file it reports to."""
    plan = supervisor.Plan(
        components=(
            Component(name="stays", argv=SLEEP),
            Component(name="fails", argv=("sh", "-c", "exit 3")),
            Component(name="missing", argv=("/nonexistent/program",)),
            Component(name="waits", argv=SLEEP, needs_api=True),
        ),
        logs=str(tmp_path),
        status=str(tmp_path / "components.json"),
        api_port=1,
        ca_file="/dev/null",
        node_network=False,
    )
    (tmp_path / "plan.json").write_text(plan.dump())
    process = processes.start_detached(
        [sys.executable, "-m", "localcluster.supervisor", str(tmp_path / "plan.json")],
        pid_file=tmp_path / "pid",
        log=tmp_path / "supervisor.log",
        environment=lifecycle.python_environment(),
    )
    yield process, tmp_path / "components.json"
    end(process)


def test_the_supervisor_reports_what_runs_and_starts_again_what_ended(supervised: tuple[ProcessId, Path]) -> None:
    """A program that cannot be started at all counts as one that ended, and is told in its log."""
    _, status = supervised

    def states() -> dict[str, dict[str, int | None]]:
        found: dict[str, dict[str, int | None]] = json.loads(status.read_text()) if status.exists() else {}
        return found

    assert wait_until(lambda: (states().get("fails", {}).get("starts") or 0) >= 2, timeout_s=300)
    assert states()["fails"]["lastExit"] == 3
    assert states()["stays"]["starts"] == 1
    assert states()["missing"]["lastExit"] == 126
    assert states()["waits"] == {"pid": None, "starts": 0, "lastExit": None}
    assert "No such file" in (status.parent / "missing.log").read_text()


def test_components_end_with_the_supervisor(supervised: tuple[ProcessId, Path]) -> None:
    """One kill ends the cluster, whatever its components do."""
    process, status = supervised
    assert wait_until(status.exists, timeout_s=300)
    found = children(process.pid)
    assert found
    assert end(process)
    assert not any(is_running(child) for child in found)


def test_a_plan_is_read_as_it_was_written() -> None:
    """The supervisor is told everything through a file."""
    plan = supervisor.Plan(
        components=(Component(name="a", argv=("b", "c"), needs_api=True),),
        logs="/l",
        status="/s",
        api_port=6443,
        ca_file="/c",
        node_network=True,
    )
    assert supervisor.Plan.parse(plan.dump()) == plan


@pytest.fixture
def places(tmp_path: Path) -> settings.Places:
    found = settings.Places(name="n", cache=tmp_path / "cache", state=tmp_path / "state" / "clusters" / "n")
    lifecycle.make_folders(found)
    return found


def test_a_component_that_keeps_failing_is_named(places: settings.Places) -> None:
    """The sentence has the component and its exit status, the log is its own."""
    this = identify(os.getpid())
    assert this is not None
    save(this, lifecycle.supervisor_file(places))
    states = {"etcd": {"pid": 5, "starts": 1, "lastExit": None}, "kubelet": {"pid": None, "starts": 4, "lastExit": 1}}
    (places.run / "components.json").write_text(json.dumps(states))
    with pytest.raises(ClusterError, match="kubelet failed 3 times, last with exit status 1") as error:
        lifecycle.require_progress(places)
    assert error.value.log == places.logs / "kubelet.log"


def test_a_supervisor_that_ended_is_an_error(places: settings.Places) -> None:
    """Waiting for a dead cluster would only cost time."""
    with pytest.raises(ClusterError, match="supervisor of the cluster ended"):
        lifecycle.require_progress(places)


def test_a_record_is_read_as_it_was_saved(places: settings.Places) -> None:
    """A cluster that never was has none."""
    assert lifecycle.load_record(places) is None
    record = Record(profile="full", kubernetes="kubernetes-1.34.4-k", api_port=6443, registry_port=5000)
    record.save(places)
    assert lifecycle.load_record(places) == record


def test_logs_of_the_life_before_are_kept_once(places: settings.Places) -> None:
    """A failure can still be read after the next start."""
    (places.logs / "etcd.log").write_text("first")
    lifecycle.rotate_logs(places)
    assert (places.logs / "etcd.log.1").read_text() == "first"
    assert not (places.logs / "etcd.log").exists()
