"""The curve of a loss in a terminal's letters, and its points out of a trainer's log."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

_STEP = re.compile(r"step (\d{1,9})/\d{1,9}  loss (\d{1,6}\.\d{1,6})")
_JSON_STEP = re.compile(r'"step": (\d{1,9})\b')
_JSON_LOSS = re.compile(r'"loss": (\d{1,6}\.\d{1,12})')
BARS = "▁▂▃▄▅▆▇█"
_EIGHTHS = f" {BARS}"


def points_in(lines: Iterable[str]) -> dict[int, float]:
    """Step to loss, by a trainer's log in either form."""
    found: dict[int, float] = {}
    for line in lines:
        if match := _STEP.search(line):
            found[int(match[1])] = float(match[2])
        elif (step := _JSON_STEP.search(line)) and (loss := _JSON_LOSS.search(line)):
            found[int(step[1])] = float(loss[1])
    return found


def chart(points: Mapping[int, float], width: int, height: int = 6) -> list[str]:
    """Lines of bars, the highest loss at the top and steps from left to right; none for fewer than two points."""
    if len(points) < 2 or width < 20:
        return []
    values = _columns(points, width - 9)
    low, high = min(values), max(values)
    span = high - low or 1.0
    # The lowest bar is one eighth high, so that a column without a bar is never taken for a loss.
    eighths = [1 + round((value - low) / span * (height * 8 - 1)) for value in values]
    lines = []
    for row in range(height, 0, -1):
        label = f"{high:8.3f}" if row == height else f"{low:8.3f}" if row == 1 else " " * 8
        bars = "".join(_EIGHTHS[max(0, min(8, count - 8 * (row - 1)))] for count in eighths)
        lines.append(f"{label} {bars}".rstrip())
    steps = sorted(points)
    ends = f"{steps[0]}", f"step {steps[-1]}"
    return [*lines, f"{'':9}{ends[0]}{ends[1]:>{max(1, len(values) - len(ends[0]))}}"]


def _columns(points: Mapping[int, float], most: int) -> Sequence[float]:
    """The mean loss of each column; with fewer points than columns each point is one."""
    losses = [points[step] for step in sorted(points)]
    if len(losses) <= most:
        return losses
    cuts = [len(losses) * column // most for column in range(most + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
