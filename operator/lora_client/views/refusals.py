"""What the API server refused, as sentences: field, value, rule, and what to write instead."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_client.views.words import hint
from lora_operator.decide.trouble import classify_refusal
from lora_trainer.spec.fields import Problem
from lora_trainer.spec.reasons import Reason

_VALUE = re.compile(
    r"^(?:(?:Forbidden|Internal error): ?()|(?:Invalid|Unsupported|Too \w+|Duplicate) ?(?:value)?: ?"
    r'("(?:[^"\\]|\\.)*"|\{.*\}(?=:)|\[.*\](?=:)|[^:]+)?)'
)
_TYPE = re.compile(r'must be of type (\w+)(?:: "(\w+)")?')
_SUPPORTED = re.compile(r"supported values: (.+)$")
_AT_LEAST = re.compile(r"should be (?:greater|more) than(?: or equal to)? (\S+)$")
_AT_MOST = re.compile(r"should be less than(?: or equal to)? (\S+)$")
_UNKNOWN = re.compile(r'unknown field "([^"]+)"')
_TWICE = re.compile(r'duplicate field "([^"]+)"')
_RAW = re.compile(r"^[\w.\[\]]+ in body ")
_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
}
_IMMUTABLE = "immutable"
_RIGHT = re.compile(r'forbidden: User "(?:[^"\\]|\\.)*" cannot ')
"""So the API server begins whatever RBAC or another authorizer says; policies, quotas and webhooks answer 403, too."""
_OURS = re.compile(r'cannot (\w+) resource "lorafinetunes(?:/\w+)?" in API group "lora-operator\.io"')
_EVERYWHERE = "at the cluster scope"
_DENIED = "denied the request"
_ANY_REMEDY = classify_refusal("")[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer that is no success. `causes` are pairs of field and message, of a resource that was found invalid."""

    code: int
    reason: str
    message: str
    causes: tuple[tuple[str, str], ...] = ()
    name: str = ""
    kind: str = ""
    namespace: str = ""

    @classmethod
    def of(cls, code: int, status: Mapping[str, Any], data: bytes, namespace: str) -> "Refusal":
        """From the server's answer, which may come from a proxy and be anything."""
        details = status.get("details")
        details = details if isinstance(details, Mapping) else {}
        causes = details.get("causes")
        causes = [c for c in causes if isinstance(c, Mapping)] if isinstance(causes, list) else []
        text = str(status.get("message") or data[:300].decode(errors="replace"))
        return cls(
            code=code,
            reason=str(status.get("reason") or "Unknown"),
            message=" ".join(text.split()),
            # Without a field it is said that rules were not tried, which a second look at a mended file will do.
            causes=tuple(
                (str(c.get("field", "")), str(c.get("message", ""))) for c in causes if c.get("field") != "<nil>"
            ),
            name=str(details.get("name", "")),
            kind=str(details.get("kind", "")),
            namespace=namespace,
        )


def sentence_of(refusal: Refusal) -> str:
    """What a command says that cannot go on: one sentence, or one for each problem of an invalid resource."""
    if refusal.code == 401:
        return "The API server does not accept these credentials: log in again, as you did for kubectl"
    if refusal.code == 403:
        return _forbidden(refusal)
    if refusal.code == 404:
        return _not_found(refusal)
    found = "\n".join(problems(refusal))
    return found or f"The API server refused this ({refusal.code} {refusal.reason}): {refusal.message}"


def forbids_the_object(refusal: Refusal) -> bool:
    """Whether a 403 is about what the object holds: for want of a right none is looked at, nor by a proxy."""
    if refusal.code != 403 or _RIGHT.search(refusal.message):
        return False
    return refusal.reason == "Forbidden" or _DENIED in refusal.message


def problems(refusal: Refusal) -> Iterator[str]:
    """A sentence for each thing that is wrong with a resource; none where the refusal is about something else."""
    for name in dict.fromkeys(_UNKNOWN.findall(refusal.message)):
        yield f"{name}: there is no such field in the cluster's definition: remove it, or check its spelling"
    for name in dict.fromkeys(_TWICE.findall(refusal.message)):
        yield f"{name}: is repeated: remove one"
    if refusal.code != 422:
        return
    seen: set[str] = set()
    for field, message in refusal.causes:
        text = _sentence(field, message)
        # Of a wrong value the server says its type and what else it is not.
        if text not in seen:
            seen.add(text)
            yield text


def fields_of(refusal: Refusal) -> frozenset[str]:
    """The fields that the server complains about."""
    unknown = _UNKNOWN.findall(refusal.message) + _TWICE.findall(refusal.message)
    return frozenset([field for field, _ in refusal.causes if field] + unknown)


def _not_found(refusal: Refusal) -> str:
    name, namespace = refusal.name, refusal.namespace
    if not name:
        return (
            "The cluster does not know LoRAFineTunes: check that --context names the right one, "
            "and ask its administrator whether the chart lora-finetune-operator is installed"
        )
    if refusal.kind == "namespaces":
        command = f"kubectl create namespace {shlex.quote(name)}"
        return f"There is no namespace {name}: check its spelling, or create it with {command}"
    if refusal.kind != "lorafinetunes":
        return f"There is no {refusal.kind.removesuffix('s')} {namespace}/{name}"
    return f"There is no LoRAFineTune {namespace}/{name}: lora list -n {namespace} lists them"


def _forbidden(refusal: Refusal) -> str:
    """A right that is lacking, or what refused the object, with the operator's remedy where that fits."""
    if _RIGHT.search(refusal.message):
        return f"You lack a right ({refusal.message}): {_role(refusal.message)}"
    said = f"The API server refused this: {refusal.message.rstrip('.')}"
    reason, remedy = classify_refusal(refusal.message)
    # A policy's sentence has a remedy of its own, and words on rights are the policy's here.
    if remedy == _ANY_REMEDY or reason == Reason.FORBIDDEN:
        return said
    if refusal.kind == "pods" and "new LoRAFineTune" in remedy:  # of a helper, whose run has ended
        remedy = "have the namespace's LimitRange changed"
    return f"{said}: {remedy}"


def _role(message: str) -> str:
    """Whom to ask for which role: one of a namespace gives no right to look at all of them."""
    found = _OURS.search(message)
    if found is None:
        return "ask the namespace's administrator for the role edit"
    role = "view" if found[1] in ("get", "list", "watch") else "edit"
    if message.endswith(_EVERYWHERE):
        return f"leave -A out, or ask the cluster's administrator for a ClusterRoleBinding of {role}"
    return (
        f"ask the namespace's administrator for the role {role} or, where the chart lists namespaces, for "
        f"lora-finetune-operator-{role}"
    )


def _sentence(field: str, message: str) -> str:
    """One cause. Types, enums and bounds come in the API server's own words; rules of the definition are sentences."""
    if message.startswith("Required value"):
        return f"{field} is missing: must be set"
    if match := _TYPE.search(message):
        return f"{field} is {_article(match[2])}: must be {_TYPES.get(match[1], match[1])}{_quoted(field, match)}"
    value = _value_of(message)
    where = field or "The resource"
    shown = where if value is None else str(Problem(path=where, value=value, rule="")).removesuffix(": ")
    return f"{shown}: {_rule(field, value, message)}"


def _rule(field: str, value: str | None, message: str) -> str:
    if match := _SUPPORTED.search(message):
        values = [one.strip().strip('"') for one in match[1].split(",")]
        return f"must be one of {', '.join(values)}{hint(field, value)}"
    if match := _AT_LEAST.search(message):
        return f"must be at least {match[1]}"
    if match := _AT_MOST.search(message):
        return f"must be at most {match[1]}"
    rule = (message.rpartition(": ")[2] if _RAW.search(message) else _after_value(message)).rstrip(".")
    if _IMMUTABLE in rule:
        return f"{rule}; lora clone NAME --set {field.removeprefix('spec.')}=VALUE makes one"
    return rule


def _value_of(message: str) -> str | None:
    match = _VALUE.match(message)
    value = match[2].strip().strip('"') if match and match[2] else None
    # Of a rule on an object older servers show only its type.
    return None if value in ("object", "array") else value


def _after_value(message: str) -> str:
    match = _VALUE.match(message)
    rest = message[match.end() :] if match else message
    return rest.lstrip(": ") or message


def _article(kind: str | None) -> str:
    return f"{'an' if kind and kind[0] in 'aeiou' else 'a'} {kind}" if kind else "of another type"


def _quoted(field: str, match: "re.Match[str]") -> str:
    """Numbers with a fraction are text in this API, since floats do not survive a round trip."""
    leaf = field.rpartition(".")[2]
    return (
        f', as in {leaf}: "0.0002" with the quotes'
        if match[1] == "string" and match[2] in ("number", "integer")
        else ""
    )
