"""How a real Prometheus does with the chart's dashboards and alerts.

    .venv/bin/python benchmarks/monitoring.py [--parts queries firing quiet] [--record] [--runs 1000] [--hours 24]
                                              [--minutes 60]

queries  1,000 runs, 50 of which train at a time, and a day of samples at 60 s: how long every query of the dashboards
         and every rule takes. What is scraped comes from the code that exposes it, over statuses that are played; a Go
         program writes it as blocks, and Debian's Prometheus goes on scraping while it is asked.
firing   what those expose turns bad, and the operator ends: how long after that alerts fire.
quiet    100 healthy runs on a control plane of their own, some of which end and begin, an operator that is restarted
         every three minutes, and a Prometheus with the chart's alerts and default thresholds: which of them fire.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "operator", "trainer_image", ".")]

from benchmarks.monitored import parts
from benchmarks.scale.machine import description
from benchmarks.scale.record import record
from benchmarks.scale.rows import Row

from localcluster import packages, settings
from localcluster.console import Console

PARTS = ("queries", "firing", "quiet")
PAGE = REPOSITORY / "docs" / "benchmarks.md"


def main() -> int:
    """Measure, print as soon as it is known, record where that is asked for, and take everything down."""
    options = _options()
    # What was started is taken down then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    packages.ensure(packages.PROMETHEUS, Console(), settings.cache_directory() / "packages.log")
    print(description(), flush=True)
    for part in options.parts:
        found: list[Row] = []
        for row in _measure(part, options):
            print(row, flush=True)
            found.append(row)
        if options.record:
            record(PAGE, part, found, description(), datetime.now(UTC).date(), command=Path(__file__).name)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=1000, help="runs that exist at a time, of the part queries")
    parser.add_argument("--hours", type=float, default=24, help="hours of samples, of the part queries")
    parser.add_argument("--minutes", type=float, default=60, help="how long the part quiet lasts")
    parser.add_argument("--record", action="store_true", help="put what the parts found into docs/benchmarks.md")
    return parser.parse_args()


def _measure(part: str, options: argparse.Namespace) -> Iterator[Row]:
    if part == "queries":
        yield from parts.queries(options.runs, options.hours)
    elif part == "firing":
        yield from parts.firing()
    else:
        yield from parts.quiet(100, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
