"""Configuration files of the node's components: pure text from places."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from localcluster import pause, settings

if TYPE_CHECKING:
    from pathlib import Path

    from localcluster.settings import Places


def containerd(places: Places, cni_plugins: Path) -> str:
    """containerd's config.toml: images outlive the cluster, everything that runs does not."""
    return f"""\
version = 2
root = "{places.stores}/containerd"
state = "{places.run}/containerd"
[grpc]
  address = "{places.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause.IMAGE}"
  # Without CAP_SYS_RESOURCE a process may not lower its oom_score_adj below its parent's.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."{settings.IMAGE_PREFIX}"]
    endpoint = ["http://127.0.0.1:{settings.REGISTRY_PORT}"]
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_plugins}"
    conf_dir = "{places.run}/cni"
"""


def cni(places: Places) -> str:
    """The pod network: one bridge, addresses from POD_CIDR, every other address by way of the node."""
    bridge = {
        "type": "bridge",
        "bridge": "lk-pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "subnet": settings.POD_CIDR,
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": f"{places.run}/ipam",
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}, indent=2)


def registry(places: Places) -> str:
    return f"""\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: "{places.stores}/registry"}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{settings.REGISTRY_PORT}"}}
"""


def kubelet(places: Places) -> str:
    """A kubelet that shares the machine: its own cgroup, no eviction, cgroup v1 allowed."""
    return f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup(places)}
failSwapOn: false
# How soon a pod sees that a Secret or a ConfigMap changed; controllers that make their own certificates wait for it.
syncFrequency: 5s
failCgroupV1: false
address: {settings.NODE_IP}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{places.pki}/ca.crt"}}
authorization: {{mode: Webhook}}
tlsCertFile: "{places.pki}/kubelet.crt"
tlsPrivateKeyFile: "{places.pki}/kubelet.key"
containerRuntimeEndpoint: "unix://{places.containerd_socket}"
clusterDNS: ["{settings.DNS_IP}"]
clusterDomain: cluster.local
resolvConf: "{places.run}/resolv.conf"
podLogsDir: "{places.logs}/pods"
evictionHard: {{memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
"""


def coredns(places: Places) -> str:
    """Cluster names are answered; every other name does not exist, since nothing outside is reachable."""
    return f"""\
cluster.local:53 in-addr.arpa:53 {{
  bind {settings.NODE_IP}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {places.pki}/coredns.conf
    pods insecure
  }}
  cache 5
}}
.:53 {{
  bind {settings.NODE_IP}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


def cgroup(places: Places) -> str:
    """The cgroup, below the machine's root, in which this cluster's pods run."""
    return f"lora-operator-{places.name}"
