"""What a run's GPUs worked for, and the steps that were lost: each second and each step once."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.builders import (
    CONFIG,
    NAMESPACE,
    NOW,
    ended_pod,
    finished_job,
    make_finetune,
    make_job,
    make_summary,
    minutes_ago,
    running_pod,
    with_status,
)
from tests.unit.world import World

from lora_operator.decision.decide import decide
from lora_operator.decision.usage import Loss, stored_usage
from lora_operator.running.metrics import Metrics
from lora_operator.views.model import Observed, PodView
from lora_operator.views.wording import instant
from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.progress import Phase, Progress
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.summary import SavedState

GPUS = {"resources": {"gpus": 2, "nodes": 3}}


def usage_of(*pods: PodView, progress: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The block after one look at a run of six GPUs whose progress was known."""
    finetune = make_finetune(spec=GPUS, status={"progress": progress or {}, "attempt": 1, **changes})
    status = decide(finetune, Observed(jobs=(make_job(),), pods=pods), CONFIG, NOW).status
    again = decide(with_status(finetune, status), Observed(jobs=(make_job(),), pods=pods), CONFIG, NOW).status
    assert again.get("usage") == status.get("usage"), "a second look counts it again"
    block: dict[str, Any] = status.get("usage", {})
    return block


def reported(step: int, *, ago: float, saved: int | None = None, saved_ago: float = 0) -> dict[str, Any]:
    block: dict[str, Any] = {"step": step, "lastUpdateTime": instant(minutes_ago(ago))}
    return (
        block
        if saved is None
        else {**block, "checkpointStep": saved, "checkpointTime": instant(minutes_ago(saved_ago))}
    )


def test_nothing_is_certain_of_a_pod_that_runs_without_a_checkpoint() -> None:
    """It may yet save, or fail."""
    assert usage_of(running_pod(), progress=reported(40, ago=1)) == {}


def test_time_up_to_a_checkpoint_is_useful() -> None:
    """The pod began thirty minutes ago and saved ten minutes ago, on three nodes with two GPUs each."""
    block = usage_of(running_pod(), progress=reported(40, ago=1, saved=40, saved_ago=10))
    assert block == {"usefulGpuSeconds": 6 * 20 * 60, "countedUntil": instant(minutes_ago(10))}


@pytest.mark.parametrize(
    ("code", "cause"), [(137, Loss.OUT_OF_MEMORY), (ExitCode.TRANSIENT, Loss.ERROR), (65, Loss.FAILED)]
)
def test_what_a_pod_did_since_its_checkpoint_is_lost_with_it(code: int, cause: Loss) -> None:
    """It ran from 50 to 11 minutes ago, saved step 30 and had reported step 42."""
    pod = ended_pod(code, reason="OOMKilled" if code == 137 else "Error")
    assert usage_of(pod, progress=reported(42, ago=12, saved=30, saved_ago=21)) == {
        "usefulGpuSeconds": 6 * 29 * 60,
        "wastedGpuSeconds": 6 * 10 * 60,
        "lostSteps": {cause.value: 12},
        "countedUntil": instant(minutes_ago(11)),
    }


def test_a_pod_that_saved_on_its_way_out_loses_nothing() -> None:
    """Its summary knows of a checkpoint that nobody had asked for."""
    saved = make_summary(Reason.EVICTED, "stopped", checkpoint=SavedState(uri="pvc://a/b", step=42))
    block = usage_of(ended_pod(143, saved.to_message()), progress=reported(42, ago=12))
    assert block == {"usefulGpuSeconds": 6 * 39 * 60, "countedUntil": instant(minutes_ago(11))}


def test_time_is_divided_as_steps_are_where_the_summary_knows_of_a_later_checkpoint() -> None:
    """Of forty reported steps thirty were saved."""
    saved = make_summary(Reason.RESTARTING, "lost", checkpoint=SavedState(uri="pvc://a/b", step=30))
    block = usage_of(ended_pod(ExitCode.TRANSIENT, saved.to_message()), progress=reported(40, ago=12))
    assert (block["usefulGpuSeconds"], block["wastedGpuSeconds"]) == (6 * 39 * 60 * 3 // 4, 6 * 39 * 60 // 4)
    assert block["lostSteps"] == {"error": 10}


def test_steps_of_an_earlier_pod_are_not_lost_again_with_one_that_reported_none() -> None:
    """The last report is older than the pod."""
    counted = {"usage": {"lostSteps": {"preempted": 5}, "countedUntil": instant(minutes_ago(55))}}
    block = usage_of(ended_pod(137, reason="OOMKilled"), progress=reported(42, ago=56), **counted)
    assert block["lostSteps"] == {"preempted": 5}
    assert block["wastedGpuSeconds"] == 6 * 39 * 60


def test_what_the_next_pod_reports_is_none_of_the_one_before() -> None:
    """An operator that was away meets both at once: the first one's checkpoint counts, the second one's is its own."""
    first = ended_pod(137, reason="OOMKilled", name="first", ended_at=minutes_ago(40))
    second = running_pod(name="second")
    kept = reported(90, ago=1, saved=20, saved_ago=45)
    block = usage_of(first, second, progress=kept)
    assert block == {
        "usefulGpuSeconds": 6 * 5 * 60,
        "wastedGpuSeconds": 6 * 5 * 60,
        "countedUntil": instant(minutes_ago(40)),
    }
    saved_again = usage_of(first, second, progress=reported(90, ago=1, saved=80, saved_ago=10))
    assert saved_again == {
        "usefulGpuSeconds": 6 * 20 * 60,
        "wastedGpuSeconds": 6 * 10 * 60,
        "countedUntil": instant(minutes_ago(10)),
    }


def test_all_that_a_successful_pod_did_since_the_last_count_is_useful() -> None:
    """Also what came after the last checkpoint; a pod that ended before it is counted by itself."""
    status = {"usage": {"usefulGpuSeconds": 7, "countedUntil": instant(minutes_ago(41))}, "attempt": 1}
    pod = ended_pod(0, make_summary().to_message())
    finetune = make_finetune(spec=GPUS, status=status)
    ongoing = decide(finetune, Observed(jobs=(make_job(),), pods=(pod,)), CONFIG, NOW).status
    assert ongoing["usage"] == status["usage"], "a claim is no success yet"
    ended = decide(finetune, Observed(jobs=(finished_job(),), pods=(pod,)), CONFIG, NOW).status
    assert ended["usage"] == {"usefulGpuSeconds": 7 + 6 * 30 * 60, "countedUntil": instant(minutes_ago(11))}


def test_pods_that_look_and_those_of_other_nodes_do_not_count() -> None:
    """A preflight has no GPU, and the first node's pod counts for all."""
    looks = ended_pod(0, stage="preflight")
    assert usage_of(looks, ended_pod(137, index=1, reason="OOMKilled")) == {}


@pytest.mark.parametrize(
    "odd", ["x", 5, {"lostSteps": 3, "usefulGpuSeconds": "9", "countedUntil": 1}, {"lostSteps": {"x": 1}}]
)
def test_an_odd_block_reads_as_none(odd: Any) -> None:
    """Whoever wrote it."""
    found = stored_usage({"usage": odd})
    assert (found.useful_gpu_s, found.wasted_gpu_s, dict(found.lost_steps), found.counted_until) == (0, 0, {}, None)


class Scraped:
    """A Prometheus that scrapes one operator after the other, and what `increase()` makes of a counter."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self._last: dict[tuple[int, str], float] = {}
        self._scraped: list[CollectorRegistry] = []

    def scrape(self, registry: CollectorRegistry) -> None:
        """A new pod has series of its own, and one that is there for the first time adds nothing, as in Prometheus."""
        self._scraped.append(registry)  # else another might get its id
        names = ("lorafinetune_gpu_seconds_total", "lorafinetune_steps_lost_total")
        samples = [sample for family in registry.collect() for sample in family.samples if sample.name in names]
        for sample in samples:
            key = next(value for label, value in sample.labels.items() if label != "namespace")
            series = id(registry), key
            more = sample.value - self._last.get(series, sample.value)
            self.sums[key], self._last[series] = self.sums.get(key, 0) + more, sample.value


class Watched:
    """A world whose operator counts, is scraped after each look, and may be restarted."""

    def __init__(self) -> None:
        self.world, self.prometheus = World(spec={**GPUS, "ttlSecondsAfterFinished": 600}), Scraped()
        self.is_deleted = False
        self.restart()

    def restart(self) -> None:
        """A new process, in a new pod: it knows the namespaces that have runs, and is first scraped after its turns."""
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.metrics.runs.hold()
        self.metrics.runs.begin_at_zero([] if self.is_deleted else [NAMESPACE])

    def look(self) -> None:
        """Until the operator rests."""
        for _ in range(5):
            before, observed = self.world.view(), self.world.observed()
            plan = self.world.step()
            if plan.status.get("_") == "changed":
                self.metrics.runs.observe(before, observed, self.world.status)
        self.prometheus.scrape(self.registry)
        self.metrics.runs.release()
        self.prometheus.scrape(self.registry)

    def trainers(self) -> list[Any]:
        """The pods of all nodes."""
        self.world.job_controller()
        return self.world.living_pods()

    def train(self, seconds: int, step: int, saved: int | None = None) -> None:
        """The pods run for a while, and report."""
        pods = self.trainers()
        for pod in pods:
            if self.world.state_of(pod) == "waiting":
                self.world.start(pod)
        self.world.pass_time(seconds)
        self.world.progress = Progress(phase=Phase.TRAINING, step=step, total_steps=100, checkpoint_step=saved)
        self.look()

    def end(self, code: int, message: str = "") -> None:
        """All of them end."""
        for pod in self.trainers():
            self.world.finish(pod, code, message)
        self.world.progress = None
        self.look()

    def expire(self) -> None:
        """Its Job goes with its time to live, and then somebody deletes the resource."""
        self.world.pass_time(601)
        self.look()
        assert (self.world.jobs, self.world.pods) == ({}, {})
        self.look()
        self.is_deleted = True
        self.metrics.runs.keep([], self.world.now.timestamp())
        self.prometheus.scrape(self.registry)


@pytest.mark.parametrize("restarts", [False, True])
def test_sums_over_all_operators_are_right_though_the_run_is_deleted_in_the_end(*, restarts: bool) -> None:
    """Two attempts, one of which loses a minute and six steps, then the success; the end of the Job, and of the
    resource, changes nothing."""
    watched = Watched()
    watched.look()
    watched.train(60, 10, saved=10)
    if restarts:
        watched.restart()
        watched.look()
    watched.train(60, 16, saved=10)
    watched.end(int(ExitCode.TRANSIENT))
    if restarts:
        watched.restart()
        watched.look()
    watched.train(30, 12, saved=10)
    watched.train(90, 100, saved=60)
    watched.end(0, make_summary().to_message())
    assert watched.world.condition("Complete")[0] == "True"
    if restarts:
        watched.restart()
        watched.look()
    watched.expire()
    if restarts:
        watched.restart()
    watched.prometheus.scrape(watched.registry)
    sums = {key: value for key, value in watched.prometheus.sums.items() if value}
    assert sums == {"true": 6 * (60 + 120), "false": 6 * 60, "error": 6}


def test_what_became_certain_while_no_operator_ran_is_in_the_sums() -> None:
    """However much: it is counted in the next one's first second, long before anybody scrapes it."""
    watched = Watched()
    watched.look()
    watched.train(60, 10, saved=10)
    watched.world.pass_time(3600)
    watched.restart()
    watched.end(int(ExitCode.TRANSIENT))
    sums = {key: value for key, value in watched.prometheus.sums.items() if value}
    assert sums == {"true": 6 * 60, "false": 6 * 3600}


def test_a_status_whose_write_failed_is_counted_with_the_one_that_follows() -> None:
    """What is counted is what was written: the difference to the status that was there."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    finetune = make_finetune(spec=GPUS)
    later = {
        "usage": {"usefulGpuSeconds": 9, "wastedGpuSeconds": 4, "lostSteps": {"error": 3}, "countedUntil": instant(NOW)}
    }
    metrics.runs.observe(finetune, Observed(), later)
    metrics.runs.observe(with_status(finetune, later), Observed(), later)
    more = {"usage": {**later["usage"], "usefulGpuSeconds": 11, "countedUntil": instant(NOW + timedelta(seconds=1))}}
    metrics.runs.observe(with_status(finetune, later), Observed(), more)
    counted = {
        useful: registry.get_sample_value("lorafinetune_gpu_seconds_total", {"namespace": NAMESPACE, "useful": useful})
        for useful in ("true", "false")
    }
    assert counted == {"true": 11.0, "false": 4.0}
    lost = {
        loss: registry.get_sample_value("lorafinetune_steps_lost_total", {"namespace": NAMESPACE, "cause": loss})
        for loss in Loss
    }
    assert lost == {**dict.fromkeys(Loss, 0.0), Loss.ERROR: 3.0}
