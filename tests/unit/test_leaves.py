"""Every leaf of the resource's spec does something: it changes the run, its objects, or what the operator does.

A leaf without a case here fails, and so does a setting of the run that no leaf reaches.
"""

import copy
import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from tests.unit.builders import CONFIG, NOW, UID, finished_job, make_finetune, make_job, with_status
from tests.unit.deciding import decide
from tests.unit.plans import finished
from tests.unit.spec_schema import SPEC
from tests.unit.test_render import FULL, SITE, everything

from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import FineTune, Observed
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.device_section import GpuSetting
from lora_trainer.spec.manifest import RunOptions, train_config

Spec = dict[str, Any]

PLAIN: Spec = {
    "model": {"uri": "hf://acme/base"},
    "dataset": {"uri": "hf://acme/chats"},
    "output": {"uri": "s3://adapters/tone"},
}
TRACKED: Spec = {**PLAIN, "tracking": {"kind": "WandB", "project": "tone", "secretRef": {"name": "wandb"}}}
CHECKED: Spec = {**PLAIN, "checkpoint": {"volumeClaimName": "saves"}}
MERGED: Spec = {**PLAIN, "output": {"uri": "s3://adapters/tone", "merge": "Merged"}}
EVALUATED: Spec = {**PLAIN, "training": {"evalSteps": 10}}

REQUIRED, PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))
LABEL = {"key": "pool", "operator": "Exists"}
NEAR = {"topologyKey": "kubernetes.io/hostname"}

# For each leaf another valid value than PLAIN's or its default; and the resource in which it is changed, where PLAIN
# would not do.
CASES: Mapping[str, tuple[Any, Spec]] = {
    "model.uri": ("s3://models/base", PLAIN),
    "model.secretRef.name": ("token", PLAIN),
    "dataset.uri": ("configmap://chats/a.jsonl", PLAIN),
    "dataset.secretRef.name": ("token", PLAIN),
    "dataset.format": ("Text", PLAIN),
    "dataset.columns": ({"text": "body"}, PLAIN),
    "dataset.split": ("test", PLAIN),
    "dataset.validationUri": ("hf://acme/held-out", PLAIN),
    "dataset.validationFraction": ("0.3", PLAIN),
    "dataset.maxValidationRows": (7, PLAIN),
    "dataset.splitSeed": (7, PLAIN),
    "dataset.chatTemplate": ("ChatML", PLAIN),
    "dataset.templateArguments": ({"enable_thinking": "false"}, PLAIN),
    "lora.rank": (8, PLAIN),
    "lora.alpha": (7, PLAIN),
    "lora.layers": ("MLP", PLAIN),
    "lora.targetModules": (["q_proj"], PLAIN),
    "lora.excludeModules": (["down_proj"], PLAIN),
    "lora.layerIndices": ([3], PLAIN),
    "lora.dropout": ("0.1", PLAIN),
    "lora.scaling": ("RankStabilized", PLAIN),
    "lora.variant": ("DoRA", PLAIN),
    "lora.init": ("PiSSA", PLAIN),
    "lora.rankPattern": ({"q_proj": 4}, PLAIN),
    "lora.alphaPattern": ({"q_proj": 4}, PLAIN),
    "lora.modulesToSave": (["lm_head"], PLAIN),
    "lora.targetParameters": (["mlp.experts.down_proj"], PLAIN),
    "quantization": ("INT8", PLAIN),
    "training.epochs": ("3", PLAIN),
    "training.maxSteps": (10, PLAIN),
    "training.learningRate": ("0.001", PLAIN),
    "training.schedule": ("Linear", PLAIN),
    "training.warmupRatio": ("0.5", PLAIN),
    "training.effectiveBatchSize": (32, PLAIN),
    "training.microBatchSize": (2, PLAIN),
    "training.maxSequenceLength": (512, PLAIN),
    "training.packing": ("Disabled", PLAIN),
    "training.lossOn": ("All", PLAIN),
    "training.optimizer": ("AdamW8bit", PLAIN),
    "training.weightDecay": ("0.1", PLAIN),
    "training.maxGradNorm": ("0.5", PLAIN),
    "training.precision": ("BF16", PLAIN),
    "training.activationCheckpointing": ("Full", PLAIN),
    "training.kernels": ("Reference", PLAIN),
    "training.seed": (7, PLAIN),
    "training.evalSteps": (5, PLAIN),
    "training.earlyStoppingPatience": (3, EVALUATED),
    "resources.gpus": (2, PLAIN),
    "resources.nodes": (2, CHECKED),
    "resources.gpuResourceName": ("amd.com/gpu", PLAIN),
    "resources.gpuMinMemoryGiB": (24, PLAIN),
    "resources.gpuProducts": (["NVIDIA-L4"], PLAIN),
    "resources.cpu": (7, PLAIN),
    "resources.memory": ("3Gi", PLAIN),
    "resources.sharedMemory": ("2Gi", PLAIN),
    "resources.ephemeralStorage": ("50Gi", PLAIN),
    "resources.extendedResources": ({"rdma/hca": 1}, PLAIN),
    "scheduling.nodeSelector": ({"nvidia.com/gpu.product": "NVIDIA-L4"}, PLAIN),
    "scheduling.tolerations": ([{"key": "gpu", "operator": "Exists"}], PLAIN),
    f"scheduling.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms": ([{"matchExpressions": [LABEL]}], PLAIN),
    f"scheduling.affinity.nodeAffinity.{PREFERRED}": (
        [{"weight": 1, "preference": {"matchExpressions": [LABEL]}}],
        PLAIN,
    ),
    **{
        f"scheduling.affinity.{kind}.{how}": ([term], PLAIN)
        for kind in ("podAffinity", "podAntiAffinity")
        for how, term in ((REQUIRED, NEAR), (PREFERRED, {"weight": 1, "podAffinityTerm": NEAR}))
    },
    "scheduling.runtimeClassName": ("nvidia", PLAIN),
    "scheduling.priorityClassName": ("high", PLAIN),
    "output.uri": ("oci://ghcr.io/acme/tone:v1", PLAIN),
    "output.secretRef.name": ("writer", PLAIN),
    "output.merge": ("Both", PLAIN),
    "output.mergePrecision": ("FP32", MERGED),
    "checkpoint.intervalSeconds": (60, PLAIN),
    "checkpoint.intervalSteps": (60, PLAIN),
    "checkpoint.keep": (3, PLAIN),
    "checkpoint.volumeClaimName": ("claim", PLAIN),
    "tracking.kind": ("MLflow", PLAIN),
    "tracking.project": ("other", TRACKED),
    "tracking.secretRef.name": ("other", TRACKED),
    "resumeFrom.name": ("other", CHECKED),
    "preflight": ("Run", PLAIN),
    "suspend": (True, PLAIN),
    "maxRetries": (1, PLAIN),
    "activeDeadlineSeconds": (600, PLAIN),
    "pendingTimeoutSeconds": (60, PLAIN),
    "ttlSecondsAfterFinished": (0, PLAIN),
}
# What the operator alone acts on, after the objects were rendered or without them.
OF_THE_OPERATOR = {"preflight", "pendingTimeoutSeconds", "ttlSecondsAfterFinished"}
# Who a run is and how it is run are not the user's to say: the resource's metadata, the release and the operator's
# configuration are.
NOT_OF_THE_SPEC = {
    "version",
    "run.namespace",
    "run.name",
    "run.uid",
    "run.attempt",
    "device.allow_cpu",
    "device.gpu_price",
    "planned",
    "stall_timeout_s",
}


def leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all that holds a value; a list or a map counts as one."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        if "properties" in field:
            yield from leaves(field, here)
        else:
            yield here


def changed(spec: Spec, path: str, value: Any) -> Spec:
    """A copy with one field set."""
    result = copy.deepcopy(spec)
    *parents, last = path.split(".")
    inner = result
    for part in parents:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return result


def train(spec: Spec) -> TrainConfig:
    """The run that a spec asks for."""
    return train_config(make_finetune(spec=spec).manifest, RunOptions(uid=UID, strict=True))


def settings(config: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a run with its path."""
    if not dataclasses.is_dataclass(config):
        yield path, config
        return
    for field in dataclasses.fields(config):
        yield from settings(getattr(config, field.name), f"{path}.{field.name}".lstrip("."))


def ended(spec: Spec) -> FineTune:
    """A resource with this spec whose success is stored."""
    return with_status(make_finetune(spec=spec), finished().status)


def test_every_leaf_has_a_case_here() -> None:
    """A new field needs a value that differs."""
    assert set(CASES) == set(leaves(SPEC))


@pytest.mark.parametrize("path", CASES)
def test_a_change_of_a_leaf_changes_the_run_or_its_objects(path: str) -> None:
    """What a user writes never goes unread."""
    value, spec = CASES[path]
    if path in OF_THE_OPERATOR:
        finished_run = path == "ttlSecondsAfterFinished"
        job = finished_job() if finished_run else make_job()
        observed = Observed(jobs=() if path == "preflight" else (job,))
        runs = [
            ended(each) if finished_run else make_finetune(spec=each) for each in (spec, changed(spec, path, value))
        ]
        plans = [decide(run, observed, CONFIG, NOW) for run in runs]
        assert plans[0] != plans[1]
        return
    before, after = (everything(each, CONFIG) for each in (spec, changed(spec, path, value)))
    assert before != after


@pytest.mark.parametrize("path", ["suspend", "maxRetries", "activeDeadlineSeconds"])
def test_what_may_change_while_a_run_goes_on_reaches_its_job(path: str) -> None:
    """By a patch, since the Job is there."""
    value, spec = CASES[path]
    plan = decide(make_finetune(spec=changed(spec, path, value)), Observed(jobs=(make_job(),)), CONFIG, NOW)
    assert len(plan.patch) == 1


def test_every_setting_of_a_run_is_reached_by_a_leaf() -> None:
    """Nothing in the trainer can be set by nobody."""
    reached: set[str] = set()
    for path, (value, spec) in CASES.items():
        before, after = dict(settings(train(spec))), dict(settings(train(changed(spec, path, value))))
        reached |= {name for name in after if after[name] != before.get(name)}
    assert {name for name, _ in settings(train(FULL))} - reached == NOT_OF_THE_SPEC


def test_every_choice_of_a_leaf_gives_a_run_of_its_own() -> None:
    """Two words for the same thing would be one too many."""
    count = 0
    for path in leaves(SPEC):
        schema = SPEC
        for part in path.split("."):
            schema = schema["properties"][part]
        if path in OF_THE_OPERATOR:
            continue
        spec = CASES[path][1]
        choices = [train(changed(spec, path, choice)) for choice in schema.get("enum", ())]
        assert len({config.to_json() for config in choices}) == len(choices), path
        count += len(choices)
    members = [value for _, value in settings(train(FULL)) if isinstance(value, enum.Enum)]
    assert count > 2 * len(members)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(OperatorConfig)])
def test_every_setting_of_the_site_that_is_about_runs_changes_what_is_rendered(name: str) -> None:
    """The others are about the operator itself: how it watches, asks, retries and logs."""
    itself = {
        "default_ttl_s",  # of a Job that has ended
        *("run_metrics", "status_delay_s"),
        *("namespaces", "progress_interval_s", "progress_timeout_s", "pending_check_s", "resync_interval_s"),
        *("lease_name", "lease_namespace", "require_rendered_image"),
        *("lease_duration_s", "renew_deadline_s", "retry_period_s"),
        *(
            "watch_inactivity_s",
            "retry_base_s",
            "retry_max_s",
            "workers",
            "http_port",
            "log_level",
            "log_format",
        ),
    }
    others: dict[str, Any] = {
        "image_pull_policy": "Never",
        "oci_plain_http_registries": ("a:1",),
        "gpus": (GpuSetting(name="nvidia.com/gpu", memory_gib=24),),
        "pod_annotations": {"sidecar.istio.io/inject": "false"},
        "preflight_node_selector": {"pool": "small"},
        "preflight_tolerations": ({"key": "team", "operator": "Exists"},),
        "default_gpu_resource_name": "amd.com/gpu",
        "default_node_selector": {"pool": "gpus"},
        "default_tolerations": ({"key": "gpu", "operator": "Exists"},),
        "default_affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "kubernetes.io/hostname"}]}},
        "default_environment": {"NCCL_DEBUG": "WARN"},
        "default_ttl_s": 600,
    }
    value = getattr(SITE, name)
    if name in others:
        other = others[name]
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, str):
        other = value + "0"
    else:
        other = (*value, "other") if isinstance(value, tuple) else value + 1
    site = dataclasses.replace(SITE, **{name: other})
    spec = (
        {**PLAIN, "tracking": {"kind": "WandB"}}
        if name == "wandb_base_url"
        else {k: FULL[k] for k in TRACKED if k in FULL}
    )
    assert (_rendered(spec, site) == _rendered(spec, SITE)) == (name in itself)


def _rendered(spec: Spec, site: OperatorConfig) -> str:
    finetune = make_finetune(spec=spec)
    plan = decide(finetune, Observed(), site, NOW)
    return yaml.safe_dump_all([*plan.create, *everything(spec, site)])
