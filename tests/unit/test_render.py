"""The rendered Jobs and Service, byte for byte, against the files in tests/golden.

After an intended change, write the files anew and read the diff: `UPDATE_GOLDEN=1 pytest tests/unit/test_render.py`
"""

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.builders import CONFIG, UID, make_finetune

from lora_operator.decide.decide import PREFLIGHT_SHAPE
from lora_operator.model import names
from lora_operator.model.config import OperatorConfig
from lora_operator.model.defaults import defaults_for
from lora_operator.model.objects import FineTune
from lora_operator.model.request import Request, read_request
from lora_operator.render.jobs import render_job, render_service
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.exit_codes import FINAL, ExitCode
from lora_trainer.spec.manifest import RunOptions

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = "UPDATE_GOLDEN" in os.environ

QUICKSTART: dict[str, Any] = {
    "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
    "dataset": {"uri": "configmap://support-desk/train.jsonl", "validationFraction": "0.2"},
    "training": {"epochs": "1", "maxSequenceLength": 512},
    "resources": {"gpus": 0, "cpu": 2, "memory": "4Gi"},
    "output": {"uri": "pvc://adapters/quickstart"},
}
FULL: dict[str, Any] = {
    "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct@main", "secretRef": {"name": "hf-token"}},
    "dataset": {
        "uri": "hf://acme/support-chats@v2",
        "secretRef": {"name": "acme-token"},
        "format": "PromptCompletion",
        "columns": {"prompt": "question", "completion": "answer"},
        "split": "train_sft",
        "validationUri": "s3://acme-data/held-out.parquet",
    },
    "lora": {
        "rank": 64,
        "alpha": 64,
        "targetModules": ["q_proj", "v_proj"],
        "excludeModules": ["down_proj"],
        "layerIndices": [30, 31],
        "dropout": "0.05",
        "scaling": "RankStabilized",
        "variant": "DoRA",
        "init": "Gaussian",
        "rankPattern": {"q_proj": 8},
        "alphaPattern": {"q_proj": 16},
        "modulesToSave": ["lm_head"],
    },
    "quantization": "NF4",
    "training": {
        "maxSteps": 1000,
        "learningRate": "0.0001",
        "schedule": "Linear",
        "warmupRatio": "0.1",
        "effectiveBatchSize": 32,
        "microBatchSize": 4,
        "maxSequenceLength": 4096,
        "lossOn": "All",
        "precision": "BF16",
        "packing": "Disabled",
        "optimizer": "AdamW8bit",
        "weightDecay": "0.01",
        "maxGradNorm": "0.5",
        "activationCheckpointing": "Full",
        "kernels": "Reference",
        "seed": 7,
        "evalSteps": 50,
        "earlyStoppingPatience": 3,
    },
    "resources": {
        "gpus": 4,
        "nodes": 2,
        "gpuResourceName": "nvidia.com/gpu",
        "cpu": "8",
        "memory": "64Gi",
        "sharedMemory": "8Gi",
    },
    "scheduling": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "training-low",
    },
    "output": {
        "uri": "oci://ghcr.io/acme/support-tone:v1",
        "secretRef": {"name": "registry"},
        "merge": "Both",
        "mergePrecision": "FP32",
    },
    "checkpoint": {"intervalSeconds": 300, "intervalSteps": 100, "keep": 3, "volumeClaimName": "checkpoints"},
    "tracking": {"kind": "MLflow", "project": "support", "secretRef": {"name": "mlflow"}},
    "resumeFrom": {"name": "first-try"},
    "suspend": True,
    "maxRetries": 1,
    "activeDeadlineSeconds": 86400,
    "ttlSecondsAfterFinished": 3600,
}
SITE = OperatorConfig(
    trainer_image="registry.example/lora-trainer:1.0",
    image_pull_policy="Always",
    image_pull_secrets=("registry-login",),
    trainer_service_account_name="lora-trainer",
    hub_endpoint="http://hub.example",
    s3_endpoint="https://s3.example",
    s3_region="eu-north-1",
    default_environment={"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": ".svc,.cluster.local"},
    ca_bundle_config_map="company-ca",
    oci_plain_http_registries=("registry.team-a.svc:5000", "localhost:5000"),
    mlflow_tracking_uri="https://mlflow.example",
    wandb_base_url="https://wandb.example",
    cache_claim="models",
    preflight_image="registry.example/lora-preflight:1.0",
    preflight_cpu="500m",
    preflight_memory="1Gi",
    termination_grace_s=300,
    stall_timeout_s=600,
    allow_cpu=True,
)
CASES = {"minimal": ({}, CONFIG), "quickstart": (QUICKSTART, CONFIG), "full": (FULL, SITE)}


def rendered(spec: dict[str, Any], config: OperatorConfig, **metadata: Any) -> dict[str, Any]:
    """The training Job of the first attempt."""
    finetune, request, train = understood(spec, config, **metadata)
    return render_job(finetune, request, train, config)


def everything(spec: dict[str, Any], config: OperatorConfig) -> tuple[dict[str, Any], ...]:
    """All that the first attempt may make, in the order in which it is made."""
    finetune, request, train = understood(spec, config)
    first = render_job(finetune, request, train, config, stage="preflight", shape=PREFLIGHT_SHAPE)
    service = (render_service(finetune, train),) if request.pod.nodes > 1 else ()
    return (first, *service, rendered(spec, config))


def understood(spec: dict[str, Any], config: OperatorConfig, **metadata: Any) -> tuple[FineTune, Request, TrainConfig]:
    """The resource, read and found valid."""
    finetune = make_finetune(spec=spec, metadata=metadata)
    request = read_request(
        finetune.manifest,
        RunOptions(uid=finetune.uid, allow_cpu=config.allow_cpu, gpus=config.gpus),
        defaults_for(finetune.spec, {}, config),
    )
    assert request.train is not None, request.problems
    return finetune, request, request.train


def container(job: dict[str, Any]) -> dict[str, Any]:
    """The trainer's container of a rendered Job."""
    (only,) = job["spec"]["template"]["spec"]["containers"]
    result: dict[str, Any] = only
    return result


class _Dumper(yaml.SafeDumper):
    """Keeps the order of keys, repeats instead of anchors, shows texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True


def as_yaml(objects: tuple[dict[str, Any], ...]) -> str:
    """The objects as kubectl would show them, with the configuration, which is one line, as a map to be read."""
    shown = copy.deepcopy(objects)
    for job in (obj for obj in shown if obj["kind"] == "Job"):
        annotations = job["spec"]["template"]["metadata"]["annotations"]
        annotations[names.CONFIG_ANNOTATION] = json.loads(annotations[names.CONFIG_ANNOTATION])
    return yaml.dump_all(shown, Dumper=_Dumper, sort_keys=False, width=1000)


@pytest.mark.parametrize("case", CASES)
def test_objects_are_rendered_byte_for_byte(case: str) -> None:
    """The golden files show what reaches the cluster."""
    text = as_yaml(everything(*CASES[case]))
    path = GOLDEN / f"{case}.yaml"
    if UPDATE:
        path.write_text(text)
    assert text == path.read_text()


def test_rendering_twice_gives_the_same_bytes() -> None:
    """A restart in between must not change the configuration."""
    assert as_yaml(everything(FULL, SITE)) == as_yaml(everything(FULL, SITE))


def test_the_pod_reads_a_file_from_which_the_trainer_gets_the_whole_run() -> None:
    """An annotation of the template, which is immutable, on a volume that nobody else makes."""
    _, _, train = understood(FULL, SITE)
    template = rendered(FULL, SITE)["spec"]["template"]
    text = template["metadata"]["annotations"][names.CONFIG_ANNOTATION]
    assert TrainConfig.from_json(text) == train
    assert text.count("\n") == 1
    volume = template["spec"]["volumes"][0]
    field = {"fieldPath": f"metadata.annotations['{names.CONFIG_ANNOTATION}']"}
    assert volume == {"name": "config", "downwardAPI": {"items": [{"path": "config.json", "fieldRef": field}]}}


def test_each_attempt_has_names_labels_and_configuration_of_its_own() -> None:
    """Immutable objects are not made over."""
    finetune = make_finetune()
    request = read_request(finetune.manifest, RunOptions(uid=UID, attempt=2))
    assert request.train is not None
    job = render_job(finetune, request, request.train, CONFIG)
    assert job["metadata"]["name"] == names.child_name("support-tone", UID, 2)
    assert job["metadata"]["labels"]["lora-operator.io/attempt"] == "2"
    text = job["spec"]["template"]["metadata"]["annotations"][names.CONFIG_ANNOTATION]
    assert TrainConfig.from_json(text).run.attempt == 2


def test_a_name_says_which_stage_of_which_attempt_a_job_is() -> None:
    """Whatever its labels say, and whatever the resource is called."""
    for name in ("x", "x-3-preflight", "x" * 253):
        for stage in ("train", "preflight"):
            assert names.place_of(names.job_name(name, UID, 21, stage)) == (21, stage)
    assert names.place_of("by-hand") == (0, "train")


def test_names_fit_a_hostname_whatever_the_resource_is_called() -> None:
    """The longest name, the highest attempt, the last node: an Indexed Job's pod adds its index, 63 are allowed."""
    for name in ("x", "x" * 52, "x" * 253):
        assert len(names.child_name(name, UID, 21) + "-63") <= 63
        assert len(names.job_name(name, UID, 21, "preflight")) <= 63
    assert names.child_name("a", UID, 1) != names.child_name("a", UID + "x", 1)


def test_the_pod_failure_policy_is_the_contract_on_exit_codes() -> None:
    """What is final for the trainer is final for the Job; an eviction, being told to stop, and a failed peer are no
    failures of the pod."""
    job = rendered({}, CONFIG)
    ignore, fail, stopped = job["spec"]["podFailurePolicy"]["rules"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"]["values"] == sorted(int(code) for code in FINAL)
    assert fail["onExitCodes"]["containerName"] == container(job)["name"]
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [ExitCode.PEER_FAILED])


def test_the_pod_meets_the_restricted_pod_security_standard() -> None:
    """Non-root, no capabilities, read-only root, no token of a service account."""
    job = rendered(FULL, SITE)
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container(job)["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    kinds = {key for volume in pod["volumes"] for key in volume if key != "name"}
    assert kinds <= {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim"}


def test_a_claim_is_mounted_once_and_writable_only_where_the_output_goes() -> None:
    """Model and output on one claim, data on another."""
    spec = {
        "model": {"uri": "pvc://shared/models/base"},
        "dataset": {"uri": "pvc://data/a.jsonl"},
        "output": {"uri": "pvc://shared/out"},
    }
    job = rendered(spec, CONFIG)
    mounts = [m for m in container(job)["volumeMounts"] if m["mountPath"].startswith("/claims")]
    assert mounts == [
        {"name": "claim-0", "mountPath": "/claims/shared"},
        {"name": "claim-1", "mountPath": "/claims/data", "readOnly": True},
    ]
    volumes = [
        v["persistentVolumeClaim"] for v in job["spec"]["template"]["spec"]["volumes"] if "persistentVolumeClaim" in v
    ]
    assert volumes == [{"claimName": "shared"}, {"claimName": "data", "readOnly": True}]


@pytest.mark.parametrize(("gpus", "limits"), [(0, {"memory": "8Gi"}), (1, {"memory": "8Gi", "nvidia.com/gpu": "1"})])
def test_a_gpu_is_asked_for_only_where_one_is_wanted(gpus: int, limits: dict[str, str]) -> None:
    """A limit of 0 would still tie the pod to a device plugin."""
    job = rendered({"resources": {"gpus": gpus}}, CONFIG)
    assert container(job)["resources"] == {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": limits}


def test_a_queued_job_is_born_suspended_and_carries_the_queue_labels() -> None:
    """Kueue admits it by lifting the suspension; the user's own wish stays noted as false."""
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low", "team": "a"}
    job = rendered({}, CONFIG, labels=labels)
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["annotations"]["lora-operator.io/suspend"] == "false"
    assert job["metadata"]["labels"].items() >= {"kueue.x-k8s.io/queue-name": "gpus"}.items()
    assert "team" not in job["metadata"]["labels"]
    assert "kueue.x-k8s.io/queue-name" not in job["spec"]["template"]["metadata"]["labels"]


def test_children_belong_to_the_resource_and_go_with_it() -> None:
    """A controller owner reference, which the garbage collector follows."""
    for obj in everything(FULL, SITE):
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, True)


def test_a_job_never_carries_a_time_to_live() -> None:
    """It could vanish before its result was read."""
    job = rendered(FULL, SITE)
    assert "ttlSecondsAfterFinished" not in job["spec"]


def test_defaults_of_the_site_fill_what_the_resource_leaves_open() -> None:
    """Requests come from the operator's configuration."""
    site = dataclasses.replace(CONFIG, default_cpu_per_gpu="3", default_memory_per_gpu="12Gi")
    job = rendered({"resources": {"cpu": "500m"}}, site)
    assert container(job)["resources"]["requests"] == {"cpu": "500m", "memory": "12Gi"}
