"""A run that is watched: a line for each change in a pipe, a picture on a terminal."""

import textwrap
from collections.abc import Mapping
from datetime import datetime

from lora_client.views.curve import chart
from lora_client.views.resources import Object, name_of, namespace_of, part, since, state, text, waiting_for
from lora_client.views.summary import speed

_BAR = 24
_LAST = "  Ctrl-C leaves; the run continues"


def line(resource: Object, place: str, now: datetime) -> str:
    """State, steps, loss, speed and time left; or, while it does not advance, why. `place` is the queue's."""
    progress, waits = part(resource, "status", "progress"), waiting_for(resource, now)
    # The state of a run that waits is the reason why it waits.
    parts = [waits or state(resource)]
    if progress.get("phase"):
        parts += [f"step {progress['steps']}" if progress.get("steps") else "", *([] if waits else speed(progress))]
    return " · ".join(filter(None, [*parts, place]))


def picture(
    resource: Object, points: Mapping[int, float], place: str, now: datetime, *, width: int, height: int
) -> list[str]:
    """What a terminal of so many columns and rows shows: why a run waits rather than the curve, which may not fit."""
    progress, waits = part(resource, "status", "progress"), waiting_for(resource, now)
    attempt = text(resource, "status", "attempt")
    head = [f"{namespace_of(resource)}/{name_of(resource)}", state(resource)]
    head += [f"for {lasting}"] if (lasting := since(text(resource, "status", "stateSince"), now)) else []
    head += [f"attempt {attempt}"] if attempt not in ("", "0", "1") else []
    lines = [" · ".join(head), *_wrapped(waits, width)]
    lines += [f"  {place}"] if place else []
    if progress.get("steps"):
        share = int(progress.get("percentage") or 0)
        full = share * _BAR // 100
        lines.append(f"  step {progress['steps']} {'█' * full}{'░' * (_BAR - full)} {share}%")
        lines += [] if waits else [f"  {' · '.join(speed(progress))}"]
    curve = [f"  {row}" for row in chart(points, width - 2)]
    if len(lines) + len(curve) < height:
        lines += curve
    return [row[:width] for row in [*lines[: height - 1], _LAST]]


def _wrapped(sentence: str, width: int) -> list[str]:
    # A name or a toleration that was broken at its hyphens could not be copied.
    return textwrap.wrap(
        sentence, max(20, width), initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )


def point_of(resource: Object) -> dict[int, float]:
    """Step and loss of the status; empty where there is none."""
    progress = part(resource, "status", "progress")
    try:
        return {int(progress["step"]): float(progress["loss"])}
    except (KeyError, TypeError, ValueError):
        return {}
