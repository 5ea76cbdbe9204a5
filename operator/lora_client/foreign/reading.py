"""The options in a text: a YAML or JSON file, or the command line of a script."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from lora_client.errors import ClientError
from lora_client.foreign.by_file import file_of, trains_by_file
from lora_operator.model.wording import printable
from lora_trainer.manifest_file import AliasesError, BoundedLoader

FOREIGN = "a YAML file of Axolotl, LLaMA-Factory or TRL, or one with the command line of a script (not its source)"
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_LIKE_YAML = re.compile(r"^(?:[\w.-]+:(?:\s|$)|\{)", re.MULTILINE)
_OPTION = re.compile(r"--(?![^A-Za-z_])")
_CONTINUED = re.compile(r"[\\^`]\r?\n")
"""A command that goes on in the next line: of a shell, of cmd and of PowerShell."""
_PART = re.compile(
    r"""
    (?P<comment>\#[^\n]*)
    | (?P<line>\n)
    | (?P<operator>\d?[<>] | [|&;])
    | (?P<argument>(?:\$\([^()'"]*\) | \\. | '[^']*' | "(?:\\.|[^"\\])*" | [^\s|&;<>'"\\])+)
    | (?P<unfinished>['"])
    """,
    re.VERBOSE | re.DOTALL,
)
"""Of a shell's script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """The options of a text, and for a command line all of its arguments."""

    options: Mapping[str, Any]
    arguments: Sequence[str] = ()


def read(text: str) -> Read:
    """The options of a YAML or JSON file, or of the command that has the most of them, in a file of its own or not.
    Raises `ClientError`."""
    document, wrong = _document(text)
    # A command on one line that ends in JSON is YAML, too, with most of it as a key.
    if isinstance(document, Mapping) and document and all(_NAME.fullmatch(str(key)) for key in document):
        return Read(options=dict(document))
    commands = [
        Read(options=_options(arguments), arguments=arguments) for arguments in _commands(text.removeprefix("\ufeff"))
    ]
    found = max(commands, key=lambda c: (trains_by_file(c.arguments), len(c.options)), default=Read(options={}))
    if found.options or file_of(found.arguments, found.options):
        return found
    if wrong and _LIKE_YAML.search(text):
        raise ClientError(f"The file cannot be read as YAML{wrong}")
    raise ClientError(f"The file holds no options: name {FOREIGN}")


def _document(text: str) -> tuple[Any, str]:
    """What YAML makes of it, or what is wrong and where."""
    try:
        return yaml.load(text, BoundedLoader), ""  # noqa: S506 - a safe one
    except AliasesError as error:
        raise ClientError(f"The file cannot be read: {error.problem}") from error
    except yaml.MarkedYAMLError as error:
        context, begin, mark = error.context, error.context_mark, error.problem_mark
        doing = f"{context}{f' from line {begin.line + 1}' if begin else ''}, " if context else ""
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return None, f"{where}: {doing}{printable(str(error.problem))}"
    except RecursionError:
        return None, ": its lists and objects are nested too deeply"
    except (yaml.YAMLError, ValueError) as error:
        return None, f": {printable(' '.join(str(error).split()))}"


def _commands(text: str) -> Iterator[Sequence[str]]:
    """The arguments of each command, without their quotes. What comes behind an operator is another command; a new line
    is one unless it begins with an option."""
    arguments: list[str] = []
    ended = ""
    for part in _PART.finditer(_CONTINUED.sub(" ", text)):
        kind = part.lastgroup
        if kind == "unfinished":
            return
        if kind == "argument":
            argument = " ".join(shlex.split(part[0]))
            if ended == "operator" or (ended == "line" and not _OPTION.match(argument)):
                yield arguments
                arguments = []
            ended = ""
            arguments.append(argument)
        elif kind != "comment" and ended != "operator":
            ended = str(kind)
    yield arguments


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    """`--name value`, `--name=value`, `--switch`; several values become a list."""
    given: dict[str, list[Any]] = {}
    name = ""
    for argument in arguments:
        if _OPTION.match(argument):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = [_value(value)] if equals else []
        elif name:
            given[name].append(_value(argument))
    given.pop("", None)
    return {name: values[0] if len(values) == 1 else values or True for name, values in given.items()}


def _value(argument: str) -> Any:
    try:
        return json.loads(argument.lower() if argument in ("True", "False") else argument)
    except ValueError:
        return argument
