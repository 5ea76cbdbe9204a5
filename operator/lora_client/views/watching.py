"""A run that is watched: a line for each change in a pipe, a picture on a terminal."""

from collections.abc import Mapping
from datetime import datetime

from lora_client.views.curve import chart
from lora_client.views.resources import Object, name_of, namespace_of, part, since, state, text, waiting_for
from lora_client.views.summary import speed

_BAR = 24


def line(resource: Object, place: str) -> str:
    """State, steps, loss, speed and time left; or, while nothing runs, what it waits for. `place` is the queue's."""
    progress = part(resource, "status", "progress")
    waits = waiting_for(resource)
    # The state of a run that waits is the reason why it waits.
    parts = ["" if waits else state(resource)]
    if progress.get("phase") and not waits:
        parts += [f"step {progress['steps']}" if progress.get("steps") else "", *speed(progress)]
    return " · ".join(filter(None, [*parts, waits, place]))


def picture(resource: Object, points: Mapping[int, float], place: str, now: datetime, width: int) -> list[str]:
    """What a terminal of `width` columns shows."""
    progress, waits = part(resource, "status", "progress"), waiting_for(resource)
    attempt = text(resource, "status", "attempt")
    head = [f"{namespace_of(resource)}/{name_of(resource)}", state(resource)]
    head += [f"for {lasting}"] if (lasting := since(text(resource, "status", "stateSince"), now)) else []
    head += [f"attempt {attempt}"] if attempt not in ("", "0", "1") else []
    lines = [" · ".join(head)]
    lines += [f"  {part_}" for part_ in (waits, place) if part_]
    if progress.get("steps") and not waits:
        share = int(progress.get("percentage") or 0)
        full = share * _BAR // 100
        lines.append(f"  step {progress['steps']} {'█' * full}{'░' * (_BAR - full)} {share}%")
        lines.append(f"  {' · '.join(speed(progress))}")
    lines += [f"  {row}" for row in chart(points, width - 2)]
    return [*(row[:width] for row in lines), "  Ctrl-C leaves; the run continues"]


def point_of(resource: Object) -> dict[int, float]:
    """Step and loss of the status; empty where there is none."""
    progress = part(resource, "status", "progress")
    try:
        return {int(progress["step"]): float(progress["loss"])}
    except (KeyError, TypeError, ValueError):
        return {}
