"""A namespace that may have so many unfinished runs, on a real control plane."""

from tests.component.documents import succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage


def jobs(stage: Stage) -> list[str]:
    """The runs that have a Job, by name."""
    return sorted(job["metadata"]["labels"]["lora-operator.io/name"] for job in stage.objects("jobs"))


def test_a_run_beyond_the_limit_waits_and_begins_by_itself_when_another_ends(stage: Stage) -> None:
    """It says why, nothing polls for it, and a restart of the operator changes nothing."""
    first = stage.start(mostUnfinishedRunsPerNamespace=1)
    stage.apply("a")
    pod = stage.wait_pod(stage.wait_job())
    stage.apply("b")
    refused = stage.wait_condition("Accepted", status="False", name="b")
    assert refused["reason"] == "QuotaExceeded"
    assert "may have 1 unfinished runs" in refused["message"]
    first.kill()
    stage.start(mostUnfinishedRunsPerNamespace=1)
    stage.apply("c")
    stage.wait_condition("Accepted", status="False", name="c")
    assert jobs(stage) == ["a"]
    stage.run_pod(pod)
    stage.end_pod(pod, 0, succeeded())
    stage.wait_condition("Complete", status="True", name="a")
    stage.wait_condition("Accepted", status="True", name="b")
    assert jobs(stage) == ["a", "b"]
    stage.api.delete(stage.path("lorafinetunes", "b"))
    assert eventually(lambda: "c" in jobs(stage), "the youngest has its Job")
