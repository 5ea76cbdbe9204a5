"""Values in which each pair of choices occurs: with all combinations of them nothing could be tested."""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import combinations, product
from typing import Any

Values = Mapping[str, Any]

IMAGES = {
    "image": {"repository": "registry.example.com/operator"},
    "trainer": {"image": {"repository": "registry.example.com/trainer"}},
}
PREFIXES = {
    "modelPrefixes": ["hf://acme/", "pvc://models/"],
    "datasetPrefixes": ["pvc://"],
    "outputPrefixes": ["pvc://"],
}
POLICIES = {"enabled": True, "contact": "the platform team", "mostGPUs": 8, "requireQueue": True, **PREFIXES}
NETWORK = {"enabled": True, "apiServerCIDRs": ["10.0.0.1/32", "fd00::1/128"], "prometheusNamespaces": ["monitoring"]}
BLOCKED = ["169.254.169.254/32", "fd00:ec2::254/128", "10.9.0.0/16"]
CHOSEN = {"enabled": True, "additionalLabels": {"release": "prometheus"}}
MONITOR = {**CHOSEN, "interval": "20s"}
RULES = {**CHOSEN, "runbookURL": "https://git.example.com/docs/runbooks", "disabled": ["LoRAFineTuneGPUIdle"]}
RULES |= {"alertLabels": {"team": "ml"}, "severities": {"LoRAFineTuneGPUXid": "critical"}}
DASHBOARDS = {"enabled": True, "annotations": {"grafana_folder": "LoRA"}, "additionalLabels": {"team": "ml"}}
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
IN_A_ZONE = {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]}]}
AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [IN_A_ZONE]}}}
DEFAULTS = {
    "gpuResourceName": "nvidia.com/mig-3g.40gb",
    "nodeSelector": {"pool": "gpus"},
    "tolerations": [GPU_TAINT],
    "affinity": AFFINITY,
    "runtimeClassName": "nvidia",
    "priorityClassName": "batch",
    "queue": "gpus",
    "ttlSecondsAfterFinished": 604800,
    "cpuPerGPU": "8",
    "memoryPerGPU": "24Gi",
    "environment": {"NCCL_DEBUG": "WARN"},
    "checkpointClaim": "lora-checkpoints",
    "cacheClaim": "lora-cache",
}
DIGEST = {"digest": f"sha256:{'a' * 64}"}
PULLED = {
    "imagePullSecrets": [{"name": "registry"}],
    "image": DIGEST,
    "trainer": {"image": DIGEST},
    "preflight": {"image": {"repository": "registry.example.com/preflight", "tag": "small"}},
}
PLACED = {
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "pool", "operator": "Exists"}],
    "affinity": AFFINITY,
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "podLabels": {"team": "ml"},
    "serviceAccount": {"annotations": {"example.com/owner": "ml"}},
    "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "1Gi"}},
    "preflight": {"nodeSelector": {"pool": "cpus"}, "tolerations": [GPU_TAINT]},
}
MOVABLE = {
    "karpenter.sh/do-not-disrupt": "false",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
    "sidecar.istio.io/inject": "false",
}
ASSIGNED = {"runAsUser": None, "runAsGroup": None}
CONFIGURED = {
    "config": {"allowCPU": True, "runMetrics": False, "caBundleConfigMap": "company-ca"},
    "defaults": DEFAULTS,
    "trainer": {"serviceAccountName": "identity", "podAnnotations": MOVABLE},
    "logLevel": "DEBUG",
    "logFormat": "text",
}
EXTRA = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "{{ .Release.Name }}-extra", "namespace": "{{ .Release.Namespace }}"},
}

# The first choice of each is the default.
SWITCHES: Mapping[str, Sequence[Values]] = {
    "crds": ({}, {"crds": {"keep": False}}, {"crds": {"install": False}}),
    "aggregate": ({}, {"rbac": {"aggregate": True}}, {"rbac": {"aggregate": False}}),
    "service": (
        {},
        {"metrics": {"service": {"enabled": False}}},
        {"metrics": {"service": {"annotations": {"example.com/owner": "ml"}}, "serviceMonitor": MONITOR}},
    ),
    "replicas": ({}, {"replicas": 2}),
    "namespaces": ({}, {"watch": {"namespaces": ["team-a", "lora-system"]}}),
    "account": ({}, {"serviceAccount": {"create": False, "name": "given"}}),
    "rbac": ({}, {"rbac": {"create": False}}),
    "podMonitor": ({}, {"metrics": {"podMonitor": MONITOR}}),
    "prometheusRule": ({}, {"metrics": {"prometheusRule": RULES}}),
    "grafanaDashboard": ({}, {"metrics": {"grafanaDashboard": DASHBOARDS}}),
    "networkPolicy": ({}, {"networkPolicy": {**NETWORK, "apiServerPorts": [6443], "blockedCIDRs": BLOCKED}}),
    "policies": ({}, {"policies": POLICIES}),
    "user": ({}, {"securityContext": ASSIGNED, "trainer": {"securityContext": {**ASSIGNED, "fsGroup": None}}}),
    "names": ({}, {"fullnameOverride": "tuner", "nameOverride": "tuning"}),
    "pullSecrets": ({}, PULLED),
    "placement": ({}, PLACED),
    "config": ({}, CONFIGURED),
    "extra": ({}, {"extraObjects": [EXTRA]}),
}

_TRIES = 50
Row = tuple[int, ...]
Pair = tuple[tuple[int, int], tuple[int, int]]


def pairs(sizes: Sequence[int]) -> set[Pair]:
    """Every two choices of different switches, each as the number of its switch and of the choice."""
    return {
        ((one, a), (other, b))
        for one, other in combinations(range(len(sizes)), 2)
        for a, b in product(range(sizes[one]), range(sizes[other]))
    }


def covered(row: Row) -> set[Pair]:
    """The pairs of a row."""
    return set(combinations(enumerate(row), 2))


def pairwise(sizes: Sequence[int]) -> Iterator[Row]:
    """Rows in which every pair occurs, the first one of defaults alone; each is the best of some that are tried."""
    left = pairs(sizes)
    row: Row = (0,) * len(sizes)
    order = random.Random(0)  # noqa: S311 - the same rows each time
    while True:
        yield row
        left -= covered(row)
        if not left:
            return
        tried = [_grown(order, left, sizes) for _ in range(_TRIES)]
        row = max(tried, key=lambda new: len(left & covered(new)))


def _grown(order: random.Random, left: set[Pair], sizes: Sequence[int]) -> Row:
    """A row with a missing pair and then, switch by switch, the choice that adds most of what is missing."""
    chosen = dict(order.choice(sorted(left)))
    others = [switch for switch in range(len(sizes)) if switch not in chosen]
    order.shuffle(others)
    for switch in others:
        chosen[switch] = max(range(sizes[switch]), key=lambda choice: _gain(left, chosen, (switch, choice)))
    return tuple(chosen[switch] for switch in range(len(sizes)))


def _gain(left: set[Pair], chosen: Mapping[int, int], new: tuple[int, int]) -> int:
    return sum((min(new, other), max(new, other)) in left for other in chosen.items())


def fewest(rows: Sequence[Row]) -> list[Row]:
    """The first of these rows, some of the others in which each choice occurs, and the first again."""
    kept = [rows[0]]
    left = {choice for row in rows for choice in enumerate(row)} - set(enumerate(rows[0]))
    while left:
        kept.append(max(rows, key=lambda row: len(left & set(enumerate(row)))))
        left -= set(enumerate(kept[-1]))
    return [*kept, rows[0]]


SIZES = [len(choices) for choices in SWITCHES.values()]
ROWS = list(pairwise(SIZES))


def merged(base: Values, change: Values) -> dict[str, Any]:
    """Values as Helm merges them: maps key by key, anything else replaced."""
    result = dict(base)
    for key, value in change.items():
        before = result.get(key)
        nested = isinstance(value, dict) and isinstance(before, dict)
        result[key] = merged(before, value) if nested and isinstance(before, dict) else value
    return result


def values_of(row: Row) -> dict[str, Any]:
    """The values of a row."""
    chosen = (choices[number] for choices, number in zip(SWITCHES.values(), row, strict=True))
    return reduce(merged, chosen, {})
