"""Pods as network namespaces behind a node that routes between them, for policies that are enforced there."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_GATEWAY = {4: "10.77.255.254", 6: "fd77::fffe"}
_PORTS = (53, 443, 8080, 9090, 29400)
# Listens until standard input ends; says so first, since a connection before would be refused.
_LISTEN = """
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    chosen.register(server, selectors.EVENT_READ)
chosen.register(sys.stdin, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in chosen.select():
        if key.fileobj is sys.stdin:
            sys.exit()
        key.fileobj.accept()[0].close()
"""
# Tries to connect to all at once, since what is dropped costs the whole patience: some seconds, in which a first packet
# is sent three times, as on a busy machine the enforcer takes a second for one.
_CONNECT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def reaches(target):
    try:
        socket.create_connection(tuple(target), timeout=6).close()
    except OSError:
        return False
    return True

targets = json.load(sys.stdin)
with ThreadPoolExecutor(len(targets)) as pool:
    json.dump(list(pool.map(reaches, targets)), sys.stdout)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A pod, or something outside of the cluster: its name, its addresses, and for a pod namespace and labels."""

    name: str
    addresses: tuple[str, ...]
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self, node: str) -> dict[str, Any]:
        """The pod as a kubelet reports it."""
        ips = [{"ip": address} for address in self.addresses]
        return {
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": dict(self.labels)},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "podIP": self.addresses[0], "podIPs": ips},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNetwork:
    """A node and its hosts; `prefix` begins the names of their network namespaces."""

    prefix: str

    def reached(self, source: Host, targets: Iterable[tuple[str, int]]) -> list[bool]:
        """Which of these addresses and ports a host can connect to."""
        command = ["ip", "netns", "exec", self._space(source.name), sys.executable, "-c", _CONNECT]
        done = subprocess.run(
            command, input=json.dumps([*targets]), capture_output=True, text=True, check=True, timeout=300
        )
        answers: list[bool] = json.loads(done.stdout)
        return answers

    @contextmanager
    def enforced(self, enforcer: Path, cluster: Mapping[str, Any]) -> Iterator[None]:
        """The policies of a cluster in force on the node; until they are, nothing is let through.

        The rules that hand connections over are iptables', since nftables cannot do so on every kernel that can queue.
        """
        command = ["ip", "netns", "exec", self._space("node"), str(enforcer)]
        for program in ("iptables", "ip6tables"):
            rule = ("FORWARD", "-p", "tcp", "--syn", "-j", "NFQUEUE", "--queue-num", "100")
            _inside(self._space("node"), program, "--wait", "--append", *rule)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdin is not None
            process.stdin.write(json.dumps(cluster))
            process.stdin.close()
            try:
                yield
                assert process.poll() is None
            finally:
                process.kill()

    def add(self, name: str, number: int, addresses: Iterable[str]) -> None:
        """Wire a host to the node, which routes to it."""
        space, node, device = self._space(name), self._space("node"), f"host{number}"
        _ip("-n", node, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", space)
        for where, link in ((node, device), (space, "eth0"), (space, "lo")):
            _ip("-n", where, "link", "set", link, "up")
        for address in addresses:
            family = 6 if ":" in address else 4
            prefix, nodad = (128, ("nodad",)) if family == 6 else (32, ())
            gateway = _GATEWAY[family]
            _ip("-n", node, "address", "replace", f"{gateway}/{prefix}", "dev", device, *nodad)
            _ip("-n", node, f"-{family}", "route", "add", address, "dev", device)
            _ip("-n", space, "address", "add", f"{address}/{prefix}", "dev", "eth0", *nodad)
            _ip("-n", space, f"-{family}", "route", "replace", gateway, "dev", "eth0")
            _ip("-n", space, f"-{family}", "route", "replace", "default", "via", gateway)

    def _space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    @contextmanager
    def listening(self, name: str) -> Iterator[None]:
        """A host that takes connections on all ports of interest."""
        command = ["ip", "netns", "exec", self._space(name), sys.executable, "-c", _LISTEN, *map(str, _PORTS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield
            process.kill()


@contextmanager
def pod_network(hosts: Iterable[Host]) -> Iterator[PodNetwork]:
    """A node with these hosts, each of which listens."""
    network = PodNetwork(prefix=f"chart-{uuid.uuid4().hex[:6]}")
    node = f"{network.prefix}-node"
    with ExitStack() as ending:
        _ip("netns", "add", node)
        ending.callback(_ip, "netns", "delete", node)
        for setting in ("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/accept_dad=0"):
            path, _, value = setting.partition("=")
            _inside(node, "sh", "-c", f"echo {value} > /proc/sys/net/{path}")
        for number, host in enumerate(hosts):
            space = f"{network.prefix}-{host.name}"
            _ip("netns", "add", space)
            ending.callback(_ip, "netns", "delete", space)
            network.add(host.name, number, host.addresses)
            ending.enter_context(network.listening(host.name))
        yield network


def _inside(space: str, *command: str) -> None:
    _ip("netns", "exec", space, *command)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
