"""Text of others made fit for a terminal, which takes some characters for instructions."""

import re

_CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")
"""Controls but line ends and tabs, what reverses the order of letters, and halves of surrogate pairs."""


def visible(text: str) -> str:
    """The text with escapes of JSON and YAML in the place of what a terminal would obey: text of either form remains
    valid."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
