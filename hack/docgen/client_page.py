"""The commands in docs/cli.md, from the command line itself."""

from typing import Any

from typer.main import get_command

from docgen.text import code, table
from lora_client.commands import app

BEGIN = "<!-- Begin of the commands, written by hack/docs -->\n"
END = "<!-- End of the commands -->\n"
_EVERYWHERE = ("--context", "--namespace", "--output")


def insert(page: str) -> str:
    """The page with its reference renewed. Raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN.strip()} and {END.strip()}")
    commands: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009 - typer does not annotate it
    return f"{before}{BEGIN}\n{''.join(_section(name, command) for name, command in commands.items())}{END}{after}"


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    own = [option for option in options if option.opts[0] not in _EVERYWHERE and option.name != "help"]
    needed = [f"{_short(option)} {option.metavar}" for option in own if option.required]
    optional = ["[OPTIONS]"] if any(not option.required for option in own) else []
    usage = " ".join(["lora", name, *map(_shown, arguments), *needed, *optional])
    optionally = [argument for argument in arguments if not argument.required]
    left_out = [(code(argument.metavar.strip("[]")), _meaning(argument)) for argument in optionally]
    rows = [*left_out, *((", ".join(map(code, _spelt(option))), _meaning(option)) for option in own)]
    head = "argument or option" if left_out else "option"
    options_table = table([head, "meaning"], rows) + "\n" if rows else ""
    return f"### lora {name}\n\n`{usage}`\n\n{' '.join(command.help.split())}\n\n{options_table}"


def _shown(argument: Any) -> str:
    metavar = (argument.metavar or argument.name.upper()).strip("[]")
    return str(metavar if argument.required else f"[{metavar}]")


def _short(option: Any) -> str:
    return str(min(option.opts, key=len))


def _spelt(option: Any) -> list[str]:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return [f"{word}{value}" for word in [*option.opts, *option.secondary_opts]]


def _meaning(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    told = "default" in text.lower() or isinstance(default, bool) or default in (None, "", "-")
    return text if told or parameter.required else f"{text} Default: {code(default)}."
