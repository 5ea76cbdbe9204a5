"""docs/api-reference.md: every field of the resource, from its definition."""

import json
import re
from collections.abc import Iterator, Sequence
from textwrap import fill

from docgen.schema import Definition, Field
from docgen.text import code, table

_HEAD = """\
<!-- Generated from the classes of lora_trainer.spec by hack/docs: edit these, then run `make docs`. -->
# API reference: {kind}, {group}/{version}

{description}

```yaml
{example}```

[Write a run](write-a-run.md) explains the fields by task. `kubectl explain {short}.spec.training` shows the same texts.

* **Fractions** are quoted strings (`"0.0002"`), so that no tool rounds them.
* **Quantities** are
  [Kubernetes' quantities](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).
* **Defaults** are filled in when you create the resource. If the description says what an absent field means, the field
  stays absent, and `status.resolved` shows the value used.
* **Refused** are unknown fields, values outside of their limits, and settings that contradict each other. The message
  names the field, the value, the rule and the remedy.

"""
_POD = "https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#scheduling"
_FOREIGN = {
    "spec.scheduling.affinity": (
        f"See [Kubernetes' affinity]({_POD}), of which `matchFields`, `namespaceSelector`, `matchLabelKeys` and "
        "`mismatchLabelKeys` are not supported, nor more than 8 terms or 8 expressions in one."
    ),
    "spec.scheduling.tolerations": f"See [Kubernetes' tolerations]({_POD}).",
    "status.resolved.pod.tolerations": "",
}
"""Kubernetes' own types, which its reference describes, and what to say of them."""
_PATH = re.compile(r"\b(?:spec|status|model|dataset|training|output|checkpoint|defaults)(?:\.[a-z]\w*)+")


def render(definition: Definition, example: str) -> str:
    """The whole page; `example` is a manifest."""
    spec, names = definition.document["spec"], definition.document["spec"]["names"]
    head = _HEAD.format(
        kind=names["kind"],
        group=spec["group"],
        version=definition.version["name"],
        short=names["shortNames"][0],
        description=_paragraph(definition.root),
        example=example,
    )
    sections = [_section(field) for top in ("spec", "status") for field in _objects(definition.field(top))]
    return head + _name(definition) + "".join(sections) + _columns(definition)


def _objects(field: Field) -> Iterator[Field]:
    """What has a section of its own, parents first."""
    yield field
    for child in field.children:
        if _has_section(child):
            yield from _objects(child)


def _has_section(field: Field) -> bool:
    """Whether it has fields to show; a single one stands in its parent's table."""
    return len(field.children) > 1 and field.path not in _FOREIGN


def _name(definition: Definition) -> str:
    return f"## metadata.name\n\n{_paragraph(definition.field('metadata.name'))}\n\n"


def _text(field: Field) -> str:
    """Its description with paths of fields as code."""
    return _PATH.sub(r"`\g<0>`", field.description)


def _paragraph(field: Field) -> str:
    return fill(_text(field), 120)


def _title(field: Field) -> str:
    return field.path + ("[]" if "items" in field.schema else "")


def _section(field: Field) -> str:
    depth = 2 if "." not in field.path else 3
    rows: list[Sequence[str]] = [("Field", "Type", "Default", "Description"), *map(_row, field.children)]
    if not any(default for _, _, default, _ in rows[1:]):
        rows = [(name, kind, description) for name, kind, _, description in rows]
    return f"{'#' * depth} {_title(field)}\n\n{_paragraph(field)}\n\n{table(rows[0], rows[1:])}\n"


def _row(field: Field) -> list[str]:
    """Name, type with its limits, default, and what it is, or where that stands."""
    default, limits = _default(field), field.bounds
    if _has_section(field):
        return [code(field.name), field.type_name, default, f"See [{_title(field)}](#{_anchor(field)})."]
    if len(field.children) == 1 and field.path not in _FOREIGN:
        (child,) = field.children
        return [code(f"{field.name}.{child.name}"), child.type_name, default, _text(field) + _about(child)]
    kind = limits if "enum" in field.schema else ", ".join(filter(None, (field.type_name, limits)))
    description = " ".join(filter(None, (_text(field), _FOREIGN.get(field.path))))
    return [code(field.name), kind, default, description]


def _about(child: Field) -> str:
    """What a single field adds to what its object says."""
    return "" if child.parent.endswith("secretRef") else f" {_text(child)}"


def _anchor(field: Field) -> str:
    return "".join(letter for letter in _title(field).lower() if letter.isalnum())


def _default(field: Field) -> str:
    if field.required:
        return "required" if field.path.startswith("spec") else ""
    default = field.schema.get("default")
    return "" if default is None or isinstance(default, dict) else code(json.dumps(default))


def _columns(definition: Definition) -> str:
    rows = [
        [column["name"].upper(), "always" if not column.get("priority") else "`-o wide`", code(column["jsonPath"])]
        for column in definition.version["additionalPrinterColumns"]
    ]
    return "## Columns of kubectl get\n\n" + table(["Column", "Shown", "From"], rows)
