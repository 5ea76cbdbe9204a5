"""An API server that answers from the past, as one of several may do after the others went on."""

import re
import time
from typing import Any

import pytest
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults.calls import Call
from tests.faults.injections import Answer, Freeze, Instead, Rule
from tests.faults.moments import Kept
from tests.faults.one_run import begin
from tests.faults.seen import Sees, kept, remember, saw

KINDS = ("lorafinetunes", "jobs", "pods")
_REQUIREMENT = re.compile(r"([^\s,=]+)(?:=([^,]*)| in \(([^)]*)\))")


class Past:
    """All objects of a namespace as they were at one moment, until it is `ending` and all runs are listed once more."""

    def __init__(self, stage: Stage) -> None:
        self.ending = False
        self._over = False
        self._lists: dict[str, Object] = {kind: stage.api.get(stage.path(kind)) for kind in KINDS}

    def answer(self, call: Call) -> Object | Answer | None:
        """To a list or to the reading of one object."""
        self._over |= self.ending and call.what == "list lorafinetunes"
        if self._over or call.resource not in KINDS or call.verb not in ("list", "get"):
            return None
        whole = self._lists[call.resource]
        if call.verb == "list":
            selector = call.query.get("labelSelector", "")
            return {**whole, "items": [item for item in whole["items"] if _selects(selector, item)]}
        found = (item for item in whole["items"] if item["metadata"]["name"] == call.name)
        gone = Answer(code=404, reason="NotFound", message=f'{call.resource} "{call.name}" not found')
        return next(found, gone)


def _selects(selector: str, item: Object) -> bool:
    """By the two forms of a label selector that the operator writes: `key=value` and `key in (a,b)`."""
    labels = item["metadata"].get("labels", {})
    assert not _REQUIREMENT.sub("", selector).strip(","), selector
    return all(
        labels.get(key) in (among.split(",") if among else [value])
        for key, value, among in _REQUIREMENT.findall(selector)
    )


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.soak)])
def test_answers_from_the_past_make_nothing_twice_and_take_nothing_away(stage: Stage, seconds: float) -> None:
    """The next operator reads of runs without their Jobs, with a Job that is gone, and without their end."""
    proxy = stage.proxy()
    started: dict[str, Any] = {"proxy": proxy, "watchInactivitySeconds": 3, "resyncIntervalSeconds": 1}
    first = stage.start(**started)
    old, ended = begin(stage, "old"), begin(stage, "ended")
    ended.running_pod()
    old.wait("PodsReady", "False", "VolumeNotReady")
    first.kill()
    new = begin(stage, "new")
    past = Past(stage)

    second = stage.start(**started)
    stage.api.delete(stage.path("jobs", old.job()["metadata"]["name"]) + "?propagationPolicy=Background")
    old.job(2)
    eventually(lambda: old.status.get("attempt") == 2, "the second attempt is in the status")
    stage.end_pod(ended.pod(), 0, succeeded())
    ended.wait("Complete", "True")
    for run in (old, new):
        run.wait("PodsReady", "False", "VolumeNotReady")
    for run in (old, new, ended):
        run.wait_told()
    second.kill()
    before = remember(old, new, ended)

    proxy.add(Rule(fault=Instead(document=past.answer), where=lambda call: not call.is_watch))
    silent = proxy.add(Rule(fault=Freeze(), what="watch *"))
    since = len(proxy.calls)
    stage.start(wait=False, **started)
    eventually(lambda: len(proxy.calls) > since + 50, "the third operator works on what it reads")
    _let_pass(seconds)
    kept(Kept.JOBS, before)
    saw(Sees(nothing=True), since=before)
    # The present is told by lists: of runs first, and then of Jobs. By watches, or from the middle of the lists on, it
    # could be told the other way round, which leaves nothing to look for.
    past.ending = True
    eventually(lambda: _live_looks(proxy.calls[since:]), "a Job that a run tells of and no list does is looked for")
    silent.lift()

    for run in (old, new):
        run.running_pod()
    kept(Kept.ENDS_WELL, before)
    kept(Kept.VERDICT, before)
    now = kept(Kept.ONE_JOB, before)
    assert old.status["attempt"] == 2
    assert {j["metadata"]["uid"] for j in now.all_jobs()} == {j["metadata"]["uid"] for j in before.all_jobs()}
    assert [call for call in proxy.calls[since:] if call.verb == "delete" and call.code == 200] == []


def _live_looks(calls: list[Call]) -> list[Call]:
    """Those that asked for the pods of certain Jobs, and were answered."""
    asked = [call for call in calls if call.code == 200 and call.resource == "pods"]
    return [call for call in asked if " in (" in call.query.get("labelSelector", "")]


def _let_pass(seconds: float) -> None:
    """The length of the fault, as that of an outage."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= end, "the time has passed", deadline_s=seconds + 60)
