"""Values that somebody wrote, as sentences have them."""

import reprlib


def shown(value: object) -> str:
    """A value in a sentence, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else reprlib.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
