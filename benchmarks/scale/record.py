"""The results in docs/benchmarks.md, between two markers, and the plot beside it."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import matplotlib as mpl
from benchmarks.scale.machine import MIB
from benchmarks.scale.rows import Point, Row
from matplotlib import pyplot as plt

PLOT = "benchmarks-scale.svg"


def record(
    page: Path,
    part: str,
    found: Sequence[Row | Point],
    machine: str,
    day: date,
    *,
    command: str = "operator_scale.py",
) -> None:
    """Put what a part found between its markers on the page, and the plot beside it where there are points.

    Raises ValueError where the page has no such markers.
    """
    begin, end = markers(part, command)
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    rows = [item for item in found if isinstance(item, Row)]
    points = [item for item in found if isinstance(item, Point)]
    text = "\n".join([f"Measured on {day.isoformat()} on {machine}.", "", *_rows(rows), *_points(points)])
    page.write_text(f"{before}{begin}\n{text}{end}{after}")
    if points:
        draw(page.with_name(PLOT), points)


def markers(part: str, command: str) -> tuple[str, str]:
    """What stands on the page around a part of a command."""
    return f"<!-- {command} {part}: begin -->", f"<!-- {command} {part}: end -->"


def _rows(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {row.what} | {row.wanted} | {row.measured} | {100 * row.busy:.0f} % |" for row in rows]
    return ["| what | wanted | measured | machine busy |", "|---|---|---|---|", *lines, ""]


def _points(points: Sequence[Point]) -> list[str]:
    if not points:
        return []
    cells = [
        (
            f"{p.resources:,}",
            *(f"{seconds:.3f} s" for seconds in (p.p50_s, p.p99_s)),
            f"{p.ready_s:.1f} s",
            f"{p.resident_bytes / MIB:.0f} MiB",
        )
        for p in points
    ]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [
        f"![Latency and memory over the number of resources]({PLOT})",
        "",
        "| LoRAFineTunes | apply to Job, p50 | p99 | ready after | memory |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]


def draw(file: Path, points: Sequence[Point]) -> None:
    """Two panels over the number of resources: latency from apply to Job, and memory."""
    mpl.use("svg")
    # Text as text and the same identifiers each time: a small file, whose changes are those of the numbers.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "operator-scale"}):
        figure, (latency, memory) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        resources = [point.resources for point in points]
        latency.plot(resources, [1000 * point.p50_s for point in points], marker="o", label="p50")
        latency.plot(resources, [1000 * point.p99_s for point in points], marker="s", label="p99")
        latency.set_ylabel("apply to Job at 20/s, ms")
        latency.legend(frameon=False)
        memory.plot(resources, [point.resident_bytes / MIB for point in points], marker="o", color="tab:green")
        memory.axhline(200, linestyle=":", color="gray")
        memory.set_ylabel("operator's resident memory, MiB")
        for axes in (latency, memory):
            axes.set_xlabel("LoRAFineTunes in the cluster")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
