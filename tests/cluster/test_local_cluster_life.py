"""The life of a local cluster: started twice, killed, started again, ended. Beside whatever else runs here."""

import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.pages.executed import execute

from localcluster import client, lifecycle, ports, processes, settings
from localcluster.client import HACK_CLUSTER, Client
from localcluster.processes import ProcessId
from localcluster.settings import Places

READY = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One full cluster of these tests alone."""

    places: Places
    api_port: int
    registry_port: int

    @property
    def client(self) -> Client:
        return client.local(self.places.name)

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.run("up", f"--api-port={self.api_port}", f"--registry-port={self.registry_port}")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(HACK_CLUSTER), *arguments, f"--name={self.places.name}"]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def supervisor(self) -> ProcessId:
        process = processes.load(lifecycle.supervisor_file(self.places))
        assert process is not None
        return process


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    """A cluster that is up at the start of each test, if the one before left it so; nothing of it stays."""
    if client.uses_own_cluster():
        pytest.fail("These tests start and end a cluster: run them without CLUSTER=current.")
    api_port, registry_port = ports.choose(2, random.Random())  # noqa: S311 - not a secret
    places = settings.places(f"tests-life-{os.getpid()}")
    found = Life(places=places, api_port=api_port, registry_port=registry_port)
    try:
        yield found
    finally:
        found.run("down")
        shutil.rmtree(places.stores, ignore_errors=True)
        shutil.rmtree(places.volumes, ignore_errors=True)


@pytest.fixture
def running(life: Life) -> Life:
    done = life.up()
    assert done.returncode == 0, done.stderr
    return life


def _command(pid: int) -> str:
    """The name of a process; nothing of one that has just ended, as children of containers do at any time."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def _network_namespaces() -> set[str]:
    """The network namespaces in which some process of the machine runs."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add(str((process / "ns" / "net").readlink()))
        except OSError:
            continue
    return found


def test_up_names_the_holder_of_a_taken_port(life: Life) -> None:
    """Nothing is left half-started by the refusal."""
    with socket.create_server(("127.0.0.1", life.api_port)):
        done = life.up()
    assert done.returncode == 1
    assert f"Port {life.api_port} on 127.0.0.1 is already taken by" in done.stderr
    assert f"process {os.getpid()}" in done.stderr
    assert not lifecycle.is_running(life.places)


def test_up_prints_what_a_shell_needs_and_the_node_is_ready(running: Life) -> None:
    """Its standard output can be evaluated; progress goes elsewhere."""
    done = running.up()
    shell = f"{done.stdout}\nkubectl get node {settings.NODE_NAME} --output='{READY}'".replace("'Ready'", '"Ready"')
    answer = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert answer.stdout == "True", answer.stderr


def test_up_twice_leaves_a_running_cluster_as_it_is(running: Life) -> None:
    """The second has nothing to do."""
    before = running.supervisor()
    done = running.up()
    assert done.returncode == 0, done.stderr
    assert running.supervisor() == before
    assert done.stderr == ""


def test_pods_have_the_weight_on_a_busy_machine_that_they_have_on_a_node_of_their_own(running: Life) -> None:
    """A thread's on each CPU: the kubelet gives it below this cgroup, whose own would be that of one thread."""
    cgroup = f"lora-operator-{running.places.name}"
    folders = [*Path("/sys/fs/cgroup").glob(cgroup), *Path("/sys/fs/cgroup").glob(f"*/{cgroup}")]
    files = [folder / name for folder in folders for name in ("cpu.shares", "cpu.weight")]
    found = {file.name: int(file.read_text()) for file in files if file.exists()}
    cpus = os.cpu_count() or 1
    assert found in ({"cpu.shares": 1024 * cpus}, {"cpu.weight": 100 * cpus})


def test_another_profile_under_the_same_name_is_refused(running: Life) -> None:
    """A typing mistake must not end a cluster."""
    done = running.run("up", "--profile=control-plane")
    assert done.returncode == 1
    assert "has the profile full: choose another --name" in done.stderr
    assert processes.is_running(running.supervisor())


def test_up_heals_a_cluster_whose_node_was_killed(running: Life) -> None:
    """What the API server knew is still known, as after a reboot."""
    running.client.kubectl("create", "configmap", "survivor", "--from-literal=a=b")
    killed = running.supervisor()
    os.kill(killed.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not processes.is_running(killed), timeout_s=600)
    assert "ended unexpectedly" in running.run("status").stdout
    done = running.up()
    assert done.returncode == 0, done.stderr
    assert running.supervisor() != killed
    assert running.client.get("configmap", "survivor")["data"] == {"a": "b"}


def test_a_component_that_dies_is_started_again(running: Life) -> None:
    """Without a new `up`: the supervisor sees to it."""
    before = lifecycle.component_states(running.places)["kube-scheduler"]["starts"] or 0
    (init,) = processes.children(running.supervisor().pid)
    scheduler = next(
        process
        for parent in processes.children(init.pid)
        for process in processes.children(parent.pid)
        if _command(process.pid).startswith("kube-scheduler")
    )
    os.kill(scheduler.pid, signal.SIGKILL)
    assert processes.wait_until(
        lambda: (lifecycle.component_states(running.places)["kube-scheduler"]["starts"] or 0) > before, timeout_s=600
    )


def test_pretended_gpus_are_offered_by_the_node(running: Life) -> None:
    """The command says that they are not real."""
    done = running.run("gpus", "2")
    assert "They are not real" in done.stderr
    capacity = running.client.get("node", settings.NODE_NAME)["status"]["allocatable"]
    assert capacity["nvidia.com/gpu"] == "2"


def test_a_port_of_the_host_leads_to_a_service(running: Life) -> None:
    """The API server's own Service answers through its cluster address."""
    (port,) = ports.choose(1, random.Random())  # noqa: S311 - not a secret
    done = running.run("forward", str(port), "default/service/kubernetes:443")
    assert done.returncode == 0, done.stderr

    def answers() -> bool:
        command = ("--server", f"https://127.0.0.1:{port}", "get", "--raw", "/readyz")
        try:
            return running.client.kubectl(*command) == "ok"
        except client.CommandError:
            return False

    assert processes.wait_until(answers, timeout_s=600)


def test_down_leaves_no_process_mount_network_or_cgroup_and_keeps_volumes(running: Life) -> None:
    """And a second `down` has nothing to do."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    running.client.apply(claim, namespace="default")
    running.client.wait("pvc/kept", "jsonpath={.status.phase}=Bound", namespace="default")
    supervisor = running.supervisor()
    network = str(Path(f"/proc/{supervisor.pid}/ns/net").readlink())
    assert network in _network_namespaces()
    done = running.run("down")
    assert done.returncode == 0, done.stderr
    assert not processes.is_running(supervisor)
    assert network not in _network_namespaces()
    assert str(running.places.state) not in Path("/proc/mounts").read_text()
    assert not running.places.state.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/lora-operator-{running.places.name}"))
    assert ports.is_free(running.api_port)
    assert ports.is_free(running.registry_port)
    assert [path.name.split("_")[1] for path in running.places.volumes.iterdir()] == ["kept"]
    assert running.run("down").returncode == 0
    assert "does not exist" in running.run("status").stdout


def test_control_planes_stand_side_by_side(control_plane: Client) -> None:
    """Each has ports, objects and an end of its own."""
    name = f"tests-other-{os.getpid()}"
    typed = f"""eval "$(hack/cluster up --profile control-plane --name {name})"
kubectl apply --server-side -f crds/
kubectl create namespace only-here
hack/cluster down --name {name}
"""
    try:
        printed = execute(typed, os.environ, settings.REPOSITORY)
        assert "lorafinetunes.lora-operator.io serverside-applied" in printed
        assert "namespace/only-here created" in printed
        assert lifecycle.load_record(settings.places(name)) is None
        assert "namespace/only-here" not in control_plane.kubectl("get", "namespaces", "--output=name").split()
    finally:
        subprocess.run([str(HACK_CLUSTER), "down", f"--name={name}"], capture_output=True, check=False)
    assert control_plane.kubectl("get", "--raw", "/readyz") == "ok"
