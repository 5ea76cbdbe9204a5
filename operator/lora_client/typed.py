"""Commands that messages name, completed: typed as they are printed, they mean the same run of the same cluster."""

import re
import shlex
from collections.abc import Callable

_COMMAND = re.compile(
    r"\blora (?:list|compare [^\s,;:)]+ [^\s,;:)]+|(?:run|validate) -f (?:'[^']*'|[^\s,;:)]+)"
    r"|(?:status|explain|watch|suspend|resume|logs|clone|pull|ask|serve) [^\s,;:)]+)( -A\b| -n [^\s,;:)]+)?"
)


def _none() -> tuple[str, str]:
    return "", ""


_flags: Callable[[], tuple[str, str]] = _none


def forget() -> None:
    """Before a command has connected: there is nothing to add."""
    remember(_none)


def remember(flags: Callable[[], tuple[str, str]]) -> None:
    """From now on commands get these flags: the namespace, empty for the context's own, and the context, empty for the
    current one. They are asked for when a message is printed: a file may name its namespace."""
    global _flags  # noqa: PLW0603 - a process has one command line
    _flags = flags


def completed(text: str) -> str:
    """The text with both flags behind the name or the file of each command; one that has a namespace keeps it."""
    namespace, context = _flags()
    if not namespace and not context:
        return text
    ending = f" --context {shlex.quote(context)}" if context else ""

    def with_flags(match: re.Match[str]) -> str:
        where = "" if match[1] or not namespace else f" -n {shlex.quote(namespace)}"
        return f"{match[0]}{where}{ending}"

    return _COMMAND.sub(with_flags, text)
