"""What a user sees of a fault, and what is never lost by it, asserted on the API server."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.component.cluster_acts import finish_deletion
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.faults import moments
from tests.faults.moments import HELD, Kept, Moment, condition
from tests.faults.one_run import Run

from lora_trainer.spec.reasons import Reason

# I10: every wait has its reason in a condition within this time.
WITHIN_S = 60
# Tests share their machine with others, and what they see may take half as long again.
BUSY = 1.5
Wanted: TypeAlias = tuple[str, Reason | None]
"""Status and reason of a condition; None is any reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sees:
    """What the user sees at one moment.

    `state` is the reason of condition Complete, STATE in `kubectl get`. `says` are parts of the first condition's
    message, of the state's where no condition is named, else of the Event's. `retries` are those numbers of the status;
    `status` are fields that are set. A metric `counts` or `does not count`; one that is a time `stands still` or `goes
    on`.
    """

    state: Reason | None = None
    conditions: Mapping[str, Wanted] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    event: tuple[str, Reason] | None = None
    retries: Mapping[str, int] | None = None
    status: tuple[str, ...] = ()
    advice: str = ""
    metric: str = ""
    metric_does: str = "counts"
    log: tuple[str, ...] = ()
    refusal: tuple[str, ...] = ()
    nothing: bool = False
    within_s: int = WITHIN_S


def remember(*runs: Run, others: tuple[str, ...] = ()) -> Moment:
    """What there is of these runs of one stage now; `others` are paths of objects that are somebody else's."""
    return moments.look(runs[0].stage, runs, others)


def saw(sees: Sees, run: Run | None = None, *, since: Moment | None = None, text: str = "") -> str:
    """Assert what the user sees, as soon as it is there; the sentence that it was said in.

    `since` is what metrics and conditions are compared with, `text` an answer of the API server or a log, where that is
    what speaks.
    """
    sight = _Sight(sees, run, since, text)
    try:
        eventually(lambda: not sight.complaints(), str(sees), deadline_s=sees.within_s * BUSY)
    except AssertionError as error:
        error.add_note("\n".join(sight.complaints()))
        if run is not None:
            error.add_note(json.dumps(run.status, indent=1))
            error.add_note(run.stage.operators[-1].text()[-4000:])
        raise
    return sight.sentence


def kept(what: Kept, since: Moment) -> Moment:
    """Assert that this is as it was, or for what is to come that it comes; what there is now."""
    if what is Kept.BEGINS:
        for run in since.runs:
            _begins(run, since)
    elif what is Kept.ENDS_WELL:
        for run in since.runs:
            _ends_well(run)
    now = moments.look(since.stage, since.runs, tuple(since.others))
    if what in HELD:
        assert HELD[what](since, now) == [], what.value
    return now


class _Sight:
    """What is to be seen, and where to look for it."""

    def __init__(self, sees: Sees, run: Run | None, since: Moment | None, text: str) -> None:
        self._sees = sees
        self._run = run
        self._since = since
        self._text = text
        self.sentence = ""

    def complaints(self) -> list[str]:
        """What of it is not there yet."""
        found = [*self._missing(self._sees.refusal, self._text, "the answer")]
        if self._sees.log:
            log = self._text or self._stage().operators[-1].text()
            found += self._missing(self._sees.log, log, "the log")
        if self._sees.metric:
            found += self._metric()
        if self._sees.nothing:
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
        return [f"{called} does not say {text!r}: {where[-2000:]!r}" for text in texts if text not in where]

    def _in_status(self, finetune: Object) -> list[str]:
        sees, status = self._sees, finetune.get("status", {})
        wanted = dict(sees.conditions) or ({"Complete": ("", sees.state)} if sees.state else {})
        found = [
            f"{kind} is {seen}" for kind, want in wanted.items() if not _is(seen := condition(finetune, kind), want)
        ]
        if sees.state and condition(finetune, "Complete").get("reason") != sees.state:
            found.append(f"the state is {condition(finetune, 'Complete')}")
        for kind in [*wanted][:1]:
            self.sentence = condition(finetune, kind).get("message", "")
            found += self._missing(sees.says, self.sentence, f"the message of {kind}")
        if sees.retries is not None:
            counted = {k: v for k, v in status.get("retries", {}).items() if isinstance(v, int) and v}
            found += [] if counted == sees.retries else [f"status.retries is {counted}"]
        found += [f"status.{path} is not set" for path in sees.status if not _at(status, path)]
        if sees.advice:
            found += self._missing((sees.advice,), json.dumps(status.get("advice", [])), "the advice")
        return found

    def _in_events(self, run: Run) -> list[str]:
        if self._sees.event is None:
            return []
        events = (e for e in run.stage.objects("events") if e["involvedObject"]["name"] == run.name)
        said = [e["message"] for e in events if (e["type"], e["reason"]) == self._sees.event]
        if not said:
            return [f"there is no Event {self._sees.event}"]
        if self._sees.conditions or self._sees.state:
            return []
        self.sentence = "\n".join(said)
        return self._missing(self._sees.says, self.sentence, "the Event")

    def _metric(self) -> list[str]:
        prefix = self._sees.metric
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
        return [] if good[self._sees.metric_does] else [f"{prefix} was {before} and is {value}"]


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
