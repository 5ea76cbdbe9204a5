"""Commands that have their options in a file, which is what can be converted."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_client.errors import ClientError
from lora_client.foreign.elsewhere import LAUNCHED, NO_FIELD, SCALE
from lora_client.foreign.mapping import variable
from lora_operator.model.wording import printable

_BETWEEN = "\0"
"""Arguments, which may hold blanks and line breaks."""
_FILE = r"(?P<file>(?!-)[^\0]+\.(?:ya?ml|json))(?=\0|$)"
_TOOL = re.compile(rf"(?:^|[\0/])(?:(?:axolotl|llamafactory-cli|lmf)\0train|axolotl\.cli\.train)\0{_FILE}")
_SCRIPT = re.compile(rf"\.py\0{_FILE}")
_PROGRAM = re.compile(
    r"\.py(?=\0)|\b(?:axolotl\.cli|trl\.scripts)\.\w+|(?:^|[\0/])(?:axolotl|llamafactory-cli|lmf|trl)\0\w+"
)
_OPTION = re.compile(r"(?<![^\0])(?:--)?(?P<name>[A-Za-z_][\w.-]*)=|(?<![^\0])--(?P<bare>[A-Za-z_][\w-]*)")
_MODEL = frozenset({"model_name_or_path", "base_model_name_or_path", "base_model"})
_LEARNS = frozenset({"lora_r", "r", "lora_rank", "learning_rate"})
"""What a run has, and a few options that overrule a file's have not: with a model, its rank or its learning rate."""
BESIDE = (
    "is a file beside the command's own options: add what it sets, or, where it is the data, name it in dataset.uri"
)


def trains_by_file(arguments: Sequence[str]) -> bool:
    """Whether it is the command of a tool that takes a file, beside which a script's other commands do not count."""
    return bool(_TOOL.search(_BETWEEN.join(arguments)))


def file_of(arguments: Sequence[str], options: Mapping[str, Any]) -> str:
    """The file in which a command has its options: that of `--config`, or the first argument; empty where it names
    none. Text that is no command has no arguments."""
    if not arguments:
        return ""
    given = options.get("config")
    first = given[0] if isinstance(given, list) and given else given
    text = _BETWEEN.join(arguments)
    found = _TOOL.search(text) or _SCRIPT.search(text)
    return first if isinstance(first, str) else found["file"] if found else ""


def has_own_options(arguments: Sequence[str], options: Mapping[str, Any]) -> bool:
    """Whether a script's options are a run without the file that is its first argument, which may be the data."""
    by_file = "config" in options or trains_by_file(arguments)
    return not by_file and bool(_MODEL & options.keys() and _LEARNS & options.keys())


def refusal(file: str, arguments: Sequence[str], gpus: int, nodes: int) -> ClientError:
    """Of a command with its options in a file, without which the run would have the tool's defaults. `gpus` are those
    that its launcher names for a node, 0 where it names none."""
    name = "FILE" if variable(file) else shlex.quote(file)
    command = f"lora convert {name}{f' --gpus {gpus}' if gpus else ''}"
    where = "" if name != "FILE" else f", where FILE is what {file} stands for"
    own = ", ".join(dict.fromkeys(_overrides(arguments)))
    first = f"; write the command's own options ({own}) into that file first" if own else ""
    field = "training.effectiveBatchSize"
    then = f"; then set resources.nodes: {nodes} and multiply {field} by {nodes}" if nodes > 1 else ""
    return ClientError(
        printable(f"The command reads its options from {file}: {command} converts them{where}{first}{then}")
    )


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    """Names of the options behind the program, which the file's give way to; not those that no file has."""
    text = _BETWEEN.join(arguments)
    program = _PROGRAM.search(text)
    for option in _OPTION.finditer(text, program.end() if program else 0):
        name = (option["name"] or option["bare"]).replace("-", "_")
        if name != "config" and NO_FIELD.get(name) not in (SCALE, LAUNCHED):
            yield name
