"""YAML that the API server reads as it was meant."""

import re

import yaml

from lora_operator.model.visible import visible

_OTHERWISE = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|0o[0-7]+|[yYnN]")
"""What kubectl reads as a number, or as true or false."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that is none to others: for PyYAML itself, 1e-4 is text. Writes no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    is_quoted = _OTHERWISE.fullmatch(value) or visible(value) != value
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if is_quoted else None)


_Dumper.add_representer(str, _string)


def yaml_text(document: object) -> str:
    """Plain values as one document, keys in their order."""
    # Between quotes, where an escape is read back.
    return visible(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
