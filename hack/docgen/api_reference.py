"""docs/api-reference.md: every field of the resource, from its definition."""

import json
from collections.abc import Iterator

from docgen.schema import Definition, Field, walk
from docgen.text import code, sentence_list, table

_HEAD = """\
<!-- Generated from the classes of lora_trainer.spec by hack/docs: edit these, then run `make docs`. -->
# API reference: {kind}, {group}/{version}

{description}

The same texts come from the cluster itself: `kubectl explain {short}.spec.training`.

```yaml
{example}```

Conventions:

* Fractions are quoted strings (`"0.0002"`), so that no tool rounds or reformats them on the way.
* A default in the table is filled in when the resource is created. Where the description says what an absent field
  means, the field stays absent, and what was used is shown in `status.resolved`.
* What defines a run cannot be changed afterwards, and the attempt is refused with "immutable". What can be changed is
  {mutable}.
* Unknown fields are refused by `kubectl apply`.

"""


def render(definition: Definition, example: str) -> str:
    """The whole page; `example` is a manifest."""
    spec, names = definition.document["spec"], definition.document["spec"]["names"]
    head = _HEAD.format(
        kind=names["kind"],
        group=spec["group"],
        version=definition.version["name"],
        short=names["shortNames"][0],
        description=definition.root.description,
        example=example,
        mutable=sentence_list([code(path) for path in mutable_fields(definition)], "and"),
    )
    sections = [_section(field) for field in (*_objects(definition, "spec"), *_objects(definition, "status"))]
    return head + _name(definition) + "".join(sections) + _columns(definition)


def mutable_fields(definition: Definition) -> list[str]:
    """Paths of the fields of `spec` that can be changed after creation."""
    leaves = (field for field in definition.field("spec").children if not field.children)
    return [field.path for field in leaves if not field.immutable]


def _objects(definition: Definition, top: str) -> Iterator[Field]:
    field = definition.field(top)
    yield field
    yield from (child for child in walk(field) if child.children)


def _name(definition: Definition) -> str:
    field = definition.field("metadata.name")
    return f"## metadata.name\n\n{field.description}\n\n"


def _section(field: Field) -> str:
    depth = 2 if "." not in field.path else 3
    title = field.path + ("[]" if "items" in field.schema else "")
    rows = [
        [code(child.name), child.type_name, _default(child), child.bounds, child.description]
        for child in field.children
    ]
    body = table(["Field", "Type", "Default", "Limits", "Description"], rows)
    rules = [line for each in (field, *_leaves(field)) for line in _rules(each)]
    text = f"{'#' * depth} {title}\n\n{field.description}\n\n{body}\n"
    return text + ("Refused, with the field's name and this explanation:\n\n" + "".join(rules) + "\n" if rules else "")


def _leaves(field: Field) -> Iterator[Field]:
    return (child for child in field.children if not child.children)


def _default(field: Field) -> str:
    if field.required:
        return "required"
    default = field.schema.get("default")
    return "" if default is None or isinstance(default, dict) else code(json.dumps(default))


def _rules(field: Field) -> Iterator[str]:
    return (f"* `{rule.path}`: {rule.message}\n" for rule in field.rules if not rule.message.startswith("immutable"))


def _columns(definition: Definition) -> str:
    rows = [
        [column["name"].upper(), "always" if not column.get("priority") else "-o wide", code(column["jsonPath"])]
        for column in definition.version["additionalPrinterColumns"]
    ]
    return "## Columns of kubectl get\n\n" + table(["Column", "Shown", "From"], rows)
