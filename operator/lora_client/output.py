"""Printing: as text, JSON, YAML or names; colour on a terminal alone, which obeys nothing that others wrote."""

import enum
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_client.typed import completed
from lora_operator.model.visible import visible

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "bold": 1, "dim": 2}


class Form(enum.StrEnum):
    """What `-o` takes."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def say(text: str, colour: str = "") -> None:
    """A line on standard output, on a terminal in a colour, unless NO_COLOR is set."""
    line = visible(text)
    if colour and is_terminal() and not os.environ.get("NO_COLOR"):
        line = f"\x1b[{_COLOURS[colour]}m{line}\x1b[0m"
    sys.stdout.write(line + "\n")


def put(text: str) -> None:
    """Whole lines on standard output."""
    sys.stdout.write(visible(text))


def put_log(line: bytes) -> None:
    """A line of a log: to a pipe as it is, to a terminal with nothing that it obeys but what redraws a progress bar."""
    if sys.stdout.isatty():
        drawn = line.decode(errors="replace").split("\r")
        line = "\r".join(map(visible, drawn)).encode(sys.stdout.encoding, errors="replace")
    sys.stdout.buffer.write(line)


def note(text: str) -> None:
    """A line on standard error, for what is no part of the answer."""
    sys.stderr.write(visible(completed(text)) + "\n")
    sys.stderr.flush()


def show(
    form: Form, resources: Sequence[Mapping[str, Any]], lines: Iterable[str | tuple[str, str]], *, many: bool = False
) -> None:
    """Print resources in a form, as text these `lines`, some with a colour; `many` is a list even of one."""
    from lora_client.views.resources import TYPE, name_of  # noqa: PLC0415 - a tenth of a second, which help does without

    if form is Form.NAME:
        for resource in resources:
            say(f"{TYPE}/{name_of(resource)}")
    elif form is Form.TEXT:
        for line in lines:
            text, colour = (line, "") if isinstance(line, str) else line
            say(completed(text), colour)
    else:
        kept = [without_managers(resource) for resource in resources]
        data(form, {"apiVersion": "v1", "kind": "List", "items": kept} if many else kept[0])


def data(form: Form, document: object) -> None:
    """Print plain values as JSON or YAML."""
    if form is Form.JSON:
        say(json.dumps(document, indent=2, ensure_ascii=False, default=str))
        return
    from lora_client.yaml_text import yaml_text  # noqa: PLC0415 - twenty milliseconds

    put(yaml_text(document))


def without_managers(resource: Mapping[str, Any]) -> dict[str, Any]:
    """As kubectl prints it: without the record of who wrote which field."""
    metadata = {key: value for key, value in resource["metadata"].items() if key != "managedFields"}
    return {**resource, "metadata": metadata}


def is_terminal() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def draws(letters: str) -> bool:
    """Whether standard output's encoding has all of these letters."""
    try:
        letters.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True
