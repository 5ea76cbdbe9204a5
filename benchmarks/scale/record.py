"""The results in docs/benchmarks.md, between two markers, and the plot beside it."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import matplotlib as mpl
from benchmarks.scale.machine import MIB
from benchmarks.scale.rows import Point, Row
from matplotlib import pyplot as plt

BEGIN = "<!-- operator-scale: begin -->"
END = "<!-- operator-scale: end -->"
PLOT = "benchmarks-scale.svg"


def record(page: Path, rows: Sequence[Row], points: Sequence[Point], machine: str, day: date) -> None:
    """Put the table into the page, and the plot beside it where there are points."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{_section(rows, points, machine, day)}{END}{after}")
    if points:
        draw(page.with_name(PLOT), points)


def _section(rows: Sequence[Row], points: Sequence[Point], machine: str, day: date) -> str:
    lines = [
        f"Measured on {day.isoformat()} on {machine}. The last column is how busy the whole machine was meanwhile.",
        "",
        "| what | wanted | measured | busy |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.wanted} | {row.measured} | {100 * row.busy:.0f} % |" for row in rows),
        "",
    ]
    if points:
        lines += [
            f"![Latency and memory over the number of resources]({PLOT})",
            "",
            "| resources | apply to Job, p50 | p99 | ready after | memory |",
            "|---|---|---|---|---|",
            *(
                f"| {p.resources:,} | {p.p50_s:.3f} s | {p.p99_s:.3f} s | {p.ready_s:.1f} s | "
                f"{p.resident_bytes / MIB:.0f} MiB |"
                for p in points
            ),
            "",
        ]
    return "\n".join(lines)


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
