"""Values in which each pair of choices occurs: with all combinations of them nothing could be tested."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from allpairspy import AllPairs

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

Row = tuple[int, ...]
"""Of each switch the number of its choice."""

SIZES = [len(choices) for choices in SWITCHES.values()]
ROWS: Sequence[Row] = [tuple(row) for row in AllPairs([range(size) for size in SIZES])]
"""Rows in which every two choices of different switches occur together, the first one of defaults alone."""

RECORDED: Mapping[str, Row] = {
    "defaults": (0,) * len(SIZES),
    "second-choices": (1,) * len(SIZES),
    "last-choices": tuple(size - 1 for size in SIZES),
}
"""The rows whose renderings are kept in tests/golden/chart: each choice is in one of them."""


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
