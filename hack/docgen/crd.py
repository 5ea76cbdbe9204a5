"""The CRD of the chart, from the contract's classes and what they say of their fields (`api`)."""

import dataclasses
import enum
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lora_trainer.spec.api import Api, Described, Rule, Shape, described
from lora_trainer.spec.fields import DECIMAL
from lora_trainer.spec.manifest import ANOTHER, API_VERSION, KIND, NAME
from lora_trainer.spec.reading import written
from lora_trainer.spec.resource import Spec
from lora_trainer.spec.status import Status

Schema = dict[str, Any]
_HEAD = """\
# The LoRAFineTune resource: what `kubectl apply` and the chart install.
# Generated from the classes of lora_trainer.spec (resource, config, status) by hack/docs: run `make docs`.
"""
_IMMUTABLE = "immutable: it defines the run; create a new LoRAFineTune instead"
_NUMBER = 20
_FRACTION = 32
_GROUP, _, _VERSION = API_VERSION.partition("/")
_RESOURCE = (
    "A LoRAFineTune is one fine-tuning run: it trains a LoRA adapter for a base model on a dataset, verifies it and "
    "publishes it to a volume, a bucket, the Hub or a registry. Apply it, then watch it with `kubectl get lft -w`. "
    "What defines a run is immutable: create a new LoRAFineTune to change it."
)
_SPEC = (
    "What to train. After creation you can change only suspend, maxRetries, activeDeadlineSeconds, "
    "pendingTimeoutSeconds and ttlSecondsAfterFinished."
)
_STATUS = (
    "What happened so far; only the operator writes it. A finished run is Complete with a verified adapter, or "
    "Failed with a reason, and has a completionTime."
)
_ABOUT_NAME = (
    'Name of the run. Its Job and pods are named after it: at most 52 lower-case letters, digits and "-", starting '
    "with a letter."
)
_WAITING = [
    {
        "type": kind,
        "status": "Unknown",
        "reason": "Pending",
        "message": "Waiting for the operator",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }
    for kind in ("Accepted", "Complete", "Failed")
]
"""Until there is an operator; 1970 is how a definition says not yet."""


def render() -> str:
    """The file."""
    text: str = yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=112, allow_unicode=True)
    return _HEAD + text


def definition() -> Schema:
    """The whole CustomResourceDefinition."""
    names = {"kind": KIND, "listKind": f"{KIND}List", "plural": "lorafinetunes", "singular": "lorafinetune"}
    version = {
        "name": _VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": _columns(),
        "schema": {"openAPIV3Schema": _resource()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{_GROUP}"},
        "spec": {
            "group": _GROUP,
            "scope": "Namespaced",
            "names": {**names, "shortNames": ["lft"], "categories": ["lora"]},
            "versions": [version],
        },
    }


def _field(field: Described, *, fixed: bool, complete: bool) -> Schema:
    """The schema of a field; where it is `fixed` it keeps its first value."""
    said = field.api
    schema = _typed(field, fixed=fixed, complete=complete)
    default = _default(field)
    if default is not None:
        schema["default"] = default
    rules = [_rule(rule, value=_text(field, "self")) for rule in field.rules]
    if fixed and said.fixed is not None and not _is_object(field):
        rules.insert(0, _immutable(_same(said, said.fixed)))
    if rules:
        schema["x-kubernetes-validations"] = rules
    return schema


def _typed(field: Described, *, fixed: bool, complete: bool) -> Schema:
    """Type, description and bounds of a value."""
    said, shape = field.api, field.shape
    if said.quantity or (said.decimal and said.decimal.or_whole):
        return {"description": said.about, "x-kubernetes-int-or-string": True, "maxLength": _NUMBER}
    if _is_object(field):
        return object_schema(field.kind, said, fixed=fixed, complete=complete)
    if shape is Shape.LIST:
        return _array(field, complete=complete)
    if shape is Shape.MAP:
        entries = {"additionalProperties": _item(field, complete=complete)} if said.item else _ANYTHING
        return {"type": "object", "description": said.about, **_count("Properties", said), **entries}
    if shape is Shape.DECIMAL and field.name.endswith("_seconds"):
        shape = Shape.INTEGER  # so the operator writes it
    return {"type": _TYPES.get(shape, "string"), "description": said.about, **_limits(shape, field.kind, said)}


_TYPES = {Shape.BOOLEAN: "boolean", Shape.INTEGER: "integer"}
_ANYTHING = {"x-kubernetes-preserve-unknown-fields": True}


def _limits(shape: Shape, kind: Any, said: Api) -> Schema:
    if shape is Shape.BOOLEAN:
        return {}
    if shape is Shape.TIME:
        return {"format": "date-time"}
    if shape is Shape.CHOICE and said.longest is None:
        return {"enum": [member.value for member in kind]}
    if shape is Shape.INTEGER:
        return {"format": "int64" if said.wide else "int32", **_given(minimum=said.low, maximum=said.high)}
    if shape is Shape.DECIMAL:
        return {"maxLength": _NUMBER if said.decimal else _FRACTION}
    return _given(minLength=said.shortest or None, maxLength=said.longest)


def _given(**limits: int | None) -> Schema:
    return {name: limit for name, limit in limits.items() if limit is not None}


def _count(what: str, said: Api) -> Schema:
    return _given(**{f"min{what}": said.fewest, f"max{what}": said.most})


def _item(field: Described, *, complete: bool) -> Schema:
    """The schema of each item of a list, or entry of a map."""
    said, kind = field.item, field.kind
    if dataclasses.is_dataclass(kind):
        return object_schema(typing.cast("type", kind), said, fixed=False, complete=complete)
    shape = Shape(kind)
    schema = {"type": _TYPES.get(shape, "string"), "description": said.about, **_limits(shape, kind, said)}
    if said.rules:
        schema["x-kubernetes-validations"] = [_rule(rule, value="self") for rule in said.rules]
    return schema


def _array(field: Described, *, complete: bool) -> Schema:
    """A set where the API says that it is not empty, a map where its items have a key, else atomic."""
    said = field.api
    sort: Schema = {"x-kubernetes-list-type": "set" if said.fewest else "atomic"}
    if said.key:
        sort = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [said.key]}
    counted = {"type": "array", "description": said.about, **_count("Items", said), **sort}
    return {**counted, "items": _item(field, complete=complete or bool(said.key))}


def object_schema(kind: type, said: Api, *, fixed: bool, complete: bool) -> Schema:
    """The schema of a class. Where it is `fixed` its fields keep their first values; where it is `complete` it has all
    that must be set, while a status may lack what nobody knows yet."""
    fields = described(kind)
    required = [field.key for field in fields if field.required and complete]
    rules = [rule for field in fields for rule in _between(field, fixed=fixed)]
    schema: Schema = {"type": "object", **({"description": said.about} if said.about else {})}
    if required:
        schema["required"] = required
    if rules:
        schema["x-kubernetes-validations"] = rules
    return schema | {"properties": {field.key: _field(field, fixed=fixed, complete=complete) for field in fields}}


def _is_object(field: Described) -> bool:
    """Whether it has fields, each of which is fixed for itself; also where it is passed on as it was written."""
    return field.shape is Shape.OBJECT or (field.shape is Shape.MAP and field.api.document is not None)


def _default(field: Described) -> Any:
    """What the server fills in: what is nothing in Python is absent there."""
    value = field.default
    if field.required or not field.api.filled or value is None or value in ((), {}):
        return None
    if dataclasses.is_dataclass(value):
        return {}
    if isinstance(value, enum.Enum):
        return value.value
    return written(value) if isinstance(value, float) else value


def _between(field: Described, *, fixed: bool) -> Iterator[Schema]:
    said = field.api
    absent = not field.required and _default(field) is None
    if fixed and absent and said.fixed is not None:
        appears = said.appears or f"has(self.{field.key}) == has(oldSelf.{field.key})"
        yield _immutable(appears, at=f".{field.key}")
    for rule in said.between:
        about = field
        for below in rule.at.split(".")[1:]:
            about = next(each for each in described(about.kind) if each.key == below)
        at = f".{field.key}{rule.at}"
        yield _rule(rule, at=at, value=_text(about, f"self{at}"))


def _same(said: Api, fixed: str) -> str:
    """By which a field keeps its value: of one that is written in two ways, the number."""
    if said.decimal and said.decimal.or_whole:
        return f"{fixed} || string(self).matches('^{DECIMAL}$') && double(self) == double(oldSelf)"
    return fixed


def _immutable(cel: str, at: str = "") -> Schema:
    return _rule(Rule(cel=cel, forbidden=True, message=_IMMUTABLE), at=at)


def _rule(rule: Rule, at: str = "", value: str = "") -> Schema:
    """With the `value` before the sentence, where it is quoted."""
    schema: Schema = {"rule": rule.cel}
    if at:
        schema["fieldPath"] = at
    if rule.forbidden:
        schema["reason"] = "FieldValueForbidden"
    if rule.quoted:
        says = rule.message.replace("'", "\\'")
        schema["messageExpression"] = f"'\"' + {value} + '\" {says}'"
    return {**schema, "message": rule.message}


def _text(field: Described, value: str) -> str:
    """By CEL, the value as text."""
    said = field.api
    written = field.shape in {Shape.TEXT, Shape.CHOICE, Shape.DECIMAL} and not said.quantity
    return value if written and not (said.decimal and said.decimal.or_whole) else f"string({value})"


def _resource() -> Schema:
    """The resource itself."""
    name = {
        "type": "string",
        "description": _ABOUT_NAME,
        "maxLength": 253,
        "x-kubernetes-validations": [_rule(NAME, value="self")],
    }
    spec = object_schema(Spec, Api(about=_SPEC), fixed=True, complete=True)
    properties: Mapping[str, Any] = {
        "apiVersion": {"type": "string", "description": f"The version of this API, {API_VERSION}."},
        "kind": {"type": "string", "description": f"{KIND}."},
        "metadata": {"type": "object", "properties": {"name": name}},
        "spec": spec,
        "status": {
            **object_schema(Status, Api(about=_STATUS), fixed=False, complete=False),
            "default": {"conditions": _WAITING},
        },
    }
    return {
        "type": "object",
        "description": _RESOURCE,
        "required": ["spec"],
        "x-kubernetes-validations": [_rule(ANOTHER, at=ANOTHER.at)],
        "properties": properties,
    }


def _columns() -> list[Schema]:
    """What kubectl get shows: name, type, path and description, and, of those for `-o wide`, a priority."""
    conditions = '.status.conditions[?(@.type=="Complete")].reason'
    progress = ".status.progress"
    always = (
        (
            "State",
            "string",
            conditions,
            "What the run is doing, or how it ended (the reason of its Complete condition).",
        ),
        ("Model", "string", ".spec.model.uri", "The base model."),
        ("Rank", "integer", ".spec.lora.rank", "The rank of the adapter."),
        (
            "Quant",
            "string",
            ".status.resolved.quantization",
            "How the base model's weights are stored while training, as it was resolved.",
        ),
        ("Step", "string", f"{progress}.steps", "Optimizer steps done and planned."),
        ("Loss", "string", f"{progress}.loss", "Training loss of the last reported steps."),
        ("ETA", "string", f"{progress}.eta", "Estimated time until the last step."),
        ("Age", "date", ".metadata.creationTimestamp", ""),
    )
    wide = (
        (
            "Peak Memory",
            "string",
            f"{progress}.peakMemory",
            "Peak memory so far, of the GPU or, on a CPU, of the process.",
        ),
        ("Tokens/s", "string", f"{progress}.tokensPerSecond", "Training speed."),
        ("Adapter", "string", ".status.artifact.uri", "Where the verified adapter is."),
    )
    return [_column(*column) for column in always] + [{**_column(*column), "priority": 1} for column in wide]


def _column(name: str, kind: str, path: str, about: str) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, **({"description": about} if about else {})}


class _Dumper(yaml.SafeDumper):
    """Lists within their keys, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """What stands twice is written twice: kubectl takes it so, and people read it so."""
        return True
