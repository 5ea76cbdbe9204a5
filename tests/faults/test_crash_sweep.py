"""The operator is killed before and after every write of a run, and the run ends as if nothing had happened.

A golden run numbers the writes. Then each of them has a run of its own whose operator is killed at it: the proxy holds
the write back, or the answer to it. Many runs are held side by side, each at its own write, and one SIGKILL hits all.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, zip_longest
from typing import TYPE_CHECKING, Any

import pytest
from tests.component.documents import Object
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults import plays
from tests.faults.calls import Call
from tests.faults.hostile_pods import Pods, played_pods
from tests.faults.injections import Hold, Rule
from tests.faults.masks import mask
from tests.faults.one_run import Run
from tests.faults.plays import Play, Player, look
from tests.faults.proofs import Proofs
from tests.faults.queue_kind import kueue

from lora_operator.cluster.api import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from tests.faults.proxy import FaultProxy

__all__ = ["kueue"]

PLAYS: tuple[Play, ...] = (
    plays.plain,
    plays.looked_at,
    plays.retried,
    plays.expired,
    plays.recreated,
    plays.on_two_nodes,
    plays.queued,
    plays.progressing,
)
# The kinds that the golden runs must write, or their points would be missed without anybody noticing.
WRITTEN = {
    "create jobs",
    "patch jobs",
    "delete jobs",
    "create services",
    "patch workloads",
    "update lorafinetunes/status",
    "create events",
}
# A point that a run passes by, as which states in between are written depends on time, is gone back to so often.
ROUNDS = 5
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


class Harness:
    """A stage whose operator is reached through a proxy, with room for many held writes at once."""

    def __init__(self, stage: Stage, played: Pods) -> None:
        self.stage = stage
        self.played = played
        self.proxy: FaultProxy = stage.proxy()
        self.operator = self.start()
        self._numbers = count()

    def start(self) -> OperatorProcess:
        """One operator; each held write occupies a worker."""
        self.operator = self.stage.start(proxy=self.proxy, workers=2 * MOST_AT_ONCE)
        return self.operator

    def player(self, play: Play) -> Player:
        """A run of its own."""
        number = next(self._numbers)
        address = f"127.85.{number // 250}.{number % 250 + 1}"
        name = f"{play.__name__.replace('_', '-')}-{number:03}"
        return Player(stage=self.stage, name=name, play=play, played=self.played, address=address)

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
        """What the operator wrote for a run, without what the API server had in another way already.

        A conflict comes about by chance, and the same write, decided anew, follows it.
        """
        return [call for call in self.proxy.made(about=f"{player.name}*") if call.mutates and call.code != 409]

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


@pytest.fixture
def harness(stage: Stage, kueue: None) -> Iterator[Harness]:
    """A stage with Kueue's kind, and a server for the pods' progress."""
    with played_pods() as played:
        yield Harness(stage, played)


@pytest.mark.fault("A1.sweep", "A1.one-job")
def test_an_operator_that_is_killed_at_any_write_leaves_no_trace_in_the_end(harness: Harness, faults: Proofs) -> None:
    """0 duplicates and 0 lost verdicts over all points: status, children and what was made are those of golden runs.

    No point is missed.
    """
    golden: dict[Play, Object] = {}
    points: list[Point] = []
    trios = {play: tuple(harness.player(play) for _ in range(3)) for play in PLAYS}
    everybody = [player for trio in trios.values() for player in trio]
    # One of each by itself: what all write that begin at the same moment may be what a busy cluster makes of them.
    harness.play([player for *two, _ in trios.values() for player in two], "the golden runs are over")
    harness.play([third for *_, third in trios.values()], "the later golden runs are over")
    assert {call.what for player in everybody for call in harness.writes(player)} >= WRITTEN
    for play, (first, *others) in trios.items():
        known = Counter(_says(call, first.name) for call in harness.writes(first))
        for other in others:
            _expect(partial(_chronicle, harness, other), partial(_chronicle, harness, first), play.__name__)
            known &= Counter(_says(call, other.name) for call in harness.writes(other))
        golden[play] = harness.end_state(first)
        points += [p for p in _points(play, harness.writes(first), first.name) if p.ordinal <= known[p.says]]
    # How often the same is said in Events depends on how fast the cluster is.
    left = [p for p in points if p.ordinal == 1 or not _is_event(p)] if SOAK else _few_events(_new_ones(points))
    total, crashes = len(left), 0
    with faults.proving("A1.sweep"):
        for _ in range(ROUNDS):
            groups = _groups(left)
            left = [point for group in groups for point in _crash_at(harness, group, golden)]
            crashes += len(groups)
            if not left:
                break
        print(f"{total} points in {crashes} crashes")
        assert [(point.play.__name__, point.says, point.ordinal, point.answered) for point in left] == []
    runs = [Run(stage=harness.stage, name=player.name) for player in everybody]
    faults.kept("A1.one-job", faults.remember(*runs))


def _chronicle(harness: Harness, player: Player) -> Object:
    """What was written for a run, one after the other, and how it ended.

    Events come in their own time, and which states in between are written depends on how fast the cluster is.
    """
    writes = [call for call in harness.writes(player) if call.resource not in ("events", "lorafinetunes")]
    return {"writes": [_says(call, player.name) for call in writes], **harness.end_state(player)}


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


def _few_events(points: list[Point]) -> list[Point]:
    """All but the Events, and as many of those as there are groups: both sides, early ones as well as late ones."""
    writes = [point for point in points if not _is_event(point)]
    events = [point for point in points if _is_event(point)]
    count = -(-len(writes) // MOST_AT_ONCE)
    return writes + [events[number * (len(events) // count) + number % 2] for number in range(count)]


def _groups(points: list[Point]) -> list[list[Point]]:
    """Points that are reached at about the same time; of Events, which are posted one by one, one to a group."""
    writes = sorted((p for p in points if not _is_event(p)), key=lambda point: point.at_s)
    events = [[p] for p in points if _is_event(p)]
    groups = [writes[start : start + MOST_AT_ONCE] for start in range(0, len(writes), MOST_AT_ONCE)]
    none: list[Point] = []
    return [group + event for group, event in zip_longest(groups, events, fillvalue=none)]


def _is_event(point: Point) -> bool:
    return point.says.startswith("create events ")


def _crash_at(harness: Harness, points: list[Point], golden: dict[Play, Object]) -> list[Point]:
    """Play a run for each point up to it, kill the operator, start another one, and compare how the runs end.

    Returns the points that were not reached: their runs skipped that state this time, or came to it too late. The
    operator is killed all the same, before it gives up the calls that are held.
    """
    players = {point: harness.player(point.play) for point in points}
    rules = {point: harness.proxy.add(_hold(point, player.name)) for point, player in players.items()}
    held_since_s: list[float] = []

    def enough_held() -> bool:
        look(harness.stage, list(players.values()))
        held = [point for point in points if rules[point].hits]
        held_since_s.extend([time.monotonic()] if held and not held_since_s else [])
        all_that_come = all(rules[point].hits or player.over for point, player in players.items())
        return all_that_come or bool(held_since_s and time.monotonic() > held_since_s[0] + LONGEST_HOLD_S)

    eventually(enough_held, "a run has come to its point", deadline_s=PATIENCE_S)
    held = [call.about for call in harness.proxy.held]
    missed = [p for p, player in players.items() if not any(about.startswith(player.name) for about in held)]
    harness.operator.kill()
    for rule in rules.values():
        rule.lift()
    harness.start()
    harness.play(players.values(), "the plays are over in spite of the crash")
    for point, player in players.items():
        _expect(partial(harness.end_state, player), partial(golden.__getitem__, point.play), point)
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
