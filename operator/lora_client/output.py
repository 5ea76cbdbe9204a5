"""Printing: as text, JSON, YAML or names; colour on a terminal alone."""

import enum
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_client.typed import completed

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "bold": 1, "dim": 2}


class Form(enum.StrEnum):
    """What `-o` takes."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """A line on standard error, for what is no part of the answer."""
    sys.stderr.write(completed(text) + "\n")
    sys.stderr.flush()


def show(form: Form, resources: Sequence[Mapping[str, Any]], lines: Iterable[str], *, many: bool = False) -> None:
    """Print resources in a form, `lines` as text; `many` is a list even of one."""
    from lora_client.views.resources import TYPE, name_of  # noqa: PLC0415 - a tenth of a second, which help does without

    if form is Form.NAME:
        for resource in resources:
            say(f"{TYPE}/{name_of(resource)}")
    elif form is Form.TEXT:
        for line in lines:
            say(completed(line))
    else:
        kept = [without_managers(resource) for resource in resources]
        data(form, {"apiVersion": "v1", "kind": "List", "items": kept} if many else kept[0])


def data(form: Form, document: object) -> None:
    """Print plain values as JSON or YAML."""
    if form is Form.JSON:
        say(json.dumps(document, indent=2, ensure_ascii=False, default=str))
        return
    from lora_client.yaml_text import yaml_text  # noqa: PLC0415 - twenty milliseconds

    sys.stdout.write(yaml_text(document))


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


def coloured(text: str, colour: str) -> str:
    """The text in a colour on a terminal, unless NO_COLOR is set; plain elsewhere."""
    if not is_terminal() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
