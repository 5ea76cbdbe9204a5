"""The reference of the client's verbs in docs/client.md, from the command line itself."""

from typing import Any

from typer.main import get_command

from docgen.text import code, table
from lora_client.commands import app

BEGIN = "<!-- Begin of the verbs, written by hack/docs -->\n"
END = "<!-- End of the verbs -->\n"
_EVERYWHERE = ("--context", "--namespace", "--output")


def insert(page: str) -> str:
    """The page with its reference renewed. Raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN.strip()} and {END.strip()}")
    commands: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009 - typer does not annotate it
    return f"{before}{BEGIN}\n{''.join(_verb(name, command) for name, command in commands.items())}{END}{after}"


def _verb(name: str, command: Any) -> str:
    options = [p for p in command.params if p.param_type_name == "option"]
    own = [option for option in options if option.opts[0] not in _EVERYWHERE and option.name != "help"]
    words = [p.metavar if p.required else f"[{p.metavar.strip('[]')}]" for p in _arguments(command)]
    head = " ".join(["lora", name, *words])
    text = f"### `{head}`\n{' '.join(command.help.split())}\n\n"
    rows = [[", ".join(map(code, _spelt(option))), " ".join((option.help or "").split())] for option in own]
    return text + (table(["option", "meaning"], rows) + "\n" if rows else "")


def _arguments(command: Any) -> list[Any]:
    found = [p for p in command.params if p.param_type_name == "argument"]
    for parameter in found:
        parameter.metavar = parameter.metavar or parameter.name.upper()
    return found


def _spelt(option: Any) -> list[str]:
    value = f" {option.metavar}" if option.metavar and not option.is_flag else ""
    return [f"{word}{value}" for word in [*option.opts, *option.secondary_opts]]
