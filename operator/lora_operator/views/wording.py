"""Foreign text made fit for a status: one line, clipped, without secrets; numbers made fit for a column."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lora_trainer.contract.summary import clip

SENTENCE_LENGTH = 1024

_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_***"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}"), r"\1***"),
    # Not an English word, as in "basic authentication failed".
    (
        re.compile(r"(?i:\b(bearer|basic)\s+)(?![A-Za-z]?[a-z]{7,18}(?![-A-Za-z0-9._~+/=]))[-A-Za-z0-9._~+/]{8,}=*"),
        r"\1 ***",
    ),
    (re.compile(r"(?i)(://)[^/@\s:]+:[^/@\s]+@"), r"\1***@"),
    # Not what container runtimes say: "failed to fetch anonymous token: unexpected status", "https://hub/token: 401".
    (
        re.compile(
            r"(?i)\b([\w-]*(?:token|password|passwd|secret[_-]?(?:access[_-]?)?key|api[_-]?key))([\"']?\s*[=:]\s*[\"']?)"
            r"(?!unexpected status\b|[1-5][0-9]{2} )[^\s,;\"'}]+"
        ),
        r"\1\2***",
    ),
)
_BARE = re.compile(r"[\W_]*")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def sentence(text: str, limit: int = SENTENCE_LENGTH) -> str:
    """The text on one printable line, without anything that looks like a secret, of at most `limit` characters."""
    return clip(masked(printable(text)), limit)


def masked(line: str) -> str:
    """The line without anything that looks like a secret."""
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    return line


def printable(text: str) -> str:
    """The text on one line, without control characters and without halves of surrogate pairs, which JSON may hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def last_line(text: str, limit: int = 300) -> str:
    """The last line of a log that says something: of a Python traceback that is the exception."""
    lines = [line for line in text.splitlines() if not _BARE.fullmatch(line)]
    return sentence(lines[-1], limit) if lines else ""


def instant(moment: datetime) -> str:
    """A time as Kubernetes writes it: UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_instant(value: object) -> datetime | None:
    """Read a time of Kubernetes; None for anything else and for 1970, a CRD's way to say "not yet"."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment if 1970 < moment.year < 3000 else None


def duration(seconds: int) -> str:
    """A duration in its two largest units: 45s, 3m20s, 1h12m, 2d4h."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d{hours_left}h"
    if hours:
        return f"{hours}h{minutes_left}m"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def byte_size(count: int) -> str:
    """A number of bytes in binary units: 512 MiB, 18.7 GiB."""
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit > 2 else f"{amount:.0f} {_UNITS[unit]}"


def decimal(value: float, form: str) -> str:
    """A fraction as a string, as `form` formats it: the API has no floats; it must not depend on a YAML dumper."""
    return clip(format(value, form), 32)


def block_of(status: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A block as it stands in the status; empty where there is none."""
    value = status.get(key)
    return dict(value) if isinstance(value, Mapping) else {}
