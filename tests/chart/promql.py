"""What a query reads: names of series, and the labels that it asks of each.

Not a parser of PromQL, which promtool has; it finds names in queries that promtool has accepted.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from docgen.metrics_reference import operator_series, trainer_series

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|\[[^\]]*\]|[a-zA-Z_:][\w:]*|[\d.]\w*|[=!]~|!=|\S')
_NAME = re.compile(r"[a-zA-Z_:][\w:]*$")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "Inf", "NaN"})
_LISTS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_MADE = re.compile(r'"(\w+)",\s*"\$1",\s*"(\w+)"')

_SCRAPED = ("job", "instance", "pod", "container", "endpoint")
_OF_PODS = ("namespace", "name", "uid", "attempt", "role", "completion_index")
_DCGM = ("Hostname", "UUID", "gpu", "device", "modelName", "exported_namespace", "exported_pod", "namespace", "pod")
OTHERS: Mapping[str, tuple[str, ...]] = {
    # NVIDIA's dcgm-exporter: etc/dcp-metrics-included.csv names them, its mapping to pods the last four labels.
    **{f"DCGM_FI_DEV_{name}": _DCGM for name in ("GPU_UTIL", "FB_USED", "FB_FREE", "XID_ERRORS")},
    # The kubelet's cAdvisor, scraped with honorLabels.
    "container_memory_rss": ("namespace", "pod", "container"),
    "container_spec_memory_limit_bytes": ("namespace", "pod", "container"),
    # kube-state-metrics, scraped with honorLabels as kube-prometheus-stack does.
    "kube_pod_container_resource_limits": ("namespace", "pod", "container", "node", "resource", "unit"),
    "ALERTS": ("alertname", "alertstate", "severity", "namespace", "name"),
}
"""Series of others, with the labels that we rely on."""
DROPPED = re.compile(
    r"container_(cpu_(cfs_throttled_seconds_total|load_average_10s|system_seconds_total|user_seconds_total)|fs_.+"
    r"|memory_(mapped_file|swap|failures_total)|file_descriptors|tasks_state|threads_max|spec.*)"
)
"""What kube-prometheus-stack drops of cAdvisor's by default (kubelet.serviceMonitor.cAdvisorMetricRelabelings), and a
little more: of the file systems and of the failures it drops some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What one query reads. `selectors`: a series' name, and the labels that are matched on it; `lists`: labels that
    are grouped or joined by, and `made` those that it makes itself."""

    selectors: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    lists: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)


def known_series() -> dict[str, tuple[str, ...]]:
    """The labels of every series that there is, those of its target included."""
    own = {name: (*labels, "namespace", *_SCRAPED) for name, labels in operator_series().items()}
    trainer = {name: (*labels, *_OF_PODS, *_SCRAPED) for name, labels in trainer_series().items()}
    return {**own, **trainer, **OTHERS}


def read(query: str) -> Reads:
    """What the query reads."""
    tokens = _TOKEN.findall(re.sub(r"#.*", "", query))
    found = Reads(made={made for made, _ in _MADE.findall(query)})
    position = 0
    while position < len(tokens):
        token, follower = tokens[position], tokens[position + 1 : position + 2]
        position += 1
        if token in _LISTS and follower == ["("]:
            end = tokens.index(")", position)
            found.lists.update(filter(_NAME.match, tokens[position:end]))
            position = end
        elif _NAME.match(token) and token not in _WORDS | _LISTS and follower not in (["("], ["by"], ["without"]):
            end = tokens.index("}", position) if follower == ["{"] else position
            matched = [tokens[at - 1] for at in range(position, end) if tokens[at] in ("=", "!=", "=~", "!~")]
            found.selectors.append((token, tuple(matched)))
            position = max(position, end)
    return found


def faults(query: str, known: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """What the query asks for and nothing has, in words."""
    reads = read(query)
    labels: set[str] = set(reads.made)
    for name, matched in reads.selectors:
        if name not in known:
            yield f"no metric {name}"
            continue
        labels |= set(known[name])
        yield from (f"{name} has no label {label}" for label in matched if label not in known[name])
    yield from (f"nothing there has a label {label}" for label in sorted(reads.lists - labels))
