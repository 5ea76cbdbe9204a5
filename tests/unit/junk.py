"""Strategies for odd input: any JSON, and valid objects in which something was replaced by any JSON."""

import copy
from typing import Any

from hypothesis import strategies as st

_WORDS = [
    "",
    "true",
    "False",
    "Unknown",
    "9999-12-31T23:59:59-23:00",
    "1970-01-01T00:00:00Z",
    "hf://a/b",
    "x" * 5000,
    "9" * 5000,
    "a-" * 20_000,
    "image pull secrets (" * 3000,
    'User "' * 3000,
    "é\n",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(_WORDS)
    | st.text(max_size=6)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FREE_TEXT = {"message", "reason", "note"}
_CHECKED_BY_THE_SERVER = {"name", "uid", "namespace", "kind", "labels", "resourceVersion"}
EVIL = ["x" * 2**20, "a-" * 2**19, "9" * 2**20, "image pull secrets (" * 2**15, "\ud800\x1b[31m\n" * 2**16]


@st.composite
def damaged(draw: st.DrawFn, obj: dict[str, Any]) -> dict[str, Any]:
    """A copy of `obj` in which up to four values, wherever they are, became any JSON, or are gone."""
    result = copy.deepcopy(obj)
    for _ in range(draw(st.integers(0, 4))):
        holder: Any = result
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 4)):
                holder = holder[key]
                continue
            if draw(st.booleans()):
                holder[key] = draw(JSON)
            else:
                del holder[key]
            break
    return result


def hostile(document: Any, text: str, keys: set[str] | None, key: str = "") -> Any:
    """A copy whose strings are `text`, of these keys alone if any are given, with numbers and lists without measure."""
    if key in _CHECKED_BY_THE_SERVER:
        return document
    if isinstance(document, dict):
        return {name: hostile(value, text, keys, name) for name, value in document.items()}
    if isinstance(document, list):
        return [hostile(item, text, keys, key) for item in document] * 10_000
    if isinstance(document, str):
        return text if keys is None or key in keys else document
    if isinstance(document, int) and not isinstance(document, bool):
        return 2**80 if keys is None else document
    return document
