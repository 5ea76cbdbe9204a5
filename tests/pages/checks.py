"""Whether a command line that a page shows is one that its program takes: by the program's own parser, wherever it has
one in this project. Nothing is executed."""

import argparse
import contextlib
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import typer
from tests.pages.blocks import REPOSITORY
from tests.pages.typed import GIVEN, Call
from typer.main import get_command

from docgen.schema import load, walk
from localcluster.cli import _parser as hack_cluster_parser
from lora_client.commands import app
from lora_operator.__main__ import _parser as operator_parser
from lora_operator.controller.logs import FIELDS
from lora_trainer.commands import _parser as trainer_parser

Check = Callable[[Sequence[str]], str | None]
"""Of a program's arguments; what is wrong with them, or None."""
_FIELD_OF_A_RUN = re.compile(r"(?<![\w\]])\.((?:spec|status)(?:\.\w+)+)")
_DEFINITION = load(REPOSITORY / "crds/lorafinetunes.yaml")
_FIELD_OF_THE_LOG = re.compile(r"(?<![\w\]])\.([a-zA-Z]+)")


def fault(call: Call) -> str | None:
    """What is wrong with a call, with the call; None where it is good."""
    if call.program == "kubectl" and call.arguments[:1] == ("lora",):
        call = Call(program="lora", arguments=call.arguments[1:])
    wrong = _CHECKS[call.program](call.arguments)
    return f"{call.program} {' '.join(call.arguments)}: {wrong}" if wrong else None


def lora(arguments: Sequence[str]) -> str | None:
    """The client's verb and its options."""
    group: Any = get_command(app)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            group.make_context("lora", list(arguments), resilient_parsing=False) as context,
        ):
            if not arguments or arguments[0].startswith("-"):
                return None
            name, command, rest = group.resolve_command(context, list(arguments))
            command.make_context(name, rest, parent=context)
    except typer.Exit:
        return None
    except typer.TyperException as error:
        return str(error.format_message())
    return None


def by(make: Callable[[], argparse.ArgumentParser]) -> Check:
    """A program with a parser of the standard library."""

    def check(arguments: Sequence[str]) -> str | None:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                make().parse_args(arguments)
        except SystemExit as end:
            return said.getvalue().strip() if end.code else None
        return None

    return check


def make(arguments: Sequence[str]) -> str | None:
    """Targets that there are."""
    targets = re.findall(r"^([a-z][\w-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    wrong = [each for each in arguments if each not in targets and not re.fullmatch(r"[A-Z_]+=\S+", each)]
    return f"no target {wrong[0]}" if wrong else None


def python(arguments: Sequence[str]) -> str | None:
    """A script of the repository or a module of hack/, with flags that its source names."""
    if not arguments:
        return "no script"
    if arguments[:2] == ("-m", "pytest"):
        return next((f"no file {each}" for each in arguments if "/" in each and not (REPOSITORY / each).exists()), None)
    if arguments[0] == "-m":
        path, rest = REPOSITORY / "hack" / f"{arguments[1].replace('.', '/')}.py", arguments[2:]
    else:
        path, rest = REPOSITORY / arguments[0], arguments[1:]
    return source(path.relative_to(REPOSITORY).as_posix())(rest) if path.is_file() else f"no file {path}"


def source(path: str) -> Check:
    """A program that makes its parser as it runs: its flags are named in its source."""

    def check(arguments: Sequence[str]) -> str | None:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        flags = [each.partition("=")[0] for each in arguments if each.startswith("-")]
        return next((f"{path} names no {flag}" for flag in flags if f'"{flag}"' not in text), None)

    return check


def docker(arguments: Sequence[str]) -> str | None:
    """Builds of the Dockerfiles, with stages and arguments that they have; pushes of what they make."""
    parser = argparse.ArgumentParser(prog="docker", exit_on_error=False)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", exit_on_error=False)
    build.add_argument("-t", "--tag", required=True)
    build.add_argument("-f", "--file", default="Dockerfile")
    build.add_argument("--target")
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("context", choices=["."])
    commands.add_parser("push", exit_on_error=False).add_argument("tag")
    wrong = by(lambda: parser)(arguments)
    options = parser.parse_args(arguments) if wrong is None else argparse.Namespace(command="")
    if options.command != "build":
        return wrong
    file = REPOSITORY / options.file
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    wanted = [f"ARG {each.partition('=')[0]}=" for each in options.build_arg]
    wanted += [f" AS {options.target}\n"] if options.target else []
    files = [value for each in options.build_arg if (value := each.partition("=")[2]).startswith("requirements/")]
    lacking = [each for each in wanted if each not in text] + [f for f in files if not (REPOSITORY / f).is_file()]
    return f"{options.file} has no {lacking[0].strip()}" if not text or lacking else None


def environment(arguments: Sequence[str]) -> str | None:
    """A virtual environment for what pip installs."""
    return None if arguments[:2] == ("-m", "venv") and len(arguments) == 3 else "not `python3 -m venv FOLDER`"


def pip(arguments: Sequence[str]) -> str | None:
    """This project with extras that it has."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    match = re.fullmatch(r"\.\[(\w+)\]", arguments[1]) if len(arguments) == 2 else None
    good = arguments[0] == "install" and match and match[1] in extras
    return None if good else "no `pip install` of this project with an extra of it"


def jq(arguments: Sequence[str]) -> str | None:
    """Questions to the operator's log, for fields that it has."""
    *flags, query = arguments
    unknown = set(_FIELD_OF_THE_LOG.findall(query)) - {*FIELDS, "time", "message", "level"}
    good = all(re.fullmatch("-[rcs]+", flag) for flag in flags)
    return f"the log has no field {min(unknown)}" if unknown else None if good else "flags that nobody has looked at"


def kubectl(arguments: Sequence[str]) -> str | None:
    """Fields of runs that there are; tests/component/test_pages.py has kubectl itself parse the line."""
    if not any(re.match(r"(lft|lorafinetunes?)(/|$)", each) for each in arguments):
        return None
    asked = {path for each in arguments for path in _FIELD_OF_A_RUN.findall(each)}
    for flag, value in pairwise(arguments):
        asked |= set(_paths(json.loads(value))) if flag in ("-p", "--patch") else set()
    unknown = asked - {field.path for field in walk(_DEFINITION.root)}
    return f"the definition has no {min(unknown)}" if unknown else None


def _paths(document: Any, at: str = "") -> Iterator[str]:
    for key, value in document.items():
        yield f"{at}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{at}{key}.")


def elsewhere(_arguments: Sequence[str]) -> None:
    """tests/chart/test_page_commands.py has helm and the chart read them."""


_CHECKS: Mapping[str, Check] = {
    "docker": docker,
    "hack/cluster": by(hack_cluster_parser),
    "hack/dashboard-picture": source("hack/dashboard-picture"),
    "helm": elsewhere,
    "jq": jq,
    "kubectl": kubectl,
    "lora": lora,
    "lora-operator": by(operator_parser),
    "lora-trainer": by(trainer_parser),
    ".venv/bin/lora-trainer": by(trainer_parser),
    "make": make,
    "pip": pip,
    "python": python,
    "python3": environment,
    ".venv/bin/python": python,
}


def missing_files(call: Call) -> Iterator[str]:
    """Files that a call reads by `-f` and that neither the repository has nor the page lets its reader have."""
    for flag, value in pairwise(call.arguments):
        reads = flag in ("-f", "--file", "--filename") and value != "-" and call.arguments[:1] != ("init",)
        if reads and value not in GIVEN and not (REPOSITORY / value).exists():
            yield f"{call.program} {' '.join(call.arguments)}: no file {value}"
