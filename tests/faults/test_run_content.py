"""C2 to C13: what becomes of a run by what it holds, how its trainer ends, and what its user does to it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pytest
from tests.component.cluster_acts import finish_deletion, make_claim
from tests.component.documents import Object, succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.moments import Kept
from tests.faults.one_run import SEEN_S, Run, begin
from tests.faults.seen import Sees, kept, remember, saw

from lora_operator.model.names import UID_LABEL
from lora_operator.model.observe import parse_pod
from lora_operator.model.pods import has_ended
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import SavedState, Summary

# Within this time the Job controller makes the pod that it wants: it looks at a Job once a second at most.
_JOB_CONTROLLER_S = 3.0
SAVED = SavedState(uri="pvc://adapters/tone/checkpoints", step=800)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How the trainer ends, with its exit code and sentence; `retries` where another pod would follow. `saved` where it
    leaves a checkpoint: none before it trains, or without one that is whole."""

    code: int
    reason: Reason
    says: str
    retries: int = 3
    saved: bool = True

    @property
    def message(self) -> str:
        """The termination message."""
        return Summary(reason=self.reason, message=self.says, checkpoint=SAVED if self.saved else None).to_message()

    @property
    def verdict(self) -> Sees:
        """The sentence, in every condition that speaks of the end."""
        conditions = dict.fromkeys(("Complete", "ArtifactPublished"), ("False", self.reason))
        saved = ("True", None) if self.saved else ("False", self.reason)
        return Sees(
            conditions={"Failed": ("True", self.reason), **conditions, "CheckpointSaved": saved},
            says=(self.says,),
            event=("Warning", self.reason),
        )

    @property
    def again(self) -> Sees:
        """A retry in the same Job."""
        return Sees(
            state=Reason.RESTARTING,
            says=(self.says, "retry 1 of 3 follows"),
            event=("Warning", Reason.RESTARTING),
            retries={"used": 1},
        )


UPLOAD = (
    "s3://results/tone: part 3 failed 5 times; with a checkpoint claim nothing is lost: the next attempt uploads the "
    "same result"
)
ENDS: Mapping[str, End] = {
    "C5-invalid": End(
        code=65, reason=Reason.DATASET_INVALID, says="chats.jsonl, line 17: missing field 'output': add it", saved=False
    ),
    "C5-missing": End(
        code=66, reason=Reason.DATASET_NOT_FOUND, says="pvc://data/chats.jsonl: no such file: correct it", saved=False
    ),
    "C5-denied": End(
        code=77, reason=Reason.DATASET_ACCESS_DENIED, says="hf://acme/chats is private: name a token", saved=False
    ),
    "C6-missing": End(
        code=66, reason=Reason.MODEL_NOT_FOUND, says="hf://acme/modle is not on the Hub: correct it", saved=False
    ),
    "C6-denied": End(
        code=77, reason=Reason.MODEL_ACCESS_DENIED, says="hf://acme/model is gated: accept its licence", saved=False
    ),
    "C6-kind": End(
        code=64,
        reason=Reason.CONFIG_INVALID,
        says="hf://acme/model is a T5: only causal models are trained",
        saved=False,
    ),
    "C8-non-finite": End(code=70, reason=Reason.NON_FINITE_LOSS, says="step 812: the loss is NaN: lower learningRate"),
    "C8-diverged": End(
        code=70, reason=Reason.LOSS_DIVERGED, says="step 900: the loss has risen for 100 steps: lower learningRate"
    ),
    "C9-last": End(
        code=74, reason=Reason.STORAGE_FULL, says="pvc://adapters needs 12 MiB more: enlarge the claim", retries=0
    ),
    "C10-invalid": End(
        code=78,
        reason=Reason.CHECKPOINT_INVALID,
        says="no checkpoint of 3 is whole: step-400 lacks a file",
        saved=False,
    ),
    "C11-last": End(code=74, reason=Reason.UPLOAD_FAILED, says=UPLOAD, retries=0),
    "C12-mismatch": End(
        code=78, reason=Reason.RESUME_MISMATCH, says="lora.rank was 16 and is 32: create a fresh run", saved=False
    ),
    "C13-denied": End(
        code=77, reason=Reason.OUTPUT_ACCESS_DENIED, says="hf://acme/tone: 401: publish again with a new token"
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_the_trainer_says_at_its_end_is_the_verdict(shared: Stage, name: str) -> None:
    """At once, in conditions, Event and STATE, without another pod; a last checkpoint is where it was said to be."""
    end = ENDS[name]
    run = begin(shared, name.lower(), maxRetries=end.retries)
    pod = run.running_pod()
    shared.end_pod(pod, end.code, end.message)
    said = saw(end.verdict, run)
    assert "{" not in said, "it is the sentence of the summary, not its text"
    assert run.status.get("checkpoint", {}).get("step") == (800 if end.saved else None)
    assert end.says in run.wait_event(end.reason.value)
    assert "artifact" not in run.status
    assert run.pods_of_this_moment() == [pod["metadata"]["uid"]]


def test_what_passes_is_tried_again_in_the_same_job(shared: Stage) -> None:
    """A network, a full volume, a bucket: the state says what failed and that a retry follows."""
    away = End(code=75, reason=Reason.RESTARTING, says="https://hub.example answered 503 five times")
    ends = {"C7": away, "C9": ENDS["C9-last"], "C11": ENDS["C11-last"]}
    runs = {row: begin(shared, f"{row.lower()}-again") for row in ends}
    firsts = {row: run.running_pod() for row, run in runs.items()}
    before = remember(*runs.values())
    for row, end in ends.items():
        shared.end_pod(firsts[row], end.code, end.message, in_s=SEEN_S)
        # Until the next pod is there.
        saw(end.again, runs[row])
        assert runs[row].condition("ArtifactPublished")["status"] == "Unknown"
    for row, run in runs.items():
        run.running_pod(other_than=firsts[row])
        kept(Kept.ENDS_WELL, remember(run))
        run.wait_retries(used=1)
    assert len(kept(Kept.ONE_JOB, before).all_jobs()) == 3


def test_a_finished_run_says_what_it_was_made_from(shared: Stage) -> None:
    """Revision, fingerprint, seed, image and every value that was used; equal specs give equal configurations."""
    one, other = begin(shared, "c16-one", training={"seed": 7}), begin(shared, "c16-other", training={"seed": 7})
    for run in (one, other):
        shared.end_pod(run.running_pod(), 0, succeeded())
        saw(
            Sees(
                conditions={"Complete": ("True", Reason.SUCCEEDED)},
                status=(
                    "resolved.modelRevision",
                    "resolved.datasetFingerprint",
                    "resolved.seed",
                    "resolved.image",
                    "artifact.digest",
                ),
            ),
            run,
        )
    resolved = one.status["resolved"]
    assert resolved == other.status["resolved"]
    assert resolved["seed"] == 7
    assert resolved["modelRevision"] == "a" * 40
    assert resolved["datasetFingerprint"] == "sha256:" + "b" * 64
    assert resolved["image"] == "registry.example/lora-trainer:test"
    assert one.status["artifact"]["digest"].startswith("sha256:")


@pytest.mark.parametrize("policy", ["Foreground", "Background", "Orphan"])
def test_a_resource_that_is_deleted_leaves_in_time_and_takes_nothing_of_its_users_along(
    shared: Stage, policy: str
) -> None:
    """The pod gets its grace period to save in, and claims stay; with --cascade=orphan the Job stays, as was asked."""
    claim = f"adapters-{policy.lower()}"
    make_claim(shared, claim)
    run = begin(shared, f"c2-{policy.lower()}", output={"uri": f"pvc://{claim}/tone"})
    pod = run.running_pod()
    job, path = run.job(), shared.path("lorafinetunes", run.name)
    before = remember(run)
    shared.api.delete(f"{path}?propagationPolicy={policy}")
    if policy == "Foreground":
        eventually(lambda: shared.finetune(run.name)["metadata"].get("deletionTimestamp"), "it waits for its children")
    else:
        eventually(partial(gone, shared.api, path), "the resource is gone")
    if policy == "Orphan":
        eventually(lambda: "ownerReferences" not in run.job()["metadata"], "the Job belongs to nobody")
        assert not run.pods[0]["metadata"].get("deletionTimestamp")
        shared.api.delete(shared.path("jobs", job["metadata"]["name"]) + "?propagationPolicy=Background")
    stopping = eventually(partial(_that_stops, run), "its pod is stopped")
    assert stopping["metadata"]["deletionGracePeriodSeconds"] == 120
    finish_deletion(shared, pod)
    eventually(lambda: not run.pods and not run.jobs and gone(shared.api, path), "everything is gone")
    kept(Kept.CLAIMS, before)


def test_a_resource_made_again_under_its_name_is_a_run_of_its_own(stage: Stage) -> None:
    """Twenty times, with two operators killed on the way: each has at most one Job, and the last one is left alone."""
    stage.start()
    suffixes = set()
    for number in range(20):
        uid = stage.apply("c3")["metadata"]["uid"]
        if number in (6, 13):
            stage.operators[-1].kill()
            stage.start()
        if number % 3 == 0:
            suffixes.add(eventually(partial(_job_of, stage, uid), "it has a Job"))
        if number < 19:
            policy = "Foreground" if number % 2 else "Background"
            path = stage.path("lorafinetunes", "c3")
            stage.api.delete(f"{path}?propagationPolicy={policy}")
            eventually(partial(gone, stage.api, path), "the old one is gone")
    last = Run(stage=stage, name="c3")
    suffixes.add(eventually(partial(_job_of, stage, uid), "the last one has a Job"))
    assert len(suffixes) == 8
    last.wait("Accepted", "True")
    eventually(lambda: len(stage.objects("jobs")) == 1, "the Jobs of the others are gone")
    (job,) = last.jobs
    assert job["metadata"]["labels"][UID_LABEL] == uid
    assert last.status["attempt"] == 1
    assert last.status["jobName"] == job["metadata"]["name"]
    # Those of the others go after their Jobs, and this one's comes after its Job.
    eventually(lambda: [p["metadata"]["labels"][UID_LABEL] for p in last.pods] == [uid], "it has the only pod")
    kept(Kept.ONE_JOB, remember(last))


@pytest.mark.parametrize("toggles", [50, 51])
def test_of_many_toggles_of_suspend_the_last_one_holds(stage: Stage, toggles: int) -> None:
    """As fast as the API server takes them: one Job, never two living pods, and then what was said last."""
    stage.start()
    run = begin(stage, "c4")
    first = run.running_pod()
    uid = run.job()["metadata"]["uid"]
    before = remember(run)
    for number in range(1, toggles + 1):
        run.change(suspend=number % 2 == 1)
        assert len([pod for pod in run.pods if not has_ended(parse_pod(pod))]) <= 1
        if number == 49:
            # The Job controller may have missed all wishes before, and would let the pod go on for the last one.
            eventually(partial(_that_stops, run), "the pod is stopped for one of them")
    held = toggles % 2 == 1
    run.wait("Suspended", "True" if held else "False")
    eventually(lambda: run.job()["spec"]["suspend"] is held, "the Job has heard the last wish")
    time.sleep(_JOB_CONTROLLER_S)
    kept(Kept.ONE_WRITER, before)
    finish_deletion(stage, first)
    if held:
        eventually(lambda: not run.pods, "no pod is left")
    else:
        run.running_pod(other_than=first)
    run.be_looked_at()
    suspended = ("True", Reason.SUSPENDED_BY_USER) if held else ("False", Reason.NOT_SUSPENDED)
    saw(Sees(conditions={"Suspended": suspended}), run)
    (job,) = run.jobs
    assert (job["metadata"]["uid"], job["spec"]["suspend"]) == (uid, held)
    assert run.status["attempt"] == 1
    kept(Kept.ONE_JOB, before)
    kept(Kept.RETRIES, before)


def _that_stops(run: Run) -> Object | None:
    return next((pod for pod in run.pods if pod["metadata"].get("deletionTimestamp")), None)


def _job_of(stage: Stage, uid: str) -> str | None:
    """Name of the only Job of that resource, none while it has none."""
    names = [j["metadata"]["name"] for j in stage.objects("jobs") if j["metadata"]["labels"][UID_LABEL] == uid]
    assert len(names) <= 1
    return names[0] if names else None
