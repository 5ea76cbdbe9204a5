"""What Prometheus's relabelling leaves of a target. See
https://prometheus.io/docs/prometheus/latest/configuration/configuration/#relabel_config.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from monitoring.discovery import Labels


def relabelled(labels: Mapping[str, str], rules: Iterable[Mapping[str, Any]]) -> Labels | None:
    """What is left of a target's labels; None for one that is dropped."""
    left = dict(labels)
    for rule in rules:
        action, pattern = rule.get("action", "replace"), re.compile(str(rule.get("regex", "(.*)")))
        replacement = re.sub(r"\$\{?(\d)\}?", r"\\\1", str(rule.get("replacement", "$1")))
        if action in ("labelmap", "labeldrop"):
            matches = [(name, match) for name in left if (match := pattern.fullmatch(name))]
            for name, match in matches:
                if action == "labeldrop":
                    del left[name]
                else:
                    left[match.expand(replacement)] = left[name]
            continue
        found = pattern.fullmatch(";".join(left.get(name, "") for name in rule.get("source_labels", ())))
        if action == "replace" and found:
            left[rule["target_label"]] = found.expand(replacement)
        if (action == "keep" and not found) or (action == "drop" and found):
            return None
    return {name: value for name, value in left.items() if not name.startswith("__") and value}
