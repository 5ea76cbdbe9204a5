"""Arguments that the command line does not know, and what to type instead."""

from collections.abc import Sequence

_ELSEWHERE = {
    **dict.fromkeys(("get", "ls"), "lora list"),
    **dict.fromkeys(("describe", "show"), "lora status NAME"),
    **dict.fromkeys(("apply", "create", "start", "submit", "train"), "lora run -f FILE"),
    **dict.fromkeys(("cancel", "pause", "stop"), "lora suspend NAME"),
    **dict.fromkeys(("delete", "remove", "rm"), "kubectl delete lft NAME"),
    **dict.fromkeys(("chat", "generate"), "lora ask NAME"),
    **dict.fromkeys(("copy", "download"), "lora pull NAME"),
    "edit": "lora clone NAME --set FIELD=VALUE",
    "help": "lora --help",
    "version": "lora --version",
    "wait": "lora watch NAME",
    "events": "lora explain NAME",
    **dict.fromkeys(("metrics", "top"), "lora watch NAME"),
    "label": "kubectl label lft NAME KEY=VALUE",
}
"""Verbs of kubectl and of other tools, and what does the same here."""


def refused(message: str, path: str, arguments: Sequence[str]) -> str:
    """The parser's sentence about wrong arguments, and what to type instead."""
    verb = message.removeprefix("No such command '").partition("'")[0]
    if message.startswith("No such command") and verb in _ELSEWHERE:
        return f"No such command '{verb}': {_ELSEWHERE[verb]} does that"
    if message.startswith("Missing option '--file'"):
        file = next((one for one in arguments if one.endswith((".yaml", ".yml", ".json"))), "FILE")
        return f"Missing option '--file' / '-f': type {path} -f {file}"
    return f"{message.rstrip('.').replace('Value error, ', '')}: {path} --help lists what there is"
