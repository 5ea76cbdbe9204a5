"""`decide` on a model world in which anything may happen in any order."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.builders import (
    CONFIG,
    NOW,
    SHARED,
    condition_object,
    make_job_object,
    make_manifest,
    make_pod_object,
    make_resolved,
    make_summary,
    make_workload_object,
)
from tests.unit.deciding import decide
from tests.unit.junk import EVIL, FREE_TEXT, JSON, damaged, hostile
from tests.unit.reports import make_report
from tests.unit.status_schema import check_status
from tests.unit.world import World

from lora_operator.model import names
from lora_operator.model.conditions import Type
from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import Observed, Refusal
from lora_operator.model.observe import (
    LONGEST_TEXT,
    MOST_ITEMS,
    parse_event,
    parse_finetune,
    parse_job,
    parse_pod,
    parse_workload,
)
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason

CODES = st.sampled_from([1, 64, 65, 70, 72, 75, 137, 143])
MESSAGES = st.sampled_from(
    [
        "",
        "Traceback (most recent call last):\nValueError: no",
        make_summary(Reason.DATASET_INVALID, "line 3 is no JSON").to_message(),
        make_summary().to_message(),
        make_report().to_message(),
    ]
)


class Life(RuleBasedStateMachine):
    """Users, the Job controller, nodes and the API server act; after each act the operator comes to rest."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.verdict: dict[str, Any] | None = None
        self.passed = False
        self.snapshot: Observed | None = None
        self.used = 0
        self.run_s = 0
        self.endings = 0

    @initialize(
        retries=st.integers(0, 2),
        queue=st.booleans(),
        limits=st.sampled_from([{}, {"ttlSecondsAfterFinished": 60}, {"pendingTimeoutSeconds": 120}]),
        valid=st.integers(0, 9),
        cache=st.booleans(),
        nodes=st.integers(1, 2),
        preflight=st.sampled_from(["Run", "Skip"]),
    )
    def create(
        self, retries: int, queue: bool, limits: dict[str, int], valid: int, *, cache: bool, nodes: int, preflight: str
    ) -> None:
        """A user applies a LoRAFineTune, for one node or two; one in ten is invalid; there is a cache or not."""
        self.world.config = SHARED if cache else CONFIG
        self.world.edit(maxRetries=retries, resources={"nodes": nodes}, preflight=preflight, **limits)
        if queue:
            self.world.finetune["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
        if valid == 0:
            self.world.edit(lora={"rank": 0})

    @rule()
    def controller(self) -> None:
        """The Job controller catches up."""
        self.world.job_controller()

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.world.pass_time(seconds)

    @precondition(lambda self: self.world.living_pods())
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """A pod starts."""
        self.world.start(data.draw(st.sampled_from(self.world.living_pods())))

    @precondition(lambda self: self.world.living_pods())
    @rule(data=st.data(), code=CODES, message=MESSAGES, disrupted=st.booleans())
    def fail(self, data: st.DataObject, code: int, message: str, disrupted: bool) -> None:
        """A trainer fails, or is taken away."""
        pod = data.draw(st.sampled_from(self.world.living_pods()))
        self.world.finish(pod, code, message, disrupted=disrupted)
        self.endings += 1

    @precondition(lambda self: self.world.living_pods())
    @rule(message=MESSAGES)
    def exit_0(self, message: str) -> None:
        """A trainer ends with 0, with a summary or without."""
        self.world.finish(self.world.living_pods()[0], 0, message)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data(), orphan=st.booleans())
    def delete_job(self, data: st.DataObject, orphan: bool) -> None:
        """Somebody deletes a Job."""
        self.world.delete_job(data.draw(st.sampled_from(list(self.world.jobs))), orphan=orphan)
        self.endings += 1

    @precondition(lambda self: self.world.pods)
    @rule()
    def delete_pod(self) -> None:
        """Somebody deletes a pod."""
        self.world.pods.pop(next(iter(self.world.pods)))

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data(), value=st.booleans())
    def suspend_job(self, data: st.DataObject, value: bool) -> None:
        """A queue suspends or admits a Job."""
        self.world.suspend_job(data.draw(st.sampled_from(list(self.world.jobs))), value)
        self.endings += value

    @rule(
        suspend=st.booleans(),
        retries=st.integers(0, 2),
        deadline=st.sampled_from([None, 600]),
        pending=st.sampled_from([None, 120]),
    )
    def edit(self, suspend: bool, retries: int, deadline: int | None, pending: int | None) -> None:
        """The user changes what may be changed."""
        limits = {"activeDeadlineSeconds": deadline, "pendingTimeoutSeconds": pending}
        self.world.edit(suspend=suspend, maxRetries=retries, **limits)

    @rule(step=st.integers(-5, 500), phase=st.sampled_from(Phase), stated=st.booleans())
    def report(self, step: int, phase: Phase, stated: bool) -> None:
        """A trainer answers, or does not."""
        report = Progress(
            phase=phase,
            step=step,
            total_steps=400,
            loss=1.5,
            checkpoint_step=step - step % 50 if step >= 50 else None,
            resolved=make_resolved(),
        )
        self.world.progress = report if stated else None

    @rule(refusal=st.sampled_from([None, (403, "exceeded quota: gpus"), (409, "already exists"), (422, "no")]))
    def refuse(self, refusal: tuple[int, str] | None) -> None:
        """The API server begins or ceases to refuse."""
        self.world.refusal = refusal

    @rule()
    def fall_behind(self) -> None:
        """The cache stops to follow the cluster for a while."""
        self.snapshot = self.world.observed()

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def decide_on_old_news(self) -> None:
        """The operator acts once on what the cache held a while ago."""
        assert self.snapshot is not None
        self.world.step(self.snapshot)

    @invariant()
    def comes_to_rest_and_keeps_its_word(self) -> None:
        """Rest within few rounds; one living Job; one verdict, never changed; Complete only with an adapter."""
        world = self.world
        plan = world.settle()
        assert world.most_living_jobs <= 1
        assert plan.events == ()
        if world.refusal is None and (plan.due_in_s is None or plan.due_in_s > 1):
            later = world.now + timedelta(seconds=1)
            again = decide(world.view(), world.observed(), world.config, later)
            assert again.status == world.status
        complete, failed = world.condition("Complete"), world.condition("Failed")
        assert (complete[0], failed[0]) in {("Unknown", "Unknown"), ("True", "False"), ("False", "True")}
        assert complete[1] == failed[1]
        if complete[0] == "True":
            assert world.status["artifact"]["uri"]
        stated = {c["type"]: c["status"] for c in world.status["conditions"]}
        if world.finetune["spec"]["preflight"] == "Run" and world.jobs_of("train"):
            assert stated["PreflightPassed"] == "True", "a GPU is asked for before anybody has looked"
        assert not self.passed or stated["PreflightPassed"] == "True", "what was looked at is looked at no more"
        self.passed = stated.get("PreflightPassed") == "True"
        self._counts_only_rise()
        self._remember_verdict()

    def _counts_only_rise(self) -> None:
        """Time and retries that were counted stay counted, and one pod is never counted twice."""
        world = self.world
        used = world.status.get("retries", {}).get("used", 0)
        assert used >= self.used
        assert used <= self.endings, "more ends than pods that ended and Jobs that were deleted"
        assert world.status.get("runSeconds", 0) >= self.run_s
        assert world.status.get("runSeconds", 0) <= (world.now - NOW).total_seconds()
        self.used, self.run_s = used, world.status.get("runSeconds", 0)
        if world.condition("Complete")[0] != "Unknown":
            assert all(world.is_over(job) for job in world.jobs.values()), "a Job goes on without a run"

    def _remember_verdict(self) -> None:
        world = self.world
        if world.condition("Complete")[0] == "Unknown":
            assert self.verdict is None, "a verdict was taken back"
            assert "completionTime" not in world.status
            return
        stated = {key: value for key, value in world.status.items() if key not in {"observedGeneration", "conditions"}}
        stated["conditions"] = [
            {key: value for key, value in c.items() if key != "observedGeneration"} for c in world.status["conditions"]
        ]
        assert self.verdict in (None, stated)
        self.verdict = stated
        assert all(c["observedGeneration"] == world.view().generation for c in world.status["conditions"])


TestLife = Life.TestCase
TestLife.settings = settings(stateful_step_count=20)


@given(
    st.data(),
    st.sampled_from([None, 403, 409, 422]),
    st.sampled_from([CONFIG, SHARED]),
    st.sampled_from(["train", "preflight"]),
)
def test_no_world_is_too_odd_to_decide_on(
    data: st.DataObject, code: int | None, config: OperatorConfig, stage: str
) -> None:
    """Damaged manifests, statuses, Jobs and pods: there is a plan, and a status that the API server accepts."""
    manifest = make_manifest(
        spec={"lora": {"rank": 8}, "training": {"epochs": "2"}, "scheduling": {"tolerations": [{}]}}
    )
    world = World()
    world.settle()
    manifest["status"] = copy.deepcopy(world.status)
    ended: dict[str, Any] = {
        "terminated": {"exitCode": 0, "message": make_summary().to_message(), "finishedAt": "2026-03-01T11:59:00Z"}
    }
    state = data.draw(st.sampled_from([ended, {"running": {}}, {"waiting": {"reason": "ErrImagePull"}}]))
    conditions = [condition_object("Failed", reason="BackoffLimitExceeded")] if data.draw(st.booleans()) else []
    job = make_job_object(
        status={"conditions": conditions}, stage=stage, queue=data.draw(st.sampled_from(["", "gpus"]))
    )
    pod = make_pod_object(state=state, conditions=(condition_object("PodScheduled", "False"),), stage=stage)
    said = (condition_object("QuotaReserved", "False", message="no room"), condition_object("Evicted"))
    workload = make_workload_object(*said, active=data.draw(st.booleans()))
    event = {"involvedObject": {"uid": "job-1"}, "reason": "FailedCreate", "message": "exceeded quota"}
    rejection = None
    if code is not None:
        rejection = Refusal(kind="Job", name="x", code=code, reason="", message=data.draw(st.text(max_size=9)))
    observed = Observed(
        jobs=tuple(parse_job(data.draw(damaged(job))) for _ in range(data.draw(st.integers(0, 2)))),
        pods=tuple(parse_pod(data.draw(damaged(pod))) for _ in range(data.draw(st.integers(0, 2)))),
        events=(parse_event(data.draw(damaged(event))),),
        kueue=data.draw(st.booleans()),
        workloads=tuple(parse_workload(data.draw(damaged(workload))) for _ in range(data.draw(st.integers(0, 2)))),
        refusals=(rejection,) if rejection else (),
    )
    decide(parse_finetune(data.draw(damaged(manifest))), observed, config, NOW)
    spec = data.draw(damaged(manifest["spec"]))
    plan = decide(parse_finetune({**manifest, "spec": spec}), observed, config, NOW)
    check_status(plan.status)
    stated = [condition["type"] for condition in plan.status["conditions"]]
    assert stated == [kind for kind in Type if kind.value in stated]
    assert set(Type) - set(stated) <= {Type.QUOTA_RESERVED, Type.PREFLIGHT_PASSED, Type.CHECKPOINT_SAVED}


@given(JSON)
def test_a_manifest_that_is_no_manifest_fails_with_a_sentence(junk: Any) -> None:
    """Not one exception, and not one Job."""
    plan = decide(parse_finetune({"spec": junk}), Observed(), CONFIG, NOW)
    accepted = next(c for c in plan.status["conditions"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "ConfigInvalid")
    assert "spec" in accepted["message"]
    assert plan.create == ()


@pytest.mark.parametrize("keys", [None, FREE_TEXT], ids=["every string", "free text"])
@pytest.mark.parametrize("text", EVIL, ids=["long", "ambiguous", "digits", "open", "unprintable"])
@pytest.mark.parametrize("state", ["terminated", "waiting"])
def test_an_object_without_measure_costs_a_sentence(text: str, keys: set[str] | None, state: str) -> None:
    """Every string a MiB, every list of ten thousand, every number beyond 64 bits: a status that the server takes."""
    stated = {"exitCode": 1, "message": "m", "reason": "ErrImagePull", "finishedAt": "2026-03-01T11:59:00Z"}
    said = condition_object("PodScheduled", "False", message="m")
    failed = condition_object("Failed", reason="BackoffLimitExceeded", message="m")
    pod = make_pod_object(state={state: stated}, conditions=(said,))
    remembered = {names.IMAGE_ANNOTATION: "image"}
    job = make_job_object(status={"conditions": [failed] if state == "terminated" else []}, annotations=remembered)
    event = {"involvedObject": {"uid": "job-1"}, "reason": "FailedCreate", "message": "m"}
    rejection = Refusal(kind="Job", name="x", code=422, reason="", message=text) if keys else None
    observed = Observed(
        jobs=(parse_job(hostile(job, text, keys)),),
        pods=(parse_pod(hostile(pod, text, keys)),),
        events=(parse_event(hostile(event, text, keys)),),
        kueue=True,
        workloads=(parse_workload(hostile(make_workload_object(said), text, keys)),),
        refusals=(rejection,) if rejection else (),
    )
    assert sum(map(len, _texts(observed.pods[0]))) < 100 * LONGEST_TEXT
    assert len(observed.pods[0].conditions) <= MOST_ITEMS
    for known in (observed, dataclasses.replace(observed, jobs=(), pods=())):
        plan = decide(parse_finetune(make_manifest()), known, CONFIG, NOW)
        check_status(plan.status)
        assert str(plan.status.get("resolved", {}).get("image", "")).isprintable()
        assert len(json.dumps(plan.status)) < 64 * 1024
        assert all(len(record.message) <= 1024 for record in plan.events)


def _texts(value: Any) -> Iterator[str]:
    """Every string in a view."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value[:20]:
            yield from _texts(item)
