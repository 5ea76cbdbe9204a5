"""Commands that have their options in a file, which is what can be converted."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_client.errors import ClientError
from lora_client.foreign.elsewhere import LAUNCHED, NO_FIELD, SCALE
from lora_operator.views.wording import printable

_FILE = r"(?P<file>\S+\.(?:ya?ml|json))(?=\s|$)"
_TOOL = re.compile(rf"(?:^|[\s/])(?:(?:axolotl|llamafactory-cli|lmf) train|axolotl\.cli\.train)\s+{_FILE}")
_SCRIPT = re.compile(rf"\.py\s+{_FILE}")
_PROGRAM = re.compile(
    r"\.py(?=\s)|\b(?:axolotl\.cli|trl\.scripts)\.\w+|(?:^|[\s/])(?:axolotl|llamafactory-cli|lmf|trl) \w+"
)
_OPTION = re.compile(r"(?<!\S)(?:--)?(?P<name>[A-Za-z_][\w.-]*)=|(?<!\S)--(?P<bare>[A-Za-z_][\w-]*)")


def trains_by_file(arguments: Sequence[str]) -> bool:
    """Whether it is the command of a tool that takes a file, beside which a script's other commands do not count."""
    return bool(_TOOL.search(" ".join(arguments)))


def file_of(arguments: Sequence[str], options: Mapping[str, Any]) -> str:
    """The file in which a command has its options: that of `--config`, or the first argument; empty where it names
    none. Text that is no command has no arguments."""
    if not arguments:
        return ""
    given = options.get("config")
    first = given[0] if isinstance(given, list) and given else given
    text = " ".join(arguments)
    found = _TOOL.search(text) or _SCRIPT.search(text)
    return first if isinstance(first, str) else found["file"] if found else ""


def refusal(file: str, arguments: Sequence[str], gpus: int) -> ClientError:
    """Of a command with its options in a file, without which the run would have the tool's defaults. `gpus` are those
    of its launcher, 0 where it names none."""
    command = f"lora convert {shlex.quote(file)}{f' --gpus {gpus}' if gpus else ''}"
    own = ", ".join(dict.fromkeys(_overrides(arguments)))
    first = f"; write the command's own options ({own}) into that file first" if own else ""
    return ClientError(printable(f"The command reads its options from {file}: {command} converts them{first}"))


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    """Names of the options behind the program, which the file's give way to; not those that no file has."""
    text = " ".join(arguments)
    program = _PROGRAM.search(text)
    for option in _OPTION.finditer(text, program.end() if program else 0):
        name = (option["name"] or option["bare"]).replace("-", "_")
        if name != "config" and NO_FIELD.get(name) not in (SCALE, LAUNCHED):
            yield name
