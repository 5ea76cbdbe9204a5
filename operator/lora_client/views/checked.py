"""What is wrong with a manifest, by the contract's own rules and by the API server's answer: a sentence for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_client.views.refusals import Refusal, fields_of, problems, sentence_of
from lora_client.views.resources import text
from lora_client.views.words import address_hint, field_hint, hint
from lora_trainer.spec.fields import Problem
from lora_trainer.spec.manifest import ManifestError, RunOptions, train_config
from lora_trainer.spec.release import RELEASE

_NO_FIELD = "there is no such field"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """`problems` keep the cluster from taking the manifest; `notes` are what this client would not have taken."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def own_problems(manifest: Mapping[str, Any]) -> tuple[Problem, ...]:
    """What breaks the contract's rules."""
    try:
        train_config(manifest, RunOptions(uid="", strict=True))
    except ManifestError as error:
        return error.problems
    return ()


def generated(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with a name that the server should make: nothing without one."""
    beginning = text(manifest, "metadata", "generateName")
    return (
        (f"metadata.generateName is {beginning}: is not taken here, name the run with metadata.name",)
        if beginning
        else ()
    )


def checked(own: Sequence[Problem], refusals: Sequence[Refusal]) -> Checked:
    """Both together. The server decides whether a manifest is good; of a bad field the contract's sentence is better,
    since it names the remedy."""
    by_path = {problem.path: shown(problem) for problem in own}
    if not refusals:
        return Checked(notes=tuple(f"{text} (by the rules of this client, {RELEASE})" for text in by_path.values()))
    refused = frozenset().union(*map(fields_of, refusals))
    theirs = [
        text
        for refusal in refusals
        # What a webhook denies may name no field, and is refused for all that.
        for text in list(problems(refusal)) or [sentence_of(refusal)]
        if not any(text.startswith((f"{path} ", f"{path}:")) for path in by_path)
    ]
    unknown = [field for field in refused if not any(f"{path}.".startswith(f"{field}.") for path in by_path)]
    older = [text if not _is_unknown(text, unknown) else _older(text) for text in theirs]
    return Checked(problems=tuple(dict.fromkeys([*by_path.values(), *older])))


def shown(problem: Problem) -> str:
    """The contract's sentence, with our word where the value or the field is another tool's."""
    if problem.rule.startswith(_NO_FIELD):
        # A field of this name elsewhere is nearer than one that is only spelt like it.
        return f"{problem.path}: {_NO_FIELD}{field_hint(problem.path)}" if field_hint(problem.path) else str(problem)
    if problem.rule.startswith(("has no supported scheme", "is not hf://")):
        return f"{problem}{address_hint(problem.path, problem.value)}"
    return f"{problem}{hint(problem.path, problem.value) if 'must be one of' in problem.rule else ''}"


def _is_unknown(text: str, fields: Sequence[str]) -> bool:
    return _NO_FIELD in text and text.partition(":")[0] in fields


def _older(text: str) -> str:
    field = text.partition(":")[0]
    return (
        f"{field}: the operator in the cluster does not know this field, which this client ({RELEASE}) does: remove "
        "it, or ask the administrator to upgrade the chart"
    )
