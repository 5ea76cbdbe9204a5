"""The operator is killed before and after every write of a run, and the run ends as if nothing had happened.

A golden run numbers the writes. Then each of them has a run of its own whose operator is killed at it: the proxy holds
the write back, or the answer to it. Many runs are held side by side, each at its own write, and one SIGKILL hits all.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from tests.component.documents import Object
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults import plays
from tests.faults.calls import Call
from tests.faults.injections import Hold, Rule
from tests.faults.masks import mask
from tests.faults.plays import Play, Player, look

from lora_operator.cluster.api import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from tests.faults.proxy import FaultProxy

PLAYS: tuple[Play, ...] = (plays.plain, plays.prepared, plays.retried, plays.expired, plays.recreated)
MOST_AT_ONCE = 40
SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
PATIENCE_S = 300.0
LONGEST_HOLD_S = 0.8 * REQUEST_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A write of a play, the `ordinal`-th that says so, held before or after it is answered.

    `at_s` is when it came in the golden run, and `code` what it was answered with.
    """

    play: Play
    says: str
    ordinal: int
    code: int
    at_s: float
    answered: bool


class Theatre:
    """A stage whose operator is reached through a proxy, with room for many held writes at once."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.proxy: FaultProxy = stage.proxy()
        self.operator = self.start()
        self._numbers = count()

    def start(self) -> OperatorProcess:
        """One operator; each held write occupies a worker."""
        self.operator = self.stage.start(proxy=self.proxy, cacheClaim="cache", workers=2 * MOST_AT_ONCE)
        return self.operator

    def player(self, play: Play) -> Player:
        """A run of its own."""
        return Player(stage=self.stage, name=f"{play.__name__}-{next(self._numbers):03}", play=play)

    def play(self, players: Iterable[Player], what: str) -> None:
        """Go on until all plays are over; fails with what those that are not wait for."""
        players = list(players)
        try:
            eventually(partial(self.all_over, players), what, deadline_s=PATIENCE_S)
        except AssertionError as error:
            for player in players:
                if not player.over:
                    error.add_note(player.stuck())
                    error.add_note("".join(f"{line}\n" for line in self.lines() if player.name in line))
            error.add_note(self.operator.text()[-4000:])
            raise

    def lines(self) -> list[str]:
        """What all operators of this stage said, one after the other."""
        return [line for operator in self.stage.operators for line in operator.text().splitlines()]

    def writes(self, player: Player) -> list[Call]:
        """What the operator wrote for a run."""
        return [call for call in self.proxy.made(about=f"{player.name}*") if call.mutates]

    def all_over(self, players: Iterable[Player]) -> bool:
        """Go on with all plays; whether they are over."""
        look(self.stage, list(players))
        return all(player.over for player in players)

    def end_state(self, player: Player) -> Object:
        """What must be the same whatever happened to the operator: status, children, and what was made and deleted."""
        done = [c for c in self.writes(player) if c.verb in ("create", "delete") and 200 <= c.code < 300]
        made = Counter(f"{call.what} {mask(call.name, player.name)}" for call in done if call.resource != "events")
        children = [*self.stage.objects("jobs"), *self.stage.objects("services")]
        names = sorted(f"{child['metadata']['name']}" for child in children)
        status = self.stage.finetune(player.name)["status"]
        return {
            "status": mask(status, player.name),
            "children": [mask(name, player.name) for name in names if name.startswith(player.name)],
            "made": dict(made),
        }


@pytest.mark.fault("A1")
def test_an_operator_that_is_killed_at_any_write_leaves_no_trace_in_the_end(stage: Stage) -> None:
    """0 duplicates and 0 lost verdicts over all points: status, children and what was made are those of golden runs."""
    theatre = Theatre(stage)
    golden: dict[Play, Object] = {}
    points: list[Point] = []
    pairs = {play: (theatre.player(play), theatre.player(play)) for play in PLAYS}
    everybody = [player for pair in pairs.values() for player in pair]
    theatre.play(everybody, "the golden runs are over")
    for play, (first, second) in pairs.items():
        _expect(partial(_chronicle, theatre, second), partial(_chronicle, theatre, first), play.__name__)
        golden[play] = theatre.end_state(first)
        known = Counter(_says(call, second.name) for call in theatre.writes(second))
        points += [p for p in _points(play, theatre.writes(first), first.name) if p.ordinal <= known[p.says]]
    groups = _groups(points if SOAK else _new_ones(points))
    missed = [point for group in groups for point in _crash_at(theatre, group, golden)]
    total = sum(map(len, groups))
    if len(missed) > total / 10:
        missed = _crash_at(theatre, missed, golden)  # on a machine that was too busy
    print(f"{total} points in {len(groups)} crashes; missed: {[point.says for point in missed]}")
    assert len(missed) <= total / 10


def _chronicle(theatre: Theatre, player: Player) -> Object:
    """What was written for a run, one after the other, and how it ended.

    Events come in their own time, and which states in between are told depends on how fast the cluster is.
    """
    writes = [call for call in theatre.writes(player) if call.resource not in ("events", "lorafinetunes")]
    return {"writes": [_says(call, player.name) for call in writes], **theatre.end_state(player)}


def _says(call: Call, name: str) -> str:
    """A write without what differs from run to run: of a status the state, of an Event the reason."""
    if call.resource == "lorafinetunes":
        conditions: list[dict[str, Any]] = call.body["status"]["conditions"]
        return f"{call.what} {next(c['reason'] for c in conditions if c['type'] == 'Complete')}"
    return f"{call.what} {call.body['reason'] if call.resource == 'events' else mask(call.name, name)}"


def _points(play: Play, calls: list[Call], name: str) -> list[Point]:
    """Both sides of every write of a run."""
    ordinals: Counter[str] = Counter()
    points = []
    for call in calls:
        says = _says(call, name)
        ordinals[says] += 1
        point = partial(Point, play=play, says=says, ordinal=ordinals[says], code=call.code)
        points += [point(at_s=call.at_s - calls[0].at_s, answered=answered) for answered in (False, True)]
    return points


def _new_ones(points: list[Point]) -> list[Point]:
    """Without those that say what an earlier one of the same play did."""
    seen: dict[tuple[Play, str, int, bool], Point] = {}
    for point in points:
        seen.setdefault((point.play, point.says, point.code, point.answered), point)
    return list(seen.values())


def _groups(points: list[Point]) -> list[list[Point]]:
    """Points that are reached at about the same time; of Events, which are posted one by one, one to a group."""
    writes = sorted((p for p in points if not _is_event(p)), key=lambda point: point.at_s)
    events = [p for p in points if _is_event(p)]
    groups = [writes[start : start + MOST_AT_ONCE] for start in range(0, len(writes), MOST_AT_ONCE)]
    if SOAK:
        return [*groups, *([event] for event in events)]
    # Both sides, early ones as well as late ones.
    return [[*group, events[number * (len(events) // len(groups)) + number % 2]] for number, group in enumerate(groups)]


def _is_event(point: Point) -> bool:
    return point.says.startswith("create events ")


def _crash_at(theatre: Theatre, points: list[Point], golden: dict[Play, Object]) -> list[Point]:
    """Play a run for each point up to it, kill the operator, start another one, and compare how the runs end.

    Returns the points that were not reached: their runs skipped that state this time, or came to it too late. The
    operator is killed all the same, before it gives up the calls that are held.
    """
    players = {point: theatre.player(point.play) for point in points}
    rules = {point: theatre.proxy.add(_hold(point, player.name)) for point, player in players.items()}
    held_since_s: list[float] = []

    def enough_held() -> bool:
        look(theatre.stage, list(players.values()))
        held = [point for point in points if rules[point].hits]
        held_since_s.extend([time.monotonic()] if held and not held_since_s else [])
        all_that_come = all(rules[point].hits or player.over for point, player in players.items())
        return all_that_come or bool(held_since_s and time.monotonic() > held_since_s[0] + LONGEST_HOLD_S)

    eventually(enough_held, "a run has come to its point", deadline_s=PATIENCE_S)
    held = [call.about for call in theatre.proxy.held]
    missed = [p for p, player in players.items() if not any(about.startswith(player.name) for about in held)]
    theatre.operator.kill()
    for rule in rules.values():
        rule.lift()
    theatre.start()
    theatre.play(players.values(), "the plays are over in spite of the crash")
    for point, player in players.items():
        _expect(partial(theatre.end_state, player), partial(golden.__getitem__, point.play), point)
    return missed


def _hold(point: Point, name: str) -> Rule:
    def where(call: Call) -> bool:
        return call.mutates and _says(call, name) == point.says

    return Rule(fault=Hold(answered=point.answered), about=f"{name}*", where=where, skip=point.ordinal - 1, times=1)


def _expect(seen: Callable[[], Object], wanted: Callable[[], Object], where: object) -> None:
    """Both become the same once what goes on has ended."""
    try:
        eventually(lambda: seen() == wanted(), "the runs end alike", deadline_s=120)
    except AssertionError:
        assert seen() == wanted(), where
