"""On which modules, layers and parameters another tool's adapter is, and with which ranks, by PEFT's options."""

import re
from collections.abc import Mapping

from lora_client.foreign.mapping import Conversion

_NAME = re.compile(r"[A-Za-z0-9_]+(?:[.][A-Za-z0-9_]+)*")
_ENDS = "regular expressions are not taken: list the names in {field}"


def targets(c: Conversion, name: str, *, everything: str = "") -> None:
    """All linear modules, or a list of names, as a list or with commas between them. `everything` is an option that
    takes all."""
    value = c.get(name)
    if everything:
        c.set("lora.layers", "AllLinear", everything)
    elif str(value).strip().lower() in ("all-linear", "all", "all_linear"):
        c.set("lora.layers", "AllLinear", name)
    elif value is not None and not value:
        c.leave(name, "linear modules always get an adapter here: lora.layers has its own default")
    else:
        modules(c, name, "lora.targetModules")


def modules(c: Conversion, name: str, path: str) -> None:
    """Names of modules or parameters, or ends of their paths, as a list or with commas between them."""
    value = c.get(name)
    if not value:
        return
    found = value.replace(",", " ").split() if isinstance(value, str) else [str(entry) for entry in value]
    if isinstance(value, str) and not all(map(_NAME.fullmatch, found)):
        c.ask(path, name, "a regular expression: list the names that it matches")
    else:
        c.set(path, found, name)


def layers(c: Conversion, name: str) -> None:
    """Numbers of the layers that get an adapter, or a single one."""
    value = c.get(name)
    parts = value.replace(",", " ").split() if isinstance(value, str) else value if isinstance(value, list) else [value]
    numbers = [str(part) for part in parts if part is not None]
    if not all(number.isdecimal() for number in numbers):
        c.leave(name, "lora.layerIndices has numbers of layers, counted from 0")
    elif numbers:
        c.set("lora.layerIndices", list(dict.fromkeys(map(int, numbers))), name)


def patterns(c: Conversion) -> None:
    """Ranks and alphas of single modules, each module by its name or the end of its path."""
    for name, path in (("rank_pattern", "lora.rankPattern"), ("alpha_pattern", "lora.alphaPattern")):
        value = c.get(name)
        if value is not None and not isinstance(value, Mapping):
            c.leave(name, f"{path} is a map from names of modules to numbers")
            continue
        taken: dict[str, int] = {}
        for module, number in (value or {}).items():
            if not _NAME.fullmatch(str(module)):
                c.left.append((f"{name}[{module}]", str(number), _ENDS.format(field=path)))
            elif not str(number).removesuffix(".0").isdecimal():
                c.left.append((f"{name}[{module}]", str(number), f"{path} has whole numbers"))
            else:
                taken[str(module)] = int(float(number))
        if taken:
            c.set(path, taken, name)
