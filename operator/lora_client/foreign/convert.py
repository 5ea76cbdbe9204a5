"""A file of another tool to a LoRAFineTune."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lora_client.errors import ClientError
from lora_client.foreign import mapping
from lora_client.foreign.mapping import Conversion
from lora_client.foreign.tools import TOOLS, recognised, rest
from lora_client.yaml_text import yaml_text
from lora_operator.views.wording import printable
from lora_trainer.contract.manifest import KIND
from lora_trainer.manifest_file import AliasesError, BoundedLoader

FOREIGN = "a YAML file of Axolotl, LLaMA-Factory or TRL, or one with the command line of a script"
_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """The manifest; pairs of option and field; options without a field with the reason; what has to be filled in.

    All but the manifest is text of one line.
    """

    tool: str
    manifest: Mapping[str, Any]
    mapped: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str, str], ...]
    to_fill: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tool": self.tool,
            "manifest": self.manifest,
            "mapped": [{"option": option, "field": field} for option, field in self.mapped],
            "left": [{"option": name, "value": value, "why": why} for name, value, why in self.left],
            "toFillIn": list(self.to_fill),
        }


def convert(text: str, *, name: str, tool: str | None = None, gpus: int | None = None) -> Converted:
    """The run that a configuration describes; `gpus` are those that the tool was started on, None what the
    configuration says of them. Raises `ClientError` for text that is none."""
    options = read_options(text)
    tool = tool or recognised(options)
    if tool not in TOOLS:
        raise ClientError(f"--from is {tool}: must be one of {', '.join(TOOLS)}")
    title, rules = TOOLS[tool]
    conversion = Conversion(tool=title, options=options)
    try:
        rules(conversion, gpus)
    except (ValueError, TypeError, AttributeError) as error:
        raise ClientError(
            f"The configuration of {title} has a value of a wrong kind ({error}): check it with the tool itself"
        ) from error
    if not conversion.seen & options.keys():
        raise ClientError(_unknown(title, options))
    rest(conversion)
    return Converted(
        tool=title,
        manifest=mapping.manifest(conversion, name),
        mapped=tuple((printable(option), field) for option, field in conversion.mapped),
        left=tuple((printable(name), printable(value), why) for name, value, why in conversion.left),
        to_fill=tuple(map(printable, conversion.to_fill)),
    )


def read_options(text: str) -> dict[str, Any]:
    """The options of a YAML or JSON file, or of a command line. Raises `ClientError`."""
    try:
        document = yaml.load(text, BoundedLoader)  # noqa: S506 - a safe one
    except AliasesError as error:
        raise ClientError(f"The file cannot be read: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError):
        document = text
    # A command on one line that ends in JSON is YAML, too, with most of it as a key.
    if isinstance(document, Mapping) and document and all(_NAME.fullmatch(str(key)) for key in document):
        return dict(document)
    options = dict(_of_command(text))
    if not options:
        raise ClientError(f"The file holds no options: name {FOREIGN}")
    return options


def _unknown(title: str, options: Mapping[str, Any]) -> str:
    if options.get("kind") == KIND:
        return f"The file is a {KIND} already: lora validate -f asks the cluster about it"
    return f"The file has no option of {title} that this release knows: name {FOREIGN}"


def _of_command(text: str) -> Iterator[tuple[str, Any]]:
    """`--name value`, `--name=value`, `--switch`, `--no_switch`; several values become a list."""
    try:
        tokens = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError:
        return
    name, values = "", []
    for token in [*tokens, "--"]:
        if not token.startswith("--"):
            values.append(_read(token))
            continue
        if name:
            yield name, True if not values else values[0] if len(values) == 1 else values
        name, equals, value = token[2:].partition("=")
        name, values = name.replace("-", "_"), [_read(value)] if equals else []


def _read(token: str) -> Any:
    try:
        return json.loads(token.lower() if token in ("True", "False") else token)
    except ValueError:
        return token


def text_of(converted: Converted) -> str:
    """The manifest as YAML, with what does not map as comments above it."""
    lines = [f"# From a configuration of {converted.tool}, by lora convert."]
    lines += [f"# Fill in {entry}" for entry in converted.to_fill]
    if converted.left:
        lines.append("# Not taken over:")
        lines += [f"#   {name}: {value} ({why})" for name, value, why in converted.left]
    return "\n".join(lines) + "\n" + yaml_text(dict(converted.manifest))
