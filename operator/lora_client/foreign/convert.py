"""A file of another tool to a LoRAFineTune."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_client.errors import ClientError
from lora_client.foreign import mapping
from lora_client.foreign.by_file import BESIDE, file_of, has_own_options, refusal
from lora_client.foreign.mapping import Conversion
from lora_client.foreign.objective import only_supervised
from lora_client.foreign.reading import FOREIGN, read
from lora_client.foreign.tools import TOOLS, recognised, rest
from lora_client.views.checked import own_problems, shown
from lora_client.yaml_text import yaml_text
from lora_operator.model.wording import printable
from lora_trainer.spec.manifest import KIND


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
    """The run that a configuration describes; `gpus` are those of a node that the tool was started on, None what
    the configuration says of them. Raises `ClientError` for text that is none, for a command whose options are in a
    file, and for a run that is not supervised."""
    found = read(text)
    options = found.options
    tool = tool or recognised(options)
    if tool not in TOOLS:
        raise ClientError(f"--from is {tool}: must be one of {', '.join(TOOLS)}")
    title, rules = TOOLS[tool]
    only_supervised(title, options, found.arguments)
    conversion = Conversion(tool=title, options=options)
    file = file_of(found.arguments, options)
    if file and not has_own_options(found.arguments, options):
        each, nodes = mapping.launched(conversion)
        raise refusal(file, found.arguments, gpus or each, nodes)
    try:
        rules(conversion, gpus)
    except (ValueError, TypeError, AttributeError) as error:
        raise ClientError(
            f"The configuration of {title} has a value of a wrong kind ({error}): check it with the tool itself"
        ) from error
    if not conversion.seen & options.keys():
        raise ClientError(_unknown(title, options))
    rest(conversion)
    if file:
        conversion.left.append(("first argument", file, BESIDE))
    manifest = mapping.manifest(conversion, name)
    return Converted(
        tool=title,
        manifest=manifest,
        mapped=tuple((printable(option), field) for option, field in conversion.mapped),
        left=tuple((printable(name), printable(value), why) for name, value, why in conversion.left),
        to_fill=tuple(map(printable, [*conversion.to_fill, *_refused(manifest)])),
    )


def _refused(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the contract does not take as it is, for its owner to decide; the name is not the configuration's."""
    for problem in own_problems(manifest):
        if not problem.path.startswith("metadata."):
            path = problem.path.removeprefix("spec.")
            yield shown(problem).replace(f"{problem.path} is ", f"{path}: it is ", 1)


def _unknown(title: str, options: Mapping[str, Any]) -> str:
    if options.get("kind") == KIND:
        return f"The file is a {KIND} already: lora validate -f asks the cluster about it"
    return f"The file has no option of {title} that this release knows: name {FOREIGN}"


def text_of(converted: Converted) -> str:
    """The manifest as YAML, with what does not map as comments above it."""
    lines = [f"# From a configuration of {converted.tool}, by lora convert."]
    lines += [f"# Fill in {entry}" for entry in converted.to_fill]
    if converted.left:
        lines.append("# Not taken over:")
        lines += [f"#   {name}: {value} ({why})" for name, value, why in converted.left]
    return "\n".join(lines) + "\n" + yaml_text(dict(converted.manifest))
