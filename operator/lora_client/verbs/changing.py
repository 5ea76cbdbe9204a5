"""`lora validate`, `run`, `suspend`, `resume`, `clone`: what is asked of the cluster, and what it made of it."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lora_client.cluster.connection import MERGE_PATCH, Cluster, Object
from lora_client.documents import load_document
from lora_client.errors import FAILED
from lora_client.output import Form, data, note, show
from lora_client.verbs.checking import apply, check, existing, placed, print_notes, require_good
from lora_client.views.applied import ended_before, good, outcome
from lora_client.views.changes import Change, free_name, parse_change
from lora_client.views.changes import clone as changed
from lora_client.views.resources import name_of, part, result, state


def validate(cluster: Cluster, path: str, form: Form, *, asked: bool) -> int:
    """Ask the server about a file; 1 where it would be refused. Raises `ClientError` where nobody can be asked."""
    document = load_document(path)
    manifest = placed(cluster, document.resource, asked=asked)
    found = check(cluster, manifest)
    if form in (Form.JSON, Form.YAML):
        data(form, {"valid": not found.problems, "problems": list(found.problems), "notes": list(found.notes)})
    elif found.problems:
        for problem in found.problems:
            note(problem)
    else:
        before = existing(cluster, name_of(manifest)) if form is Form.TEXT else None
        show(form, [manifest], [good(name_of(manifest), path, before)])
        print_notes(found)
    return FAILED if found.problems else 0


def submit(cluster: Cluster, path: str, form: Form, *, asked: bool, follow: bool) -> Object:
    """Apply the LoRAFineTune of a file and print it; the run. Raises `ClientError` with a line for each problem.

    Where it is followed, `watch` prints it in the end; one answer is one document, so only text is printed twice.
    """
    document = load_document(path)
    manifest = placed(cluster, document.resource, asked=asked)
    require_good(cluster, manifest)
    before = existing(cluster, name_of(manifest))
    stored = apply(cluster, manifest)
    if document.others:
        others = ", ".join(document.others)
        note(f"Left alone in {path}: {others}; kubectl apply -f {shlex.quote(path)} makes them, too")
    ended = ended_before(stored, datetime.now(UTC))
    if form is Form.TEXT or not follow or ended:
        show(form, [stored], [f"{name_of(stored)} is {outcome(before, stored)} in namespace {cluster.namespace}"])
    if ended:
        note(ended)
    return stored


def set_suspended(cluster: Cluster, name: str, form: Form, *, suspend: bool) -> None:
    """Suspend a run or resume it. Raises `ClientError`."""
    run = cluster.get("lorafinetunes", name)
    verb = "suspend" if suspend else "resume"
    if result(run):
        sentence = f"{name} has ended ({state(run)}): there is nothing to {verb}; lora clone {name} starts it again"
        show(form, [run], [sentence])
        return
    was_suspended = bool(part(run, "spec").get("suspend"))
    run = patch_suspended(cluster, name, suspend=suspend)
    if suspend:
        sentence = f"{name} is being suspended: it saves its state and frees its GPUs; lora resume {name} continues it"
    else:
        sentence = f"{name} is {'resumed' if was_suspended else 'not suspended'}: lora watch {name}"
    show(form, [run], [sentence])


def patch_suspended(cluster: Cluster, name: str, *, suspend: bool) -> Object:
    """The run with that field. Raises `ClientError`."""
    path = cluster.path("lorafinetunes", name)
    return cluster.request("PATCH", path, body={"spec": {"suspend": suspend}}, content_type=MERGE_PATCH)


def clone(cluster: Cluster, name: str, new: str | None, changes: Sequence[str], form: Form, *, dry: bool) -> None:
    """Start a run made from another one. Raises `ClientError` with a line for each problem."""
    parsed = [parse_change(text) for text in changes]
    manifest = cloned(cluster, cluster.get("lorafinetunes", name), new, parsed)
    if dry:
        show(Form.YAML if form is Form.TEXT else form, [manifest], ())
        return
    stored = create(cluster, manifest)
    show(form, [stored], [f"{name_of(stored)} is made from {name}: lora watch {name_of(stored)}"])


def cloned(cluster: Cluster, run: Object, new: str | None, changes: Sequence[Change]) -> dict[str, Any]:
    """The manifest of a run made from another one, which the server would take. Raises `ClientError`."""
    new = new or free_name(name_of(run), {name_of(other) for other in cluster.items("lorafinetunes")})
    manifest = changed(run, new, changes)
    require_good(cluster, manifest)
    return manifest


def create(cluster: Cluster, manifest: Mapping[str, Any]) -> Object:
    """The run that the server makes of it. Raises `ClientError`."""
    query = {"fieldManager": "lora", "fieldValidation": "Strict"}
    return cluster.request("POST", cluster.path("lorafinetunes"), query=query, body=manifest)
