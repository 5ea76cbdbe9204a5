"""Asserting what the fault matrix promises: `faults.saw` what the user sees, `faults.kept` what is never lost.

`recording.py` fails a marked test that has not asserted all that its marks name.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.component.cluster_acts import finish_deletion
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults import moments
from tests.faults.matrix import PROMISES
from tests.faults.moments import HELD, Moment, condition
from tests.faults.one_run import Run
from tests.faults.promises import BUSY, Kept, Sees, Shown

from lora_trainer.contract.reasons import Reason


@pytest.fixture
def faults() -> "Proofs":
    """What this test has asserted of the matrix."""
    return Proofs()


class Proofs:
    """Collects the names of what was asserted, such as `B11.secret`."""

    def __init__(self) -> None:
        self.asserted: set[str] = set()

    def remember(self, *runs: Run, others: tuple[str, ...] = ()) -> Moment:
        """What there is of these runs of one stage now; `others` are paths of objects that are somebody else's."""
        return moments.look(runs[0].stage, runs, others)

    def saw(
        self, name: str, run: Run | None = None, *, since: Moment | None = None, text: str = "", **fill: str
    ) -> str:
        """Assert what the user sees, as soon as it is there; the sentence that it was said in.

        `since` is what metrics and conditions are compared with, `text` an answer of the API server or a log, where
        that is what speaks; `fill` takes the places of the {names} in the promise's texts.
        """
        promise = PROMISES[name]
        assert isinstance(promise, Sees), f"{name} is nothing that is seen on the API server"
        sight = _Sight(promise, run, since, text, fill)
        try:
            eventually(lambda: not sight.complaints(), name, deadline_s=promise.within_s * BUSY)
        except AssertionError as error:
            error.add_note("\n".join(sight.complaints()))
            if run is not None:
                error.add_note(json.dumps(run.status, indent=1))
                error.add_note(run.stage.operators[-1].text()[-4000:])
            raise
        self.asserted.add(name)
        return sight.sentence

    def kept(self, name: str, since: Moment) -> Moment:
        """Assert that this is as it was, or for what is to come that it comes; what there is now."""
        promise = PROMISES[name]
        assert isinstance(promise, Kept), f"{name} is nothing that is kept as it was"
        if promise is Kept.BEGINS:
            for run in since.runs:
                _begins(run, since)
        elif promise is Kept.ENDS_WELL:
            for run in since.runs:
                _ends_well(run)
        now = moments.look(since.stage, since.runs, tuple(since.others))
        if promise in HELD:
            assert HELD[promise](since, now) == [], name
        self.asserted.add(name)
        return now

    def take_over(self, name: str, earlier: "Proofs") -> None:
        """What a fixture that several tests share has asserted for this one."""
        assert name in earlier.asserted
        self.asserted.add(name)

    @contextmanager
    def proving(self, *names: str) -> Iterator[None]:
        """What the lines within assert in the test's own way."""
        for name in names:
            assert isinstance(PROMISES[name], Shown), f"{name} has an assertion of its own in the matrix"
        yield
        self.asserted.update(names)


class _Sight:
    """One promise, and where to look for it."""

    def __init__(self, promise: Sees, run: Run | None, since: Moment | None, text: str, fill: dict[str, str]) -> None:
        self._promise = promise
        self._run = run
        self._since = since
        self._text = text
        self._fill = fill
        self.sentence = ""

    def complaints(self) -> list[str]:
        """What of it is not there yet."""
        found = [*self._missing(self._promise.refusal, self._text, "the answer")]
        if self._promise.log:
            log = self._text or self._stage().operators[-1].text()
            found += self._missing(self._promise.log, log, "the log")
        if self._promise.metric:
            found += self._metric()
        if self._promise.nothing:
            assert self._since is not None
            found += moments.nothing_to_see(self._since, moments.look(self._since.stage, self._since.runs))
        if self._run is not None:
            found += self._in_status(self._run.stage.finetune(self._run.name))
            found += self._in_events(self._run)
        return found

    def _stage(self) -> Stage:
        if self._run is not None:
            return self._run.stage
        assert self._since is not None
        return self._since.stage

    def _missing(self, texts: tuple[str, ...], where: str, called: str) -> list[str]:
        filled = [text.format(**self._fill) for text in texts]
        return [f"{called} does not say {text!r}: {where[-2000:]!r}" for text in filled if text not in where]

    def _in_status(self, finetune: Object) -> list[str]:
        promise, status = self._promise, finetune.get("status", {})
        wanted = dict(promise.conditions) or ({"Complete": ("", promise.state)} if promise.state else {})
        found = [
            f"{kind} is {seen}" for kind, want in wanted.items() if not _is(seen := condition(finetune, kind), want)
        ]
        if promise.state and condition(finetune, "Complete").get("reason") != promise.state:
            found.append(f"the state is {condition(finetune, 'Complete')}")
        for kind in [*wanted][:1]:
            self.sentence = condition(finetune, kind).get("message", "")
            found += self._missing(promise.says, self.sentence, f"the message of {kind}")
        if promise.retries is not None:
            counted = {k: v for k, v in status.get("retries", {}).items() if isinstance(v, int) and v}
            found += [] if counted == promise.retries else [f"status.retries is {counted}"]
        found += [f"status.{path} is not set" for path in promise.status if not _at(status, path)]
        if promise.advice:
            found += self._missing((promise.advice,), json.dumps(status.get("advice", [])), "the advice")
        return found

    def _in_events(self, run: Run) -> list[str]:
        if self._promise.event is None:
            return []
        events = (e for e in run.stage.objects("events") if e["involvedObject"]["name"] == run.name)
        said = [e["message"] for e in events if (e["type"], e["reason"]) == self._promise.event]
        if not said:
            return [f"there is no Event {self._promise.event}"]
        if self._promise.conditions or self._promise.state:
            return []
        self.sentence = "\n".join(said)
        return self._missing(self._promise.says, self.sentence, "the Event")

    def _metric(self) -> list[str]:
        prefix = self._promise.metric.format(**self._fill)
        now = self._stage().operators[-1].metrics()
        value = sum(v for series, v in now.items() if series.startswith(prefix))
        before = self._since.metric(prefix) if self._since else 0.0
        # A time since 1970 differs a little at each look, by as much as the two clocks that it is reckoned from.
        stands_still = abs(value - before) < 1
        good = {
            "counts": value > before,
            "does not count": value == before,
            "stands still": stands_still and before > 0,
            "goes on": not stands_still and value > before,
        }
        return [] if good[self._promise.metric_does] else [f"{prefix} was {before} and is {value}"]


def _is(seen: Object, wanted: tuple[str, str | None]) -> bool:
    status, reason = wanted
    return bool(seen) and status in ("", seen["status"]) and reason in (None, seen["reason"])


def _at(status: Object, path: str) -> object:
    value: object = status
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _begins(run: Run, since: Moment) -> None:
    waited = [pod["metadata"]["uid"] for pod in since.pods[run.name] if pod["metadata"]["uid"] in since.living_pods()]
    pod = run.running_pod()
    assert not waited or pod["metadata"]["uid"] in waited, "the pod that waited is the one that runs"
    run.wait("Accepted", "True")
    assert (len(run.jobs), run.status["attempt"]) == (1, 1)


def _ends_well(run: Run) -> None:
    """Its trainer ends with a verified adapter, if it has not yet; of several nodes the first one's pod brings it."""
    if condition(run.stage.finetune(run.name), "Complete").get("status") != "True":
        run.stage.end_pod(run.pod(), 0, succeeded())

    def over() -> bool:
        for pod in run.pods:
            # The others are stopped then, which their kubelets confirm.
            if pod["metadata"].get("deletionTimestamp") and pod["status"]["phase"] == "Running":
                finish_deletion(run.stage, pod)
        return condition(run.stage.finetune(run.name), "Complete").get("reason") == Reason.SUCCEEDED

    eventually(over, f"{run.name} is complete")
