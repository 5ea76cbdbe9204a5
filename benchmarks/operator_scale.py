"""How the operator does with a fleet: creation, cold start, memory, rest, and runs that all fail at once.

    .venv/bin/python benchmarks/operator_scale.py [--parts creation preflights fleet scrape failure training hostile
                                                          kubeflow] [--loads 1 2 3] [--record] [--operator FOLDER]

Each part starts a control plane of its own (etcd, API server, controllers, scheduler; no node: pods wait, or their life
is played by writing their status) and one operator process with its production settings.

creation   LoRAFineTunes at 20/s, at 100/s and as fast as the API server takes them: the time until each has its Job
preflights 1,000 runs with a preflight at once, until each has its training's Job: by the controllers' rate
fleet      a cluster that fills up with finished runs, their Jobs and pods: latency, memory, cold start, and rest
scrape     one scrape of 1,000 and of 6,000 finished runs
failure    1,000 running runs that all fail at once: the time until each says so, and what it costs
training   1,000 runs that train and report: the statuses that are written, and what they cost operator and API server
hostile    1,600 suspended runs of 256 KiB and 480 pods that never answer: memory, and what another namespace notices
kubeflow   the same creations against Kubeflow Trainer with JobSet, and this operator beside it, in turns; needs root,
           and more than an hour; 22 minutes without the five rounds of the first load (`--loads 2 3`)
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "operator", "trainer_image", ".")]

from benchmarks.scale import kubeflow, parts, tenants
from benchmarks.scale.kubeflow import Load
from benchmarks.scale.machine import description
from benchmarks.scale.processes import SOURCES
from benchmarks.scale.record import commit_of, record
from benchmarks.scale.rows import Row

PARTS = ("creation", "preflights", "fleet", "scrape", "failure", "training", "hostile", "kubeflow")


def main() -> int:
    """Measure, print as soon as it is known, record where that is asked for, and take everything down."""
    options = _options()
    if options.operator:
        os.environ[SOURCES] = str(options.operator.resolve())
    # What was started is taken down then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(description(), flush=True)
    for part in options.parts:
        found: list[Row] = []
        for row in _measure(part, options):
            print(row, flush=True)
            found.append(row)
        if options.record:
            record(
                f"benchmarks/{Path(__file__).name} --parts {part}",
                found,
                commit=commit_of(options.operator or REPOSITORY),
                machine=description(),
                day=datetime.now(UTC).date(),
            )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of all numbers of resources, for a quick look")
    parser.add_argument("--loads", nargs="+", type=int, choices=(1, 2, 3), default=(1, 2, 3), help="of part kubeflow")
    parser.add_argument("--rest", type=float, default=60, help="seconds to watch the operator at rest")
    parser.add_argument("--operator", type=Path, help="checkout of another release, whose operator is to be measured")
    parser.add_argument("--record", action="store_true", help="put what the parts found into results/results.yaml")
    return parser.parse_args()


def _measure(part: str, options: argparse.Namespace) -> Iterator[Row]:
    def share_of(count: int) -> int:
        return max(10, int(count * options.scale))

    if part == "creation":
        yield parts.creation(20, share_of(400), "p50 <= 0.02 s, p99 <= 0.1 s")
        yield parts.creation(100, share_of(1000), "p99 <= 0.5 s, last Job <= 12 s")
        yield parts.creation(None, share_of(1000), "last Job <= 8 s")
    elif part == "preflights":
        yield from parts.preflights(share_of(1000))
    elif part == "fleet":
        yield from parts.fleet(share_of(5000), share_of(1000), options.rest)
    elif part == "scrape":
        yield parts.scrape(share_of(1000), "<= 0.3 s, 5 MB; compressed 0.5 MB, a third longer")
        yield parts.scrape(share_of(6000), "<= 1.22 s, <= 230 MiB")
    elif part == "failure":
        yield from parts.mass_failure(share_of(1000))
    elif part == "training":
        yield from tenants.training(share_of(1000), max(20, 240 * min(1.0, options.scale)))
    elif part == "hostile":
        yield from tenants.hostile(share_of(1600), share_of(480), max(5, 120 * min(1.0, options.scale)))
    else:
        loads = [
            Load(count=share_of(400), rate=20, rounds=5, wanted={"p99": "<= 0.8 x"}),
            Load(count=share_of(1000), rate=100, wanted={"last creation to last Job": "<= 0.1 x"}),
            Load(count=share_of(1000), rate=None, wanted={"last Job": "<= 0.35 x"}),
        ]
        yield from kubeflow.compare([loads[number - 1] for number in options.loads])


if __name__ == "__main__":
    sys.exit(main())
