"""The fields of the definition as a module of the operator, which compares them with those that a cluster knows."""

import textwrap

from docgen.schema import Schema
from lora_operator.controller.checks import field_paths

# Kubernetes' own, which no definition of ours has in part.
_FOREIGN = "spec.scheduling.affinity."
_HEAD = '''"""The fields of a LoRAFineTune that this operator knows: written by hack/docs from the definition."""

FIELDS = frozenset(
    """
'''
_TAIL = '''
    """.split()
)
'''


def render(schema: Schema) -> str:
    """The module; `schema` is that of the whole resource."""
    fields = " ".join(path for path in sorted(field_paths(schema)) if not path.startswith(_FOREIGN))
    indent = "    "
    lines = textwrap.wrap(fields, 120, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return _HEAD + "\n".join(lines) + _TAIL
