"""A LoRAFineTune's status as one line, and whether it has ended. Pure functions of the resource."""

from typing import Any

Resource = dict[str, Any]
_WAITING = ("Suspended", "Accepted", "PodsReady")


def condition(resource: Resource, kind: str) -> dict[str, str]:
    """Return the condition of that type, or an empty one."""
    conditions: list[dict[str, str]] = resource.get("status", {}).get("conditions", [])
    return next((found for found in conditions if found.get("type") == kind), {})


def has_ended(resource: Resource) -> bool:
    """Tell whether the run is over, well or badly."""
    return is_complete(resource) or condition(resource, "Failed").get("status") == "True"


def is_complete(resource: Resource) -> bool:
    """Tell whether the run ended with a verified adapter."""
    return condition(resource, "Complete").get("status") == "True"


def failure(resource: Resource) -> str:
    """Return why the run failed, as its conditions say it: "reason: message"."""
    failed = condition(resource, "Failed")
    return f"{failed.get('reason', 'unknown reason')}: {failed.get('message', 'no message')}"


def line(resource: Resource) -> str:
    """Return phase, steps, loss, speed and remaining time; or, while nothing runs, what it waits for."""
    progress = resource.get("status", {}).get("progress", {})
    waiting = waiting_for(resource)
    # The state of a run that waits is the reason why it waits, which the end of the line tells already.
    state = "" if waiting else condition(resource, "Complete").get("reason", "Pending")
    parts = [progress.get("phase") or state]
    if "steps" in progress:
        parts.append(f"step {progress['steps']}")
    parts += [
        f"{label}{progress[name]}{unit}"
        for name, label, unit in (
            ("loss", "loss ", ""),
            ("tokensPerSecond", "", " tokens/s"),
            ("eta", "ETA ", ""),
        )
        if name in progress
    ]
    return " · ".join(part for part in (*parts, waiting) if part)


def waiting_for(resource: Resource) -> str:
    """Return the reason and message of the condition that holds the run up, or an empty string."""
    for kind in _WAITING:
        found = condition(resource, kind)
        holds_up = "True" if kind == "Suspended" else "False"
        if found.get("status") == holds_up and found.get("message"):
            return f"{found.get('reason', kind)}: {found['message']}"
    return ""
