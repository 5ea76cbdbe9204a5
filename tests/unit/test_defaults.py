"""What a run gets where its resource is silent, and that it keeps it."""

import dataclasses
from typing import Any

import pytest
from tests.unit.builders import CONFIG, NOW, finished_job, make_finetune, make_job, minutes_ago, with_status
from tests.unit.deciding import decide
from tests.unit.plans import ATTEMPTED
from tests.unit.reports import make_plan
from tests.unit.test_render import container

from lora_operator.decide.results import plan_block
from lora_operator.model.config import OperatorConfig
from lora_operator.model.names import QUEUE_LABEL
from lora_operator.model.objects import FineTune, Observed, Plan
from lora_operator.model.wording import instant
from lora_trainer.spec.quantity import at_least, is_positive, size_of, times

Manifest = dict[str, Any]
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
ZONE = {"key": "zone", "operator": "In", "values": ["a"]}
LINUX = {"kubernetes.io/os": "linux"}
"""Of every pod, as the images are, and no default of a run: no status has it."""
IN_ZONE = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [ZONE]}]}}
SITE = dataclasses.replace(
    CONFIG,
    default_cpu_per_gpu="4",
    default_memory_per_gpu="12Gi",
    default_node_selector={"pool": "gpus"},
    default_tolerations=(GPU_TAINT,),
    default_affinity={"nodeAffinity": IN_ZONE},
    default_runtime_class_name="nvidia",
    default_priority_class_name="batch",
    default_queue="gpus",
    default_ttl_s=600,
    default_environment={"NCCL_DEBUG": "WARN", "HTTPS_PROXY": "http://proxy:3128"},
    default_checkpoint_claim="saves",
    cache_claim="models",
)
OTHER = dataclasses.replace(
    CONFIG,
    default_gpu_resource_name="amd.com/gpu",
    default_node_selector={"pool": "other"},
    default_memory_per_gpu="1Gi",
    default_ttl_s=1,
)
TO_BUCKET = {"output": {"uri": "s3://adapters/tone"}}


def plan_of(finetune: FineTune, config: OperatorConfig = SITE, **observed: Any) -> Plan:
    return decide(finetune, Observed(**observed), config, NOW)


def job_of(plan: Plan) -> Manifest:
    """The Job that a plan makes."""
    (job,) = (dict(made) for made in plan.create if made["kind"] == "Job")
    return job


def pod_of(plan: Plan) -> Manifest:
    spec: Manifest = job_of(plan)["spec"]["template"]["spec"]
    return spec


def resources_of(plan: Plan) -> Manifest:
    found: Manifest = container(job_of(plan))["resources"]
    return found


def test_a_silent_run_gets_the_defaults_and_shows_them() -> None:
    """All of them, in its pods and in its status."""
    plan = plan_of(make_finetune(spec=TO_BUCKET))
    pod, job = pod_of(plan), job_of(plan)
    assert pod["nodeSelector"] == {"pool": "gpus", **LINUX}
    assert pod["tolerations"] == [GPU_TAINT]
    assert pod["affinity"] == {"nodeAffinity": IN_ZONE}
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "batch")
    assert (job["metadata"]["labels"][QUEUE_LABEL], job["spec"]["suspend"]) == ("gpus", True)
    variables = {e["name"]: e.get("value") for e in container(job)["env"]}
    assert (variables["NCCL_DEBUG"], variables["HTTPS_PROXY"]) == ("WARN", "http://proxy:3128")
    assert variables["https_proxy"] == "http://proxy:3128"
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert claims == {"data", "saves", "models"}
    assert plan.status["resolved"]["pod"] == {
        "gpuResourceName": "nvidia.com/gpu",
        "cpu": "4",
        "memory": "12Gi",
        "nodeSelector": {"pool": "gpus"},
        "tolerations": [GPU_TAINT],
        "affinity": {"nodeAffinity": IN_ZONE},
        "runtimeClassName": "nvidia",
        "priorityClassName": "batch",
        "queue": "gpus",
        "ttlSecondsAfterFinished": 600,
        "environment": {"NCCL_DEBUG": "WARN", "HTTPS_PROXY": "http://proxy:3128"},
        "checkpointClaim": "saves",
        "cacheClaim": "models",
    }


def test_what_the_resource_says_counts_before_a_default() -> None:
    """Field by field; a claim of the output holds the checkpoints before the default one does."""
    own = {"key": "team", "operator": "Exists"}
    beside = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}
    spec = {
        "resources": {"gpuResourceName": "amd.com/gpu", "cpu": 1, "memory": "3Gi"},
        "scheduling": {
            "nodeSelector": {"pool": "own"},
            "tolerations": [own],
            "affinity": {"podAffinity": beside},
            "runtimeClassName": "own",
            "priorityClassName": "high",
        },
    }
    plan = plan_of(make_finetune(spec=spec, metadata={"labels": {QUEUE_LABEL: "mine"}}))
    pod = pod_of(plan)
    assert (pod["nodeSelector"], pod["tolerations"], pod["affinity"]) == (
        {"pool": "own", **LINUX},
        [own],
        {"podAffinity": beside},
    )
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("own", "high")
    assert resources_of(plan)["limits"] == {"memory": "3Gi", "amd.com/gpu": "1"}
    assert job_of(plan)["metadata"]["labels"][QUEUE_LABEL] == "mine"
    assert plan.status["resolved"]["pod"]["checkpointClaim"] == "adapters"


@pytest.mark.parametrize(("config", "queue"), [(SITE, "gpus"), (CONFIG, None)])
def test_an_empty_label_names_no_queue(config: OperatorConfig, queue: str | None) -> None:
    """The Job would wait, suspended, for a queue that does not exist; and pass by the one that all runs are to have."""
    job = job_of(plan_of(make_finetune(metadata={"labels": {QUEUE_LABEL: ""}}), config))
    assert (job["metadata"]["labels"].get(QUEUE_LABEL), job["spec"]["suspend"]) == (queue, queue is not None)


@pytest.mark.parametrize("spec", [{"resources": {"nodes": 2}}, {"resumeFrom": {"name": "other"}}])
def test_the_default_claim_is_there_for_the_runs_that_need_one(spec: Manifest) -> None:
    """The definition lets them in, since it does not know the default; without one the operator refuses them."""
    finetune = make_finetune(spec=TO_BUCKET | spec)
    assert plan_of(finetune).status["resolved"]["pod"]["checkpointClaim"] == "saves"
    refused = plan_of(finetune, CONFIG)
    assert refused.create == ()
    (said,) = {c["message"] for c in refused.status["conditions"] if c.get("reason") == "ConfigInvalid"}
    assert "checkpoint.volumeClaimName" in said
    assert "defaults.checkpointClaim" in said


def test_what_a_run_asks_of_gpus_is_added_to_each_term_of_a_default_affinity() -> None:
    """A node has to meet one term, so each must have it."""
    pod = pod_of(plan_of(make_finetune(spec={"resources": {"gpuProducts": ["NVIDIA-L4"]}})))
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    product = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
    assert term == {"matchExpressions": [ZONE, product]}


def test_a_changed_default_reaches_new_runs_alone() -> None:
    """The next attempt of a run is as its first one, from its preflight on; a new run is not."""
    for spec in ({}, {"preflight": "Run"}):
        began = plan_of(make_finetune(spec=TO_BUCKET | spec)).status
        finetune = with_status(make_finetune(spec=TO_BUCKET), {**began, **ATTEMPTED})
        again = plan_of(finetune, OTHER)
        assert pod_of(again)["nodeSelector"] == {"pool": "gpus", **LINUX}
        assert resources_of(again)["limits"] == {"memory": "12Gi", "nvidia.com/gpu": "1"}
        assert again.status["resolved"]["pod"] == began["resolved"]["pod"]
    fresh = plan_of(make_finetune(spec=TO_BUCKET), OTHER)
    assert pod_of(fresh)["nodeSelector"] == {"pool": "other", **LINUX}
    assert resources_of(fresh)["limits"] == {"memory": "1Gi", "amd.com/gpu": "1"}


def test_a_run_that_began_without_variables_gets_none_later() -> None:
    """What is absent is frozen, too."""
    began = plan_of(make_finetune(), CONFIG).status
    assert "environment" not in began["resolved"]["pod"]
    again = plan_of(with_status(make_finetune(), {**began, **ATTEMPTED}), SITE)
    assert "HTTPS_PROXY" not in {e["name"] for e in container(job_of(again))["env"]}


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({}, ("4", "12Gi")),
        ({"gpus": 0}, ("4", "12Gi")),
        ({"gpus": 8}, ("32", "96Gi")),
        ({"gpus": 8, "memory": "20Gi"}, ("32", "20Gi")),
        ({"gpus": 2, "cpu": "500m"}, ("500m", "24Gi")),
    ],
)
def test_cpu_and_memory_grow_with_the_gpus(resources: Manifest, asked: tuple[str, str]) -> None:
    """A process for each of them has its own libraries."""
    found = resources_of(plan_of(make_finetune(spec={"resources": resources})))
    assert (found["requests"]["cpu"], found["requests"]["memory"]) == asked
    assert found["limits"]["memory"] == asked[1]


@pytest.mark.parametrize(
    ("planned", "memory", "asked"),
    [
        (40_000_000_000, None, "38Gi"),
        (1_000_000_000, None, "12Gi"),
        (40_000_000_000, "9Gi", "9Gi"),
    ],
)
def test_memory_is_at_least_that_of_the_plan(planned: int, memory: str | None, asked: str) -> None:
    """In whole GiB, where the resource says nothing of it; the status has what the pod asks for."""
    status = {
        "conditions": [{"type": "PreflightPassed", "status": "True"}],
        "plan": plan_block(make_plan(pod_memory_bytes=planned)),
    }
    spec = {"preflight": "Run", "resources": {"memory": memory} if memory else {}}
    plan = plan_of(make_finetune(spec=spec, status=status))
    assert resources_of(plan)["limits"]["memory"] == asked
    assert plan.status["resolved"]["pod"]["memory"] == asked


@pytest.mark.parametrize("junk", ["x", [], {"cpu": 3, "tolerations": "all", "environment": [1], "affinity": "x"}])
def test_whatever_somebody_wrote_into_the_status_is_survived(junk: Any) -> None:
    """Of another type than the operator wrote it, it reads as absent."""
    finetune = make_finetune(status={"resolved": {"rank": 16, "pod": junk}, **ATTEMPTED})
    assert job_of(plan_of(finetune))


def test_the_time_to_live_is_that_with_which_the_run_began() -> None:
    """A Job gets the default of then, unless the resource says something now."""
    ended = {"conditions": [{"type": "Complete", "status": "True"}], "completionTime": instant(minutes_ago(10))}

    def ttl_of(plan: Plan) -> list[int]:
        return [patch.body["spec"]["ttlSecondsAfterFinished"] for patch in plan.patch]

    for kept, wanted in (({"ttlSecondsAfterFinished": 600}, [600]), ({}, [])):
        status = {**ended, "resolved": {"rank": 16, "pod": {"cpu": "1", **kept}}}
        assert ttl_of(plan_of(make_finetune(status=status), OTHER, jobs=(finished_job(),))) == wanted
    status = {**ended, "resolved": {"pod": {"ttlSecondsAfterFinished": 600}}}
    longer = make_finetune(spec={"ttlSecondsAfterFinished": 900}, status=status)
    assert ttl_of(plan_of(longer, OTHER, jobs=(finished_job(),))) == [900]


def test_devices_and_disk_beside_the_gpus_are_asked_for() -> None:
    """Devices as limits, which Kubernetes takes for requests too; disk as a request, which evicts nobody."""
    spec = {"resources": {"extendedResources": {"rdma/hca": 1}, "ephemeralStorage": "50Gi"}}
    plan = plan_of(make_finetune(spec=spec))
    assert resources_of(plan) == {
        "requests": {"cpu": "4", "memory": "12Gi", "ephemeral-storage": "50Gi"},
        "limits": {"memory": "12Gi", "nvidia.com/gpu": "1", "rdma/hca": "1"},
    }
    for wrong in ({"rdma": 1}, {"nvidia.com/gpu": 1}, {"rdma/hca": 0}):
        refused = plan_of(make_finetune(spec={"resources": {"extendedResources": wrong}}))
        assert "spec.resources.extendedResources" in refused.status["conditions"][0]["message"]


def test_a_preflight_gets_no_runtime_class_and_no_devices() -> None:
    """The nodes that it may go to know nothing of them."""
    spec = {"preflight": "Run", "resources": {"extendedResources": {"rdma/hca": 1}}}
    plan = plan_of(make_finetune(spec=spec))
    assert "runtimeClassName" not in pod_of(plan)
    assert resources_of(plan)["limits"] == {"memory": "2Gi"}


def test_a_live_job_is_followed_whatever_the_defaults_have_become() -> None:
    """Nothing of it is changed."""
    plan = plan_of(make_finetune(status=ATTEMPTED), OTHER, jobs=(make_job(),))
    assert (plan.create, plan.delete, plan.patch) == ((), (), ())


@pytest.mark.parametrize(
    ("text", "count", "product"),
    [
        ("8Gi", 8, "64Gi"),
        ("500m", 3, "1500m"),
        ("1.5", 2, "3"),
        (".5Gi", 1, ".5Gi"),
        ("1e3", 2, "2e3"),
        ("lots", 2, "lots"),
    ],
)
def test_a_quantity_is_multiplied_in_its_own_unit(text: str, count: int, product: str) -> None:
    """As a person would."""
    assert times(text, count) == product


@pytest.mark.parametrize(
    ("text", "size", "found"),
    [
        ("8Gi", 8 * 2**30, "8Gi"),
        ("8Gi", 8 * 2**30 + 1, "9Gi"),
        ("9G", 9_000_000_001, "9Gi"),
        ("1e10", 9_999_999_999, "1e10"),
        ("8589934592000m", 8 * 2**30, "8589934592000m"),
        ("lots", 5, "lots"),
    ],
)
def test_a_quantity_is_raised_to_a_number_of_bytes(text: str, size: int, found: str) -> None:
    """In whole GiB."""
    assert at_least(text, size) == found


def test_a_quantity_of_nothing_is_none() -> None:
    """Kubernetes would take it."""
    assert [is_positive(text) for text in ("0", "0.0Gi", "", "x", "1e-3", "5")] == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16Gi", 16 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("1e3", 1000),
        ("100m", 1),
        ("7", 7),
        ("16GB", None),
    ],
)
def test_a_quantity_in_bytes(text: str, size: int | None) -> None:
    """As Kubernetes reads it: parts of a byte count as one, and what is beyond 64 bits as the most that these hold."""
    assert size_of(text) == size
    assert size_of("9" * 50 + "e99") == 2**63 - 1
