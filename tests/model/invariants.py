"""What must hold at any time, whatever happened: checked on what is stored, one look after the other.

The names I1 to I10 are those of the fault matrix's invariants.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tests.model.life import PENDING_TIMEOUT_S, Life
from tests.model.objects import condition_of, controller_uid, exit_codes, has_failed, has_our_labels, is_over, run_uid
from tests.model.queues import is_held, workload_of
from tests.model.server import labels_of
from tests.model.talk import PASSWORD, SECRET
from tests.unit.contradictions import contradictions

from lora_operator.model.conditions import result_of
from lora_operator.model.names import INDEX_LABEL, JOB_NAME_LABEL, QUEUE_LABEL, TRAIN, place_of
from lora_operator.model.wording import parse_instant

if TYPE_CHECKING:
    from datetime import datetime

Object = dict[str, Any]
CHILDREN = ("jobs", "pods", "services")
KINDS = ("lorafinetunes", *CHILDREN, "events")


_DELETED = re.compile(r"Job was deleted (?:once|(\d+) times)")


class Witness:
    """Remembers what it saw, and objects to what must not follow."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._verdicts: dict[str, Object] = {}
        self._stated: dict[str, Object] = {}
        self._attempts: dict[str, int] = {}
        self._retries: dict[str, Object] = {}
        self._ready_at: dict[str, datetime] = {}
        self._budget: dict[str, int] = {}
        self._fewest: dict[str, int] = {}
        self._jobs: dict[tuple[str, str, int], str] = {}
        self._late: set[str] = set()
        self._read: set[tuple[str, str]] = set()
        self._pods: dict[str, set[str]] = {}
        self._suspensions: dict[str, set[tuple[str, str]]] = {}
        self._hidden_runs: set[str] = set()

    def look(self, seen: Mapping[str, Sequence[Object]]) -> None:
        """Look at everything there is, by kind."""
        staying = [run for run in seen["lorafinetunes"] if "deletionTimestamp" not in run["metadata"]]
        attempts = {run["metadata"]["uid"]: run.get("status", {}).get("attempt", 0) for run in staying}
        for job in seen["jobs"]:
            # What old news of a run that was deleted makes anew, the garbage collector or the operator takes away.
            if run_uid(job) in attempts:
                self._one_job(job, attempts[run_uid(job)])
        for pod in seen["pods"]:
            if has_failed(pod):
                self._life.failed.setdefault(run_uid(pod), set()).add(pod["metadata"]["uid"])
            self._pods.setdefault(run_uid(pod), set()).add(pod["metadata"]["uid"])
        for child in (*seen["jobs"], *seen["pods"]):
            if not has_our_labels(child):
                self._hidden_runs.add(run_uid(child))
        for job in seen["jobs"]:
            held = condition_of(job.get("status", {}), "Suspended")
            if held.get("status") == "True":
                moment = (job["metadata"]["uid"], held["lastTransitionTime"])
                self._suspensions.setdefault(run_uid(job), set()).add(moment)
        self._one_writer(seen["pods"])
        for run in seen["lorafinetunes"]:
            self._keeps_what_was_found_out(run, seen)
            self._counts_its_time(run)
            self._fails_for_a_cause(run, seen)
            self._keeps_its_word(run)
            assert run["metadata"]["annotations"]["team"] == "red", "a user's annotation is gone"
        self._no_secrets(seen)

    def _one_writer(self, pods: Iterable[Object]) -> None:
        """I1: no two living pods of a run that write the same output.

        But for a Job that came too late, whose operator was cut off in the middle of its request: it is stopped.
        """
        living = Counter(
            (run_uid(pod), pod["metadata"]["labels"].get(INDEX_LABEL))
            for pod in pods
            if run_uid(pod)
            and not is_over(pod)
            and place_of(pod["metadata"]["labels"].get(JOB_NAME_LABEL, ""))[1] == TRAIN
            and not self._late.intersection(owner["uid"] for owner in pod["metadata"].get("ownerReferences", ()))
        )
        twice = [key for key, count in living.items() if count > 1]
        assert not twice, f"I1: two living pods write one output: {twice}"

    def _one_job(self, job: Object, attempt: int) -> None:
        """I4: one Job for each attempt of a run, and another one only where somebody deleted that by hand."""
        number, stage = place_of(job["metadata"]["name"])
        key = (run_uid(job), stage, number)
        uid = job["metadata"]["uid"]
        before = self._jobs.get(key, uid)
        assert before == uid or before in self._life.deleted, f"I4: a second Job for {key}"
        if before != uid or key not in self._jobs:
            self._jobs[key] = uid
            if stage == TRAIN and number < attempt:
                self._late.add(uid)

    def _keeps_its_word(self, run: Object) -> None:
        """I3, I7, I8: a verdict stays, a success is proven, counts never go back; the tables of states hold."""
        uid, status = run["metadata"]["uid"], run.get("status", {})
        assert contradictions(self._stated.get(uid, {}), status) == []
        self._stated[uid] = status
        stated = _stated(run)
        ended = {kind: stated[kind]["status"] for kind in ("Complete", "Failed") if kind in stated}
        if "True" in ended.values():
            assert sorted(ended.values()) == ["False", "True"], f"I3: half a verdict: {ended}"
            told = self._verdicts.setdefault(uid, _timeless(status))
            assert told == _timeless(status), f"I3: a verdict changed: {told} became {status}"
        else:
            assert uid not in self._verdicts, "I3: a verdict was taken back"
        if ended.get("Complete") == "True":
            assert uid in self._life.proven, "I7: complete without a verified adapter"
            assert status["artifact"]["uri"], "I7: complete without an adapter"
        attempt = status.get("attempt", 0)
        passed = stated.get("PreflightPassed", {}).get("status") == "True"
        looked_at = run["spec"]["preflight"] == "Run" and not self._life.deleted
        assert passed or not attempt or not looked_at, "a GPU is asked for before anybody has looked at the run"
        assert attempt >= self._attempts.get(uid, 0), "I8: attempts went back"
        self._attempts[uid] = attempt
        counts = {key: value for key, value in status.get("retries", {}).items() if isinstance(value, int)}
        before = self._retries.get(uid, {})
        assert all(counts.get(key, 0) >= value for key, value in before.items()), f"I8: {before} became {counts}"
        self._retries[uid] = counts
        self._budget[uid] = max(self._budget.get(uid, 0), run["spec"].get("maxRetries", 3))
        assert attempt <= self._budget[uid] + 1, f"I8: attempt {attempt} with maxRetries {self._budget[uid]}"

    def _keeps_what_was_found_out(self, run: Object, seen: Mapping[str, Sequence[Object]]) -> None:
        """A7: what the preflight's pod reported is in the status once there is a training, however late a watch is."""
        uid, status = run["metadata"]["uid"], run.get("status", {})
        if not status.get("attempt") or "plan" in status or run["spec"]["preflight"] != "Run":
            return
        complete = {
            job["metadata"]["uid"]
            for job in seen["jobs"]
            if run_uid(job) == uid and condition_of(job.get("status", {}), "Complete").get("status") == "True"
        }
        reports = [
            pod["metadata"]["name"]
            for pod in seen["pods"]
            if pod["metadata"]["uid"] in self._life.reporting
            and controller_uid(pod) in complete
            and has_our_labels(pod)
        ]
        assert not reports, f"A7: no plan, though there is the report of {reports}"

    def _counts_its_time(self, run: Object) -> None:
        """A18: no run is charged time that has not passed, and none waits in vain for less than its user allows."""
        uid, status, now = run["metadata"]["uid"], run.get("status", {}), self._life.now()
        created, ready = parse_instant(run["metadata"]["creationTimestamp"]), _stated(run).get("PodsReady", {})
        assert created is not None
        if ready.get("status") == "True":
            self._ready_at[uid] = now
        if not self._life.clocks_agree:
            return
        age_s = (now - created).total_seconds()
        assert status.get("runSeconds", 0) <= age_s, f"A18: {status['runSeconds']} s of {age_s} s"
        if uid not in self._verdicts and _stated(run).get("Failed", {}).get("reason") == "PendingTimeout":
            waited_s = (now - self._ready_at.get(uid, created)).total_seconds()
            assert waited_s >= PENDING_TIMEOUT_S, f"A18: it waited {waited_s} s"

    def _fails_for_a_cause(self, run: Object, seen: Mapping[str, Sequence[Object]]) -> None:
        """I3, I8: each attempt, retry and failure has a cause that there was, and none is without its proof."""
        uid, status, verdict = run["metadata"]["uid"], run.get("status", {}), _stated(run).get("Failed", {})
        failed, removed = len(self._life.failed.get(uid, ())), len(self._life.removed.get(uid, ()))
        retries = status.get("retries", {})
        used = retries.get("used", 0)
        assert used <= failed + removed, f"I8: {failed} pods failed, {removed} Jobs were deleted, and used are {used}"
        staying = {pod["metadata"]["uid"] for pod in seen["pods"] if not _was_taken(pod)}
        taken = len(self._pods.get(uid, set()) - staying) + len(self._suspensions.get(uid, ()))
        # A Job or a pod that is known from live reads alone comes and goes.
        counted = retries.get("preempted", 0) if uid not in self._hidden_runs else 0
        assert counted <= taken, f"I8: {taken} pods were taken away or suspended: {retries}"
        attempt = status.get("attempt", 0)
        assert attempt <= removed + 1, f"I8: attempt {attempt}, and {removed} Jobs were deleted"
        self._fewest[uid] = min(self._fewest.get(uid, 100), run["spec"].get("maxRetries", 3))
        if verdict.get("status") != "True" or uid in self._verdicts:
            return
        message, used = verdict["message"], failed + removed
        if verdict["reason"] == "BackoffLimitExceeded":
            assert used > self._fewest[uid], f"I3: of {self._fewest[uid]} retries {used} were used: {message}"
        stated = _DELETED.search(message)
        times = int(stated[1] or 1) if stated else 0
        assert times <= removed, f"I3: {removed} Jobs were deleted: {message}"
        if verdict["reason"] == "ResultUnknown":
            proofs = [pod["metadata"]["name"] for pod in self._proofs(uid, seen)]
            assert not proofs, f"I3: the result is unknown, though pods prove it: {proofs}"

    def _proofs(self, uid: str, seen: Mapping[str, Sequence[Object]]) -> Iterator[Object]:
        """Pods with a verified adapter that a Job of the run has counted."""
        jobs = {
            job["metadata"]["uid"] for job in seen["jobs"] if run_uid(job) == uid and job["status"].get("succeeded")
        }
        for pod in seen["pods"]:
            proves = pod["metadata"]["uid"] in self._life.proving and pod["status"].get("phase") == "Succeeded"
            first = (pod["metadata"].get("annotations") or {}).get(INDEX_LABEL) == "0"
            if proves and first and controller_uid(pod) in jobs:
                yield pod

    def _no_secrets(self, seen: Mapping[str, Sequence[Object]]) -> None:
        """I6: nothing secret in what the operator writes."""
        written = {
            (document["metadata"]["uid"], document["metadata"]["resourceVersion"]): document
            for plural, documents in seen.items()
            for document in documents
            if plural != "pods" and (plural != "events" or document["involvedObject"].get("kind") == "LoRAFineTune")
        }
        for key in written.keys() - self._read:
            self._read.add(key)
            document = written[key]
            check_text(json.dumps(document.get("status", document) if "spec" in document else document))

    def at_rest(self, seen: Mapping[str, Sequence[Object]]) -> None:
        """I5 and I10, when nothing moves any more: what is deleted has left nothing, and what waits says why."""
        self.look(seen)
        runs = {run["metadata"]["uid"] for run in seen["lorafinetunes"]}
        for plural in CHILDREN:
            for child in seen[plural]:
                uid = run_uid(child)
                left = bool(uid) and uid not in runs and uid not in self._life.orphaned
                assert not left, f"I5: {plural} {child['metadata']['name']} outlived its run"
        late = [
            job["metadata"]["name"] for job in seen["jobs"] if job["metadata"]["uid"] in self._late and goes_on(job)
        ]
        assert not late, f"I1: Jobs of earlier attempts live on: {late}"
        for run in seen["lorafinetunes"]:
            if "deletionTimestamp" in run["metadata"] or result_of(run["status"]) == "failed":
                self._has_stopped(run, seen["jobs"])
            if "deletionTimestamp" in run["metadata"]:
                continue
            self._in_queue(run, seen)
            for condition in run["status"]["conditions"]:
                text = f"I10: {run['metadata']['name']}: {condition}"
                assert condition["reason"], text
                assert condition["message"] not in ("", "Waiting for the operator"), text
                assert condition["observedGeneration"] == run["metadata"]["generation"], text

    def _has_stopped(self, run: Object, jobs: Iterable[Object]) -> None:
        """I5: what somebody's finalizer keeps, though it was deleted, and what has failed trains no longer."""
        uid = run["metadata"]["uid"]
        left = [job["metadata"]["name"] for job in jobs if run_uid(job) == uid and goes_on(job)]
        assert not left or uid in self._life.orphaned, f"I5: Jobs of a run that is over go on: {left}"

    def _in_queue(self, run: Object, seen: Mapping[str, Sequence[Object]]) -> None:
        """I10: what Kueue holds is reported as a wait, what the user holds as the user's wish, and only these are."""
        uid, state = run["metadata"]["uid"], _stated(run)["Complete"]["reason"]
        jobs = [job for job in seen["jobs"] if run_uid(job) == uid and QUEUE_LABEL in labels_of(job) and goes_on(job)]
        for job in jobs:
            workload = workload_of(job, seen.get("workloads", ()))
            if workload is None or "deletionTimestamp" in job["metadata"]:
                continue
            admitted = condition_of(workload["status"], "QuotaReserved").get("status") == "True"
            held = "SuspendedByUser" if is_held(workload) else "SuspendedExternally"  # the former while it is refused
            waits = {held} if not workload["spec"]["active"] else {"Queued", "Preempted"}
            if run["spec"]["suspend"]:
                assert is_held(workload), f"a run that its user holds is in its queue: {workload}"
                assert not admitted, f"a run that its user holds has quota: {workload}"
                waits = {"SuspendedByUser"}
            told = state in {"Queued", "Preempted", "SuspendedExternally", "SuspendedByUser"}
            assert told is not admitted, f"I10: {state}: {workload}"
            assert admitted or state in waits, f"I10: {state}: {workload}"


def waiting(seen: Mapping[str, Sequence[Object]]) -> Iterator[Object]:
    """Runs in a queue that have not ended, though nobody holds them."""
    for run in seen["lorafinetunes"]:
        stated = _stated(run)
        if QUEUE_LABEL not in labels_of(run) or "deletionTimestamp" in run["metadata"] or run["spec"]["suspend"]:
            continue
        if stated["Accepted"]["status"] != "False" and stated["Complete"]["status"] == "Unknown":
            yield run


def _stated(run: Object) -> dict[str, Object]:
    return {condition["type"]: condition for condition in run.get("status", {}).get("conditions", ())}


def _was_taken(pod: Object) -> bool:
    """Whether a pod that is there was preempted or deleted, or its trainer told to stop, as where a node shuts down."""
    disrupted = condition_of(pod["status"], "DisruptionTarget").get("status") == "True"
    return disrupted or "deletionTimestamp" in pod["metadata"] or 143 in exit_codes(pod)


def goes_on(job: Object) -> bool:
    """Whether a Job has not ended."""
    conditions = job.get("status", {}).get("conditions", ())
    return not any(c["type"] in {"Complete", "Failed"} and c["status"] == "True" for c in conditions)


def check_text(text: str) -> None:
    """I6: no secret in a text that the operator wrote."""
    for secret in (SECRET, PASSWORD):
        assert secret not in text, f"I6: a secret, in {text[max(0, text.find(secret) - 200) :][:300]}"


def _timeless(status: Object) -> Object:
    """The verdict and all that was told with it, but for the generation that it speaks of."""
    kept = {key: value for key, value in status.items() if key not in {"observedGeneration", "conditions"}}
    kept["conditions"] = [{k: v for k, v in c.items() if k != "observedGeneration"} for c in status["conditions"]]
    return kept
