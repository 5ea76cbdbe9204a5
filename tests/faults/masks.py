"""Taking out of documents what differs from one run to another that is the same: names, uids, times, versions."""

import json
import re
from typing import Any

_MASKS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "UID"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r'"(runSeconds|observedGeneration)": \d+'), r'"\1": 0'),
    (re.compile(r"(RUN-\d+(?:-\d+|-preflight))-[a-z0-9]{5}\b"), r"\1-POD"),
)


def mask(document: Any, name: str) -> Any:
    """The document of the LoRAFineTune by that name without them."""
    text = json.dumps(document, sort_keys=True)
    text = re.sub(rf"\b{name}-[a-z0-9]{{5}}\b", "RUN", text).replace(name, "NAME")
    for pattern, replacement in _MASKS:
        text = pattern.sub(replacement, text)
    return json.loads(text)
