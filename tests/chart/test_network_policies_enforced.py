"""The chart's network policies, enforced by the reference implementation on connections between network namespaces."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.chart.objects import Render, only
from tests.chart.pod_network import Host, pod_network
from tests.component.patience import eventually

from localcluster import settings, tools
from localcluster.console import Console
from lora_operator.model.names import PREFLIGHT, child_labels

NETWORK = {"enabled": True, "apiServerCIDRs": ["10.0.0.1/32", "fd00::1/128"], "prometheusNamespaces": ["monitoring"]}
LISTED = ["team-a", "team-b"]
NODE = "node"
RUN = child_labels("tone", "0f8fad5b", 1)
OPERATOR = {
    "app.kubernetes.io/name": "lora-operator",
    "app.kubernetes.io/instance": "lora",
    "app.kubernetes.io/component": "operator",
}


def pod(name: str, number: int, namespace: str, labels: Mapping[str, str] | None = None) -> Host:
    addresses = (f"10.77.0.{number}", f"fd77::{number}")
    return Host(name=name, addresses=addresses, namespace=namespace, labels=labels or {"app": name})


PODS = (
    pod("operator", 1, "lora-system", OPERATOR),
    pod("test", 2, "lora-system", {**OPERATOR, "app.kubernetes.io/component": "test"}),
    pod("neighbour", 3, "lora-system"),
    pod("prometheus", 4, "monitoring"),
    pod("trainer", 5, "team-a", RUN),
    pod("peer", 6, "team-a", RUN),
    pod("preflight", 7, "team-a", child_labels("tone", "0f8fad5b", 1, PREFLIGHT)),
    pod("stranger", 8, "team-a"),
    pod("elsewhere", 9, "team-b", RUN),
    pod("dns", 10, "kube-system"),
)
OUTSIDE = (
    Host(name="server", addresses=("10.0.0.1", "fd00::1")),
    Host(name="metadata", addresses=("169.254.169.254", "fd00:ec2::254")),
    Host(name="google", addresses=("fd20:ce::254",)),
    Host(name="azure", addresses=("168.63.129.16",)),
    Host(name="alibaba", addresses=("100.100.100.200",)),
    Host(name="internet", addresses=("203.0.113.1", "2001:db8::1")),
)
HOSTS = {host.name: host for host in (*PODS, *OUTSIDE)}

# From whom to whom at which port; whatever is not here of what is tried must not be reached.
ALLOWED = {
    ("operator", "server", 443),
    ("operator", "dns", 53),
    *(("operator", trainer, 9090) for trainer in ("trainer", "peer", "preflight", "elsewhere")),
    ("test", "server", 443),
    ("test", "dns", 53),
    ("prometheus", "operator", 8080),
    *(("prometheus", trainer, 9090) for trainer in ("trainer", "elsewhere")),
    *(("trainer", peer, port) for peer in ("peer", "preflight") for port in (9090, 29400)),
    *(
        (trainer, place, port)
        for trainer in ("trainer", "preflight")
        for place, port in (("internet", 443), ("dns", 53), ("metadata", 53), ("azure", 53))
    ),
    *((trainer, "server", 443) for trainer in ("trainer", "preflight")),
    ("trainer", "stranger", 8080),
}
TRIED = {
    *ALLOWED,
    ("operator", "server", 8080),
    ("operator", "internet", 443),
    ("operator", "metadata", 443),
    ("operator", "trainer", 29400),
    ("operator", "stranger", 9090),
    ("operator", "prometheus", 9090),
    ("test", "operator", 8080),
    ("test", "trainer", 9090),
    ("test", "internet", 443),
    ("neighbour", "operator", 8080),
    ("neighbour", "trainer", 9090),
    ("prometheus", "operator", 443),
    ("prometheus", "trainer", 29400),
    ("trainer", "operator", 8080),
    ("stranger", "operator", 8080),
    ("stranger", "trainer", 9090),
    ("stranger", "trainer", 29400),
    ("elsewhere", "trainer", 29400),
    ("trainer", "elsewhere", 9090),
    *(
        (trainer, place, 443)
        for trainer in ("trainer", "preflight")
        for place in ("metadata", "google", "azure", "alibaba")
    ),
}


def test_who_reaches_whom_is_what_the_page_on_installing_says(render: Render) -> None:
    """Each pair in IPv4 and in IPv6, with the labels that operator and Jobs really have."""
    assert os.geteuid() == 0, "network namespaces need root"
    assert Path("/proc/net/netfilter/nfnetlink_queue").exists(), "policies need a kernel with queues of packets"
    objects = render(networkPolicy=NETWORK, watch={"namespaces": LISTED})
    assert OPERATOR.items() <= only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    cluster = {
        "node": NODE,
        "namespaces": [
            {"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}
            for name in sorted({pod.namespace for pod in PODS})
        ],
        "pods": [pod.manifest(NODE) for pod in PODS],
        "policies": [o for o in objects if o["kind"] == "NetworkPolicy"],
    }
    enforcer = tools.ensure(tools.ENFORCER, settings.cache_directory(), Console()) / tools.ENFORCER.commands[0]
    assert connections(enforcer, cluster) == {
        (*way, family): way in ALLOWED for way in TRIED for family in families(way)
    }


def families(way: tuple[str, str, int]) -> range:
    """Numbers of the addresses of a target."""
    return range(len(HOSTS[way[1]].addresses))


def connections(enforcer: Path, cluster: Mapping[str, Any]) -> dict[tuple[str, str, int, int], bool]:
    """Whether each connection that is tried is made, by source, target, port and number of the target's address."""
    ways = sorted((*way, family) for way in TRIED for family in families(way))
    with pod_network(HOSTS.values()) as network, network.enforced(enforcer, cluster):
        server = (HOSTS["server"].addresses[0], 443)
        eventually(lambda: network.reached(HOSTS["operator"], [server]) == [True], "the policies are in force")

        def reached(source: str) -> list[bool]:
            targets = [(HOSTS[way[1]].addresses[way[3]], way[2]) for way in ways if way[0] == source]
            return network.reached(HOSTS[source], targets)

        sources = sorted({way[0] for way in ways})
        with ThreadPoolExecutor(len(sources)) as pool:
            answers = [answer for some in pool.map(reached, sources) for answer in some]
    return dict(zip(ways, answers, strict=True))
