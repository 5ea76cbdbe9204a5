"""How the operator does with a fleet: creation, cold start, memory, rest, and runs that all fail at once.

    .venv/bin/python benchmarks/operator_scale.py [--parts creation fleet failure] [--record]

Each part starts a control plane of its own (etcd, API server, controllers, scheduler; no node: pods wait, or their life
is played by writing their status) and one operator process with its production settings.
"""

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "operator", "trainer_image", ".")]

from benchmarks.scale import parts  # noqa: E402 - found by the path set above
from benchmarks.scale.machine import description  # noqa: E402 - as above

PARTS = ("creation", "fleet", "failure")


def main() -> int:
    """Measure, print, and take everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", type=float, default=1.0, help="share of all numbers of resources, for a quick look")
    parser.add_argument("--rest", type=float, default=60, help="seconds to watch the operator at rest")
    options = parser.parse_args()

    def n(count: int) -> int:
        return max(10, int(count * options.scale))

    rows: list[parts.Row] = []
    points: list[parts.Point] = []

    def show(row: parts.Row) -> None:
        rows.append(row)
        print(f"{row.what}: {row.measured} (wanted: {row.wanted}; machine {100 * row.busy:.0f} % busy)", flush=True)

    print(description(), flush=True)
    if "creation" in options.parts:
        show(parts.creation(20, n(400), "p50 <= 0.02 s, p99 <= 0.1 s"))
        show(parts.creation(100, n(1000), "p99 <= 0.5 s, last Job <= 12 s"))
        show(parts.creation(None, n(1000), "last Job <= 8 s"))
    if "fleet" in options.parts:
        found, points = parts.fleet(n(5000), n(1000), options.rest)
        for row in found:
            show(row)
        for point in points:
            print(point)
    if "failure" in options.parts:
        for row in parts.mass_failure(n(1000)):
            show(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
