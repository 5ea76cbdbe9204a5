"""The ports that tests give to servers stay free until these listen, and addresses belong to one test alone."""

import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO

import pytest
from tests.ports import claimed, free_address, free_port, own_address, own_ports

from localcluster import ports


def test_no_connection_cluster_or_other_worker_takes_a_port_of_a_worker() -> None:
    """They are below the kernel's own and a cluster's, and apart from each other."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    workers = [own_ports(f"gw{number}") for number in range(9)]
    assert max(map(max, workers)) < min(first, ports._FIRST)
    assert len({port for own in workers for port in own}) == sum(map(len, workers))
    assert own_ports("gw9") == own_ports("gw0") == own_ports("")


def test_a_port_is_given_once_and_none_that_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Until all have been given. What another session has now does not matter here."""
    monkeypatch.setattr("tests.ports._CLAIMS", tmp_path)
    claims: dict[int, TextIO] = {}
    monkeypatch.setattr("tests.ports._CLAIMED", claims)
    own = own_ports(os.environ.get("PYTEST_XDIST_WORKER", ""))
    monkeypatch.setattr("tests.ports.is_free", lambda port: port != own[500])
    assert {free_port() for _ in own[1:]} == {*own} - {own[500]}
    for file in claims.values():
        file.close()


def test_a_port_of_another_session_is_not_given_as_long_as_that_runs() -> None:
    """Two random lives at once began their operators at the same ports, and one could not listen."""
    port = 10_999
    claim = f"from tests.ports import claimed; print(claimed({port}), flush=True); input()"
    command = [sys.executable, "-c", claim]
    paths = os.pathsep.join(sys.path)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not claimed(port)
        other.communicate("\n", timeout=60)
    assert claimed(port)
    assert claimed(port)


def test_no_other_worker_takes_an_address_of_a_worker() -> None:
    """Nor does a worker give one twice, until all have been given; each is the machine's own."""
    of_workers = [{own_address(f"gw{number}", count) for count in range(1000, 1500)} for number in range(9)]
    assert len(set.union(*of_workers)) == 9 * 500
    given = {free_address() for _ in range(1000)}
    assert len(given) == 1000
    assert all(ip_address(address).is_loopback for address in given)
