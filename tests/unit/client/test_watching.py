"""Why a run waits, as it is watched: whole in a pipe and on a terminal of any size."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.component.generated import present
from tests.unit.client.resources import condition, finished, resource, training
from tests.unit.client.terminals import printed_on_a_terminal

from lora_client.cluster.connection import Cluster
from lora_client.views.resources import waiting_for
from lora_client.views.watching import line, picture
from lora_operator.model.conditions import UNTOUCHED as UNTOUCHED_MESSAGE

Object = dict[str, Any]
NOW = datetime(2026, 11, 27, 12, 2, tzinfo=UTC)
SOON = datetime(2026, 11, 27, 12, 0, 20, tzinfo=UTC)
TOLERATION = '[{key: nvidia.com/gpu, operator: Equal, value: "present"}]'
TAINTED = (
    "No node can run pod support-tone-zajod-1-0-abcde: 0/4 nodes are available: 4 node(s) had untolerated taint "
    "{nvidia.com/gpu: present}: where runs may use the tainted nodes, write scheduling.tolerations: "
    f"{TOLERATION} or have it added to the chart's defaults.tolerations; either counts for a new LoRAFineTune alone"
)
UNSCHEDULABLE = {
    "conditions": [
        condition("Complete", "Unknown", "Unschedulable", TAINTED),
        condition("PodsReady", "False", "Unschedulable", TAINTED),
    ]
}
UNTOUCHED = {
    "conditions": [
        condition(kind, "Unknown", "Pending", "Waiting for the operator") for kind in ("Accepted", "Complete", "Failed")
    ]
}
"""As the definition's default writes it."""
UNTAKEN = (
    "Pending: No operator has taken this run: none is running, or none watches namespace team-a; ask the cluster's "
    "administrator"
)
STALLED = {
    **training(),
    "conditions": [condition("Complete", "Unknown", "Stalled", "The trainer has reported no step since 11:50")],
}
SUSPENDED = {
    "conditions": [
        condition("Complete", "Unknown", "SuspendedByUser", "The run is suspended"),
        condition("Suspended", "True", "SuspendedByUser", "The run is suspended"),
    ],
    "progress": {"steps": "120/400", "percentage": 30},
}


@pytest.mark.parametrize(
    ("status", "now", "want"),
    [
        (UNSCHEDULABLE, NOW, f"Unschedulable: {TAINTED}"),
        (STALLED, NOW, "Stalled: The trainer has reported no step since 11:50"),
        (SUSPENDED, NOW, "SuspendedByUser: The run is suspended"),
        (UNTOUCHED, SOON, "Pending: Waiting for the operator"),
        (training(), NOW, ""),
        (finished(), NOW, ""),
        (UNTOUCHED, NOW, UNTAKEN),
        ({}, NOW, UNTAKEN),
    ],
)
def test_a_run_that_does_not_advance_says_why(status: Object, now: datetime, want: str) -> None:
    """Whatever condition it is of; a default that stays half a minute is nobody's decision."""
    assert waiting_for(resource(status=status), now) == want


@pytest.mark.parametrize(
    ("status", "want"),
    [
        (STALLED, "Stalled: The trainer has reported no step since 11:50 · step 120/400"),
        (SUSPENDED, "SuspendedByUser: The run is suspended"),
        (UNSCHEDULABLE, f"Unschedulable: {TAINTED}"),
    ],
)
def test_in_a_pipe_no_time_left_is_promised_of_what_does_not_move(status: Object, want: str) -> None:
    """The last estimate is of a run that moved."""
    assert line(resource(status=status), "", NOW) == want


def test_a_picture_keeps_the_step_of_a_run_that_does_not_move_and_promises_nothing() -> None:
    """So one sees how far it came."""
    for status in (STALLED, SUSPENDED):
        rows = picture(resource(status=status), {}, "", NOW, width=80, height=24)
        assert any(row.startswith("  step 120/400 ███") for row in rows)
        assert not any("left" in row or "tokens/s" in row for row in rows)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_picture_has_every_word_of_the_reason(width: int) -> None:
    """Its end is the remedy; no line is wider than the terminal."""
    rows = picture(resource(status=UNSCHEDULABLE), {}, "2 ahead in queue gold", NOW, width=width, height=24)
    assert TAINTED in " ".join(" ".join(rows).split())
    assert "  2 ahead in queue gold" in rows
    assert max(map(len, rows)) <= width


@pytest.mark.parametrize(("height", "curve", "whole"), [(24, True, True), (12, False, True), (4, False, False)])
def test_a_low_terminal_shows_the_reason_rather_than_the_curve(height: int, curve: bool, whole: bool) -> None:
    """And never more rows than it has, of which the last says how to leave."""
    points = {step: 3 - step / 100 for step in range(1, 121)}
    rows = picture(resource(status=UNSCHEDULABLE), points, "", NOW, width=80, height=height)
    assert len(rows) <= height
    assert rows[-1] == "  Ctrl-C leaves; the run continues"
    assert any("█" in row for row in rows) is curve
    assert (TAINTED in " ".join(" ".join(rows).split())) is whole


ETCD = "etcd key [/registry/lora-operator.io/tone] at [fd00::10]:2379 :smile: timed out"


class Watched(Cluster):
    """One run, until Ctrl-C is pressed."""

    def __init__(self, status: Object) -> None:
        self.namespace = "team-a"
        self.run = resource(status=status)

    def __exit__(self, *_: object) -> None:
        pass

    def items(self, *_: object, **__: object) -> list[Object]:
        return []

    def followed(self, *arguments: Any) -> Iterator[Object | None]:
        yield self.run
        arguments[2](ETCD)
        yield None
        raise KeyboardInterrupt


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, status: Object, encoding: str = "utf-8") -> str:
    """What `lora watch` prints there until Ctrl-C."""
    cluster = Watched(status)
    monkeypatch.setattr("lora_client.commands.connect", lambda *_: cluster)
    monkeypatch.setattr("lora_client.verbs.watch.follow", cluster.followed)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return printed_on_a_terminal(monkeypatch, "watch", "tone", status=130, encoding=encoding)


def test_a_terminal_shows_the_remedy_and_leaves_the_sentence_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture breaks it into lines, and is erased."""
    drawn = on_a_terminal(monkeypatch, UNSCHEDULABLE)
    assert TOLERATION in " ".join(drawn.split())
    assert f"Unschedulable: {TAINTED}\n" in capsys.readouterr().err


def test_what_a_server_says_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets and colons mean nothing in it, and it is not broken into lines."""
    assert ETCD in on_a_terminal(monkeypatch, training())


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_bars_shows_lines(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a question mark for the dot that it lacks."""
    printed = on_a_terminal(monkeypatch, training(), encoding)
    dot = "·" if encoding == "latin-1" else "?"
    assert f"Training {dot} step 120/400 {dot} loss 1.2345" in printed
    assert "Ctrl-C leaves" not in printed


def test_the_default_of_a_new_run_is_known_as_nobodys_decision() -> None:
    """By the message in the definition."""
    assert json.dumps(present()).count(f'"message": "{UNTOUCHED_MESSAGE}"') == 3
