"""What became of a manifest that was applied: a run that begins, one that goes on, or one that has ended before."""

import shlex
from datetime import datetime

from lora_client.views.resources import Object, name_of, namespace_of, part, result, since, state, text


def good(name: str, path: str, before: Object | None) -> str:
    """That the manifest of a file would be taken, and what `lora run` then does."""
    run = f"lora run -f {shlex.quote(path)}"
    if before is None:
        return f"{name} is good: {run} starts it"
    if result(before):
        return f"{name} is good, but has ended ({state(before)}): lora clone {name} starts it again, {run} does not"
    return f"{name} is good, and exists already ({state(before)}): {run} applies what differs and watches it"


def outcome(before: Object | None, after: Object) -> str:
    """As kubectl says it: created, changed or unchanged."""
    if before is None:
        return "created"
    return "unchanged" if _content(before) == _content(after) else "changed"


def _content(run: Object) -> tuple[Object, ...]:
    return part(run, "spec"), part(run, "metadata", "labels"), part(run, "metadata", "annotations")


def ended_before(run: Object, now: datetime) -> str:
    """That an end is an old one; empty for a run that has not ended."""
    if not result(run):
        return ""
    name, namespace = name_of(run), namespace_of(run)
    ago = since(text(run, "status", "completionTime"), now)
    when = f" {ago} ago" if ago else ""
    return (
        f"{name} ended{when} ({state(run)}), and nothing was started: lora clone {name} -n {namespace} starts it "
        f"again, or kubectl delete lft {name} -n {namespace} frees its name"
    )
