"""Foreign text made fit for a status: one line, clipped, without secrets; numbers made fit for a column.

And what stands in a status, whoever wrote it: of another type than was expected it reads as absent.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from lora_trainer.spec.summary import clip

SENTENCE_LENGTH = 1024

# Also behind an escape of JSON, whose last letter would be taken for one of the word: "\nhf_...".
_BEGIN = r"(?:\b|(?<=\\[bfnrt])|(?<=\\u[0-9a-fA-F]{4}))"
# Each is linear in the length of a line: none begins with a run of letters that could begin anywhere in that run.
_SECRETS = (
    (re.compile(_BEGIN + r"(hf_|gh[opsur]_|github_pat_)\w{8,}"), r"\1***"),
    (re.compile(_BEGIN + r"(glpat-|xox[abeoprs]-)(?=[-\w]{0,40}[0-9])(?=[-\w]{0,40}[A-Z])[-\w]{10,}"), r"\1***"),
    (re.compile(_BEGIN + r"(sk-)(?=[-\w]{0,80}[0-9])(?=[-\w]{0,80}[A-Z])[-\w]{16,}"), r"\1***"),
    (re.compile(_BEGIN + r"(AKIA|ASIA)[A-Z0-9]{12,}"), r"\1***"),
    # JSON in base64, such as a Docker configuration and a JSON web token.
    (re.compile(_BEGIN + r"eyJ[-\w+/]{8,}[-\w+/.=]*"), "***"),
    (re.compile(r"(?i)(\bauth\\?[\"']\s*:\s*\\?[\"'])[^\s\"'\\]+"), r"\1***"),
    # URLs that are signed: S3's two ways, Google's and Azure's; in other URLs, in Go's JSON, in a header.
    (
        re.compile(
            r"(?i)((?:\b|%26|%3F|\\u0026|\\u003f)X-(?:Amz|Goog)-(?:Signature|Credential)"
            r"(?:%3D|\\u003d|\\?[\"']?\s*[:=]\s*\\?[\"']?)"
            r"|(?:[?&;]|%3F|%26|\\u0026|\\u003f)(?:Signature|sig)(?:=|%3D|\\u003d)"
            r"|,\s*Signature=(?=[0-9a-f]{16}))[^\s&\"'\\]+"
        ),
        r"\1***",
    ),
    # Not an English word, as in "basic authentication failed".
    (
        re.compile(
            r"(?i:\b(bearer|basic|authorization\W{1,8}token)\s+)(?![A-Za-z]?[a-z]{7,18}(?![-A-Za-z0-9._~+/=]))[-A-Za-z0-9._~+/]{8,}=*"
        ),
        r"\1 ***",
    ),
    # Also a user alone, which may be a token, and a password with @ or / in it, which should have been encoded; not a
    # port and a path, or the digest of an image.
    (
        re.compile(
            r"(://)(?:[^\s/:@\[\"'\\]{1,64}:(?![0-9]{1,5}(?:[/?,;)#\s]|$))[^\s\"'\\]{1,128}|[^\s/?\"'\\]+)"
            r"@(?!sha256:)"
        ),
        r"\1***@",
    ),
    (re.compile(r"(?i)(secret[_-]?access[_-]?key\s+)(?=\S*[0-9])[^\s,;\"'}]{8,}"), r"\1***"),
    # Not what container runtimes say: "failed to fetch anonymous token: unexpected status", "https://hub/token: 401".
    (
        re.compile(
            r"(?i)((?:token|password|passwd|secret[_-]?(?:access[_-]?)?key|api[_-]?key)\\?[\"']?\s*[=:]\s*\\?[\"']?)"
            r"(?!unexpected status\b|[1-5][0-9]{2} )[^\s,;\"'}]+"
        ),
        r"\1***",
    ),
)
# As the API server quotes a webhook; the code and the reason beside it are the webhook's own choice.
_DENIAL = 'admission webhook "'
UNANSWERED = "no answer came, though reads are answered, so an admission webhook may hang"
"""What a write is refused with that the API server does not answer."""
_READ_LIMITS = 8
_LONGEST_NUMBER = 32
_LONGEST_INSTANT = 40
_BARE = re.compile(r"[\W_]*")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def sentence(text: str, limit: int = SENTENCE_LENGTH) -> str:
    """The text on one printable line, without anything that looks like a secret, of at most `limit` characters.

    Of a text as long as a server takes, only the first few `limit` characters are read.
    """
    begin = text.lstrip()[: _READ_LIMITS * limit]
    return _sentence(begin, limit, is_cut=len(begin) < len(text.strip()))


@lru_cache(maxsize=2048)  # a run has at most 512 pods that are looked at, with two texts each, and again and again
def _sentence(begin: str, limit: int, *, is_cut: bool) -> str:
    line = masked(printable(begin))
    if len(line) < limit and is_cut:
        line = (
            f"{line.rpartition(' ')[0]} …"  # what was cut may be a secret, of which too little is left to look like one
        )
    return clip(line, limit)


def masked(line: str) -> str:
    """The line without anything that looks like a secret."""
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    return line


def is_of_webhook(text: str) -> bool:
    """Whether an answer of the API server is that of an admission webhook which denied the request."""
    return text.startswith(_DENIAL)


def printable(text: str) -> str:
    """The text on one line, without control characters and without halves of surrogate pairs, which JSON may hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def last_line(text: str, limit: int = 300) -> str:
    """The last line of a log that says something: of a Python traceback that is the exception."""
    end = text.rstrip()[-_READ_LIMITS * SENTENCE_LENGTH :]
    if len(end) < len(text.strip()):
        end = end.partition("\n")[2] or end.partition(" ")[2]
    line = next((line for line in reversed(end.splitlines()) if not _BARE.fullmatch(line)), "")
    return sentence(line, limit)


def instant(moment: datetime) -> str:
    """A time as Kubernetes writes it: UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_instant(value: object) -> datetime | None:
    """Read a time of Kubernetes; None for anything else and for 1970, a CRD's way to say "not yet"."""
    return _parsed(value) if isinstance(value, str) and len(value) <= _LONGEST_INSTANT else None


# The end of a run is a time in a dozen places of its objects.
@lru_cache(maxsize=4096)
def _parsed(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
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
    """A fraction as a string, as `form` formats it, but without an exponent wherever that fits: the API has no floats;
    it must not depend on a YAML dumper."""
    text = format(value, form)
    plain = format(Decimal(text), "f") if "e" in text else text
    return plain if len(plain) <= _LONGEST_NUMBER else clip(text, _LONGEST_NUMBER)


def block_of(status: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A block as it stands in the status; empty where there is none."""
    value = status.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


def maps_of(value: object) -> list[Mapping[str, Any]]:
    """The entries of a list that are maps."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def text_of(value: object) -> str:
    """A text; empty for anything else."""
    return value if isinstance(value, str) else ""


def advice_lines(advice: object, said: str = "") -> list[str]:
    """The advice of a status as lines: severity, what to do and, in brackets, what was seen, unless that stands in the
    line or in `said` already."""
    found = []
    for entry in maps_of(advice):
        message, evidence = text_of(entry.get("message")), text_of(entry.get("evidence"))
        seen = "" if not evidence or evidence in message or evidence in said else f" ({evidence})"
        if message:
            found.append(f"{text_of(entry.get('severity')) or 'Info'}: {message}{seen}")
    return found


def integer_of(value: object) -> int | None:
    """A whole number; None for anything else, such as a truth value."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
