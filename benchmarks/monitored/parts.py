"""The parts of the benchmark."""

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.monitored.chart import rendered
from benchmarks.monitored.day import SCRAPE_S, write
from benchmarks.monitored.firing import SCRAPE_S as INTERVAL_S
from benchmarks.monitored.firing import fired
from benchmarks.monitored.life import TRAINS_S, runs
from benchmarks.monitored.queries import dashboard, rules, told
from benchmarks.monitored.quiet import watched
from benchmarks.monitored.serving import Prometheus, a_prometheus, announce, serve
from benchmarks.monitored.targets import Fleet, Target
from benchmarks.scale.machine import MIB, Busy
from benchmarks.scale.rows import Row

from dashgen import fleet, run
from dashgen.prometheus import Span
from localcluster import ports

_EVALUATE_S = 15
_WATCH_S = 8 * _EVALUATE_S
_ROUNDS = 3
_FRESH_S = 10


class _Live:
    """The targets of a fleet as they are now, of which a Prometheus is told when they become others."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self._fleet, self._folder = fleet, folder
        self._targets: list[Target] = []
        self._at_s = 0.0

    def targets(self) -> list[Target]:
        """Those of the last moments."""
        now_s = time.time()
        if now_s - self._at_s > _FRESH_S:
            paths = [target.path for target in self._targets]
            self._targets, self._at_s = self._fleet.at(now_s), now_s
            if paths != [target.path for target in self._targets]:
                announce(self._folder, self._targets)
        return self._targets


def queries(total: int, hours: float) -> Iterator[Row]:
    """Every query of both dashboards and every rule, over so many hours of a fleet of so many runs."""
    chart = rendered()
    exposed, port = ports.choose(2, random.Random())  # noqa: S311 - a port number is no secret
    played = Fleet(total, chart, f"127.0.0.1:{exposed}")
    with tempfile.TemporaryDirectory() as name:
        folder, busy, began_s = Path(name), Busy(), time.monotonic()
        end_s = time.time() // SCRAPE_S * SCRAPE_S
        write(played, folder / "data", end_s - hours * 3600, end_s)
        size = sum(file.stat().st_size for file in (folder / "data").rglob("*") if file.is_file())
        yield Row(
            what=f"{hours:g} h of {total:,} runs at {SCRAPE_S} s as blocks",
            wanted="",
            measured=f"{size / MIB:.0f} MiB, written in {time.monotonic() - began_s:.0f} s",
            busy=busy.share(),
        )
        live = _Live(played, folder)
        live.targets()
        with (
            serve(exposed, live.targets),
            a_prometheus(folder, chart, port, scrape_s=SCRAPE_S, evaluate_s=_EVALUATE_S) as prometheus,
        ):
            time.sleep(2 * SCRAPE_S)  # until everything was scraped, and evaluations have something to read
            yield _rules(prometheus.url)
            yield from _dashboards(prometheus, total, hours)


def _rules(url: str) -> Row:
    busy = Busy()
    *single, group = rules(url, _WATCH_S)
    return Row(
        what=f"{len(single)} rules, {len(group.seconds)} evaluations of each",
        wanted="each <= 0.2 s",
        measured=f"{told(single)}; all of them together {max(group.seconds):.3f} s at most",
        busy=busy.share(),
    )


def _dashboards(prometheus: Prometheus, total: int, hours: float) -> Iterator[Row]:
    now_s = time.time()
    shown = min(runs(total, now_s), key=lambda one: abs(now_s - one.started_s - TRAINS_S / 2))
    of_run = {"namespace": shown.namespace, "name": shown.name}
    for board, chosen in ((fleet.BOARD, {"namespace": ".*"}), (run.BOARD, of_run)):
        for span_h in sorted({float(board.span.removesuffix("h")), hours}):
            busy, end_s = Busy(), time.time()
            span = Span(begin_s=end_s - span_h * 3600, end_s=end_s, scrape_s=SCRAPE_S)
            found = dashboard(prometheus, board, span, chosen, _ROUNDS)
            yield Row(
                what=f"{board.title}, {len(found)} queries over {span_h:g} h, {_ROUNDS} times",
                wanted="each <= 1 s",
                measured=told(found),
                busy=busy.share(),
            )


def quiet(count: int, minutes: float) -> Iterator[Row]:
    """Which alerts fire over healthy runs."""
    busy = Busy()
    seen = watched(count, minutes)
    alarms = ", ".join(f"{name} {state}" for name, state in sorted(seen.alerts)) or "none"
    yield Row(
        what=f"alarms in {minutes:g} min of {count} healthy runs, the operator restarted {seen.restarts} times",
        wanted="0 that fire",
        measured=(
            f"{sum(state == 'firing' for _, state in seen.alerts)} fired, "
            f"{sum(state == 'pending' for _, state in seen.alerts)} were pending ({alarms}); {seen.evaluations:,} "
            f"evaluations of rules; {seen.ended} runs ended and as many began, {seen.told} had a state and "
            f"{seen.training} a heartbeat at the end"
        ),
        busy=busy.share(),
    )


def firing() -> Iterator[Row]:
    """How soon alerts fire, by the default durations."""
    busy = Busy()
    for one in fired():
        held = f"holds {one.holds_after_s:.0f} s after the fault and " if one.holds_after_s else ""
        yield Row(
            what=f"{one.alert}, whose condition {held}must last {one.for_s:.0f} s: from the fault until it fires",
            wanted=f"{one.holds_after_s + one.for_s + 2 * INTERVAL_S:.0f} s",
            measured=f"{one.after_s:.1f} s",
            busy=busy.share(),
        )
