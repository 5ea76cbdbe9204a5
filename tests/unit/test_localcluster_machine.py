"""What the local cluster asks of the machine, and what it says to the person at the terminal."""

import asyncio
import contextlib
import io
import os
import random
import socket
import subprocess
from pathlib import Path

import pytest

from localcluster import (
    cli,
    client,
    forwarder,
    go,
    lifecycle,
    node,
    packages,
    ports,
    processes,
    settings,
    space,
    status,
    targets,
    tools,
)
from localcluster.api import Api
from localcluster.client import HACK_CLUSTER
from localcluster.console import Console, duration
from localcluster.errors import ClusterError, tail
from localcluster.forwarder import Route

TCP_TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:192B 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 20 4 30 10 -1
   2: 00000000:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0
"""


def test_the_socket_that_listens_on_a_port_is_found_and_connections_are_not() -> None:
    """0A is the state LISTEN; ports are hexadecimal."""
    assert ports.listening_inodes(TCP_TABLE, 6443) == {"111"}
    assert ports.listening_inodes(TCP_TABLE, 5000) == {"333"}
    assert ports.listening_inodes(TCP_TABLE, 80) == set()


def test_a_taken_port_is_an_error_that_names_who_holds_it() -> None:
    """Here it is this very process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
        with pytest.raises(ClusterError, match=rf"Port {port} .* taken by .*process {os.getpid()}.*--api-port"):
            ports.require_free(port, "--api-port")
    ports.require_free(port, "--api-port")


def test_chosen_ports_are_free_and_differ() -> None:
    """They lie below the ports that the kernel gives to outgoing connections."""
    chosen = ports.choose(3, random.Random(1))  # noqa: S311 - not a secret
    assert len(set(chosen)) == 3
    assert all(20000 <= port < 30000 for port in chosen)


def test_programs_that_are_missing_are_named_by_package() -> None:
    """Programs that exist are not asked for."""
    assert packages.lacking({"sh": "dash", "no-such-program": "some-package"}) == {"no-such-program": "some-package"}


def test_missing_programs_without_apt_get_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another distribution's user learns what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"programs are missing .*no apt-get.*: no-such-program\.$"):
        packages.ensure({"no-such-program": "p"}, Console(stream=io.StringIO()), tmp_path / "log")


def test_missing_programs_without_root_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ends with the command to type."""
    (tmp_path / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"no-such-program; install them as root with `apt-get install p`"):
        packages.ensure({"no-such-program": "p"}, Console(stream=io.StringIO()), tmp_path / "log")


def test_the_full_cluster_without_root_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what else can be done."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"needs root .* CLUSTER=current"):
        node.prepare(settings.places("n"), Console(stream=io.StringIO()))


def test_a_state_folder_too_deep_for_sockets_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Unix socket's path has at most 107 bytes; the kubelet's own message would not say which folder."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/" + "d" * 60)
    with pytest.raises(ClusterError, match="set XDG_STATE_HOME to a shorter one"):
        node.prepare(settings.places("n"), Console(stream=io.StringIO()))


def test_a_machine_without_go_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is built."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="there is no `go` on PATH"):
        tools.ensure(tools.kubernetes(), tmp_path, Console(stream=io.StringIO()))


def pretend_go(folder: Path, version: str, toolchain: str) -> None:
    """A `go` that says these of itself and does nothing else."""
    said = f'version) echo "go version {version} linux/amd64";; env) echo "{toolchain}";;'
    (folder / "go").write_text(f'#!/bin/sh\ncase "$1" in {said} *) exit 1;; esac\n')
    (folder / "go").chmod(0o755)


@pytest.mark.parametrize(
    ("version", "toolchain", "said"),
    [
        pytest.param("go1.19.8", "", r"is 1\.19\.8: install .*older\), or use", id="Debian 12"),
        pytest.param("go1.9", "", r"is 1\.9: ", id="numbers, not texts"),
        pytest.param("go1.22.2", "local", r"is 1\.22\.2: install .*, set GOTOOLCHAIN=auto .*, or use", id="alone"),
        pytest.param("go1.23.1", "go1.23.1", r"is 1\.23\.1: ", id="another that is too old"),
        pytest.param("go1.21.0", "auto", None, id="fetches a newer one"),
        pytest.param("go1.22.2", "go1.22.2+auto", None, id="or so"),
        pytest.param("go1.23.1", "path", None, id="finds a newer one"),
        pytest.param("go1.24.0", "local", None, id="new enough"),
        pytest.param("go1.24rc1", "local", None, id="nearly released"),
        pytest.param("devel +1a2b3c", "local", None, id="unknown"),
    ],
)
def test_a_go_that_is_too_old_and_fetches_no_newer_one_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, toolchain: str, said: str | None
) -> None:
    """The version found, the one needed, and what to do; not a log of what does not compile."""
    pretend_go(tmp_path, version, toolchain)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    refused = pytest.raises(ClusterError, match=rf"with Go 1\.24 or newer, and .*{said}")
    with contextlib.nullcontext() if said is None else refused:
        go.check_go()


_GO = """#!/bin/sh
test "$1" = build || exit 1
echo x >> "{folder}/calls"
test $(wc -l < "{folder}/calls") -gt {failing} && {{ touch bin/versitygw; exit; }}
echo "read: connection reset by peer" >&2
exit 1
"""


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_build_whose_download_breaks_off_is_done_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: int
) -> None:
    """A network that fails for a moment costs nobody a quarter of an hour of builds beside it; a wrong build ends."""
    program = tmp_path / "bin" / "go"
    program.parent.mkdir()
    program.write_text(_GO.format(folder=tmp_path, failing=failing))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    screen = io.StringIO()
    expected = pytest.raises(ClusterError, match="`go build -v` failed") if failing == 2 else contextlib.nullcontext()
    with expected:
        built = tools.ensure(tools.VERSITYGW, tmp_path / "cache", Console(stream=screen))
        assert (built / "versitygw").exists()
    assert (tmp_path / "calls").read_text() == "x\n" * min(failing + 1, 2)
    assert screen.getvalue().count("Once more") == min(failing, 1)


def test_too_little_disk_is_one_sentence(tmp_path: Path) -> None:
    """A folder that does not exist yet is measured by its parent."""
    space.require(tmp_path / "a" / "b", 0, "build")
    with pytest.raises(ClusterError, match=r"To build, 999999 GiB of free disk are needed at .*/a/b"):
        space.require(tmp_path / "a" / "b", 999999, "build")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.4, "59 s"), (65, "1 min 05 s"), (3600, "60 min 00 s")],
)
def test_durations_read_as_a_person_writes_them(seconds: float, text: str) -> None:
    """Tenths only where they matter."""
    assert duration(seconds) == text


def test_a_step_says_when_it_starts_and_how_long_it_took() -> None:
    """Where there is no terminal each step has lines of its own."""
    now = iter([100.0, 100.0, 112.0])
    stream = io.StringIO()
    console = Console(stream=stream, clock=lambda: next(now, 112.0))
    with console.step("build") as step:
        step.detail("done with it")
    assert stream.getvalue().splitlines()[0] == "   build ..."
    assert stream.getvalue().splitlines()[-1] == "ok build (done with it)  12 s"


def test_a_step_that_fails_is_marked() -> None:
    """The reason is said once, by whoever catches the error."""
    stream = io.StringIO()
    console = Console(stream=stream)
    with pytest.raises(ClusterError), console.step("build"):
        raise ClusterError("It failed.")
    assert stream.getvalue().splitlines()[-1].startswith("!! build  ")


def test_an_error_is_shown_with_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One sentence, the log's path, its last lines; never a stack trace."""
    (tmp_path / "log").write_text("\n".join(f"line {n}" for n in range(50)))

    def fail(*_: object) -> None:
        raise ClusterError("kubelet failed.", log=tmp_path / "log")

    monkeypatch.setattr(status, "describe", fail)
    assert cli.main(["status"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["hack/cluster: kubelet failed.", f"--- the end of {tmp_path}/log:"]
    assert said[2:] == [f"line {n}" for n in range(30, 50)]
    assert tail(tmp_path / "missing") == ""


def test_a_cluster_that_was_never_started_has_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The sentence says how to start it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "Cluster local does not exist: start it with `hack/cluster up`.\n"


def test_nothing_is_purged_under_a_cluster_that_runs_by_another_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The cache holds the programs and the image stores of all clusters; this very process plays the other one's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    other = settings.places("other")
    other.stores.mkdir(parents=True)
    other.run.mkdir(parents=True)
    process = processes.identify(os.getpid())
    assert process is not None
    processes.save(process, lifecycle.supervisor_file(other))
    assert cli.main(["purge"]) == 1
    assert "Cluster other runs: end it first with `hack/cluster down --name other`." in capsys.readouterr().err
    assert other.stores.is_dir()
    lifecycle.supervisor_file(other).unlink()
    assert cli.main(["purge"]) == 0
    assert not other.stores.exists()


@pytest.mark.parametrize("command", ["up", "down", "build"])
def test_with_a_cluster_of_the_users_own_there_is_nothing_to_start_or_end(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """CLUSTER=current changes nothing on this machine."""
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main([command]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["status"], ["gpus", "1"], ["forward", "1", "a/pod/b:1"], ["exec", "true"]])
def test_what_only_the_local_cluster_can_do_is_not_done_to_it_instead_of_the_users_own(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The sentence says what to use."""
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert f"`hack/cluster {command[0]}` is for the local cluster only: use kubectl, or unset CLUSTER." in said


def test_images_for_a_cluster_of_the_users_own_need_a_registry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence gives an example."""
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.delenv("IMAGE_PREFIX", raising=False)
    assert cli.main(["images"]) == 1
    assert "CLUSTER=current needs IMAGE_PREFIX=" in capsys.readouterr().err


def test_an_unknown_image_and_an_unknown_kind_of_cluster_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each sentence lists what there is."""
    assert cli.main(["images", "typo"]) == 1
    choices = "choose from operator, trainer, preflight, test-trainer, prometheus."
    assert f"There is no image 'typo': {choices}" in capsys.readouterr().err
    monkeypatch.setenv("CLUSTER", "typo")
    assert cli.main(["up"]) == 1
    assert "CLUSTER=typo must be `local` (the default) or `current`." in capsys.readouterr().err


def test_the_users_own_cluster_is_that_of_the_users_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    """KUBECONFIG first, then the default file."""
    monkeypatch.setenv("KUBECONFIG", "/k")
    assert client.current().kubeconfig == Path("/k")
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", "/home/me")
    assert client.current().kubeconfig == Path("/home/me/.kube/config")


@pytest.mark.parametrize("text", ["", "1", "1=", "1=a:2", "x=10.0.0.1:2", "1=10.0.0.1:y"])
def test_a_route_that_is_not_port_and_address_is_refused(text: str) -> None:
    """Names are resolved before, where the API server can be asked."""
    with pytest.raises((ValueError, OSError)):
        Route.parse(text)


def test_a_route_is_read_as_it_was_written() -> None:
    """It travels through a command line."""
    route = Route(local_port=9090, host="10.252.0.9", port=80)
    assert Route.parse(str(route)) == route


@pytest.mark.parametrize("target", ["", "x", "ns/service/name", "ns/deployment/name:80", "a/b/c/d:1", "10.0.0.300:1"])
def test_a_target_that_cannot_be_forwarded_to_is_one_sentence(target: str) -> None:
    """The sentence lists the three forms."""
    with pytest.raises(ClusterError, match="must be NAMESPACE/service/NAME:PORT"):
        targets.resolve(target, Api(port=1, ca_file=Path("/dev/null"), token=""))


async def test_a_forwarded_connection_carries_both_directions_and_ends_with_them() -> None:
    """Bytes arrive as they were sent; closing one end closes the other."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()
        await writer.wait_closed()

    target = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = target.sockets[0].getsockname()[1]
    joined = forwarder.joined_to(Route(local_port=0, host="127.0.0.1", port=port))
    listening = await asyncio.start_server(joined, "127.0.0.1", 0)
    async with target, listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"HELLO"
        writer.close()
        await writer.wait_closed()


def test_the_command_needs_nothing_but_the_standard_library() -> None:
    """It runs before any virtual environment exists: -I hides all that pip installed for this Python."""
    code = f"import sys; sys.path.insert(0, {str(HACK_CLUSTER.parent)!r}); import localcluster.cli, localcluster.client"
    done = subprocess.run(["python3", "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_failure_is_explained_by_the_end_of_its_log(tmp_path: Path) -> None:
    """Where there is one."""
    log = tmp_path / "build.log"
    assert ClusterError("it failed", log=log).explained() == "it failed"
    log.write_text("".join(f"line {number}\n" for number in range(30)))
    said = ClusterError("it failed", log=log).explained().splitlines()
    assert said[:3] == ["it failed", f"--- the end of {log}:", "line 10"]
    assert said[-1] == "line 29"
