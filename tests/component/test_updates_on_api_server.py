"""What may change of a LoRAFineTune while it runs, asked through a real API server: field by field of the schema."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from tests.component.definition import BAD, DEFINITION, Api, changed, example, get, leaves, put, refusals
from tests.faults.seen import Sees, saw

from docgen.schema import Field, load

MUTABLE = {
    "spec.suspend",
    "spec.maxRetries",
    "spec.activeDeadlineSeconds",
    "spec.pendingTimeoutSeconds",
    "spec.ttlSecondsAfterFinished",
}

# For each leaf of spec, another value that is as valid as the one in examples/every-field.yaml or in ALTERNATIVE.
OTHER: Mapping[str, Any] = {
    "spec.model.uri": "hf://acme/other",
    "spec.model.secretRef.name": "other",
    "spec.dataset.uri": "hf://acme/other",
    "spec.dataset.secretRef.name": "other",
    "spec.dataset.format": "Auto",
    "spec.dataset.columns": {"instruction": "task", "output": "other"},
    "spec.dataset.split": "test_sft",
    "spec.dataset.validationUri": "hf://acme/other",
    "spec.dataset.validationFraction": "0.5",
    "spec.dataset.maxValidationRows": 7,
    "spec.dataset.splitSeed": 1,
    "spec.dataset.chatTemplate": "configmap://templates/chat.jinja",
    "spec.dataset.templateArguments": {"enable_thinking": "false"},
    "spec.lora.rank": 8,
    "spec.lora.alpha": 8,
    "spec.lora.layers": "MLP",
    "spec.lora.targetModules": ["q_proj"],
    "spec.lora.excludeModules": ["other"],
    "spec.lora.layerIndices": [0],
    "spec.lora.dropout": "0.5",
    "spec.lora.scaling": "Classic",
    "spec.lora.variant": "LoRA",
    "spec.lora.init": "Default",
    "spec.lora.rankPattern": {"q_proj": 8},
    "spec.lora.alphaPattern": {"q_proj": 8},
    "spec.lora.modulesToSave": ["embed_tokens"],
    "spec.lora.targetParameters": ["mlp.experts.gate_up_proj"],
    "spec.quantization": "None",
    "spec.training.epochs": "3",
    "spec.training.maxSteps": 7,
    "spec.training.learningRate": "0.5",
    "spec.training.schedule": "Constant",
    "spec.training.warmupRatio": "0.5",
    "spec.training.effectiveBatchSize": 64,
    "spec.training.microBatchSize": 2,
    "spec.training.maxSequenceLength": 128,
    "spec.training.packing": "Enabled",
    "spec.training.lossOn": "Completion",
    "spec.training.optimizer": "PagedAdamW8bit",
    "spec.training.weightDecay": "0.5",
    "spec.training.maxGradNorm": "0.3",
    "spec.training.precision": "FP32",
    "spec.training.activationCheckpointing": "None",
    "spec.training.kernels": "Auto",
    "spec.training.seed": 1,
    "spec.training.evalSteps": 7,
    "spec.training.earlyStoppingPatience": 7,
    "spec.resources.gpus": 1,
    "spec.resources.nodes": 3,
    "spec.resources.gpuResourceName": "nvidia.com/gpu",
    "spec.resources.gpuMinMemoryGiB": 24,
    "spec.resources.gpuProducts": ["NVIDIA-L4"],
    "spec.resources.cpu": 2,
    "spec.resources.memory": "32Gi",
    "spec.resources.sharedMemory": "2Gi",
    "spec.resources.ephemeralStorage": "7Gi",
    "spec.resources.extendedResources": {"rdma/other": 1},
    "spec.scheduling.nodeSelector": {"other": "label"},
    "spec.scheduling.tolerations": [{"key": "other", "operator": "Exists"}],
    "spec.scheduling.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms": [{}],
    "spec.scheduling.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution": [],
    "spec.scheduling.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution": [],
    "spec.scheduling.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution": [],
    "spec.scheduling.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution": [],
    "spec.scheduling.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution": [],
    "spec.scheduling.runtimeClassName": "other",
    "spec.scheduling.priorityClassName": "other",
    "spec.output.uri": "s3://acme-models/other",
    "spec.output.secretRef.name": "other",
    "spec.output.merge": "Merged",
    "spec.output.mergePrecision": "Auto",
    "spec.checkpoint.intervalSeconds": 60,
    "spec.checkpoint.intervalSteps": 60,
    "spec.checkpoint.keep": 5,
    "spec.checkpoint.volumeClaimName": "other",
    "spec.tracking.kind": "TensorBoard",
    "spec.tracking.project": "other",
    "spec.tracking.secretRef.name": "other",
    "spec.resumeFrom.name": "other",
    "spec.preflight": "Run",
    "spec.suspend": True,
    "spec.maxRetries": 1,
    "spec.activeDeadlineSeconds": 90000,
    "spec.pendingTimeoutSeconds": 60,
    "spec.ttlSecondsAfterFinished": 1,
}
# A second object holds the other field of each exclusive pair, what every-field.yaml sets to its default, and what
# another field there would not do without.
ALTERNATIVE = {
    "spec.dataset.validationUri": "hf://acme/held-out",
    "spec.lora.layers": "Attention",
    "spec.lora.targetParameters": ["mlp.experts.down_proj"],
    "spec.training.maxSteps": 5,
    "spec.training.packing": "Disabled",
    "spec.training.lossOn": "All",
    "spec.training.evalSteps": 20,
    "spec.resources.gpus": 0,
    "spec.resources.gpuResourceName": "amd.com/gpu",
    "spec.output.merge": "Both",
    "spec.checkpoint.volumeClaimName": "claim",
    "spec.tracking.kind": "WandB",
}
REPLACED_BY_ALTERNATIVE = (
    "spec.dataset.validationFraction",
    "spec.lora.targetModules",
    "spec.lora.variant",
    "spec.lora.dropout",
    "spec.training.epochs",
    "spec.training.earlyStoppingPatience",
    "spec.resources.nodes",
    "spec.resources.gpuMinMemoryGiB",
    "spec.resources.gpuProducts",
    "spec.output.mergePrecision",
    "spec.tracking.project",
    "spec.tracking.secretRef",
    "spec.resumeFrom",
)


def optional_parts(*, defaulted: bool) -> list[str]:
    """Paths that a manifest may leave out: optional leaves, and optional objects whose leaves are required.

    Those that get a default, so that they cannot be absent, only if `defaulted`.
    """

    def parts(field: Field) -> Iterator[str]:
        for child in field.children:
            groups_optional_fields = child.children and "items" not in child.schema and "default" in child.schema
            if child.required or groups_optional_fields:
                yield from parts(child) if "items" not in child.schema else ()
            elif defaulted or "default" not in child.schema:
                yield child.path

    return list(parts(load(DEFINITION).field("spec")))


@pytest.fixture(scope="module")
def stored(api: Api) -> Mapping[str, dict[str, Any]]:
    """Stored objects to update: one with every field, one with the alternatives, one with what is required only."""
    full = example("every-field.yaml")
    alternative = changed(full, {"metadata": {"name": "alternative"}})
    for path in REPLACED_BY_ALTERNATIVE:
        alternative = put(alternative, path, None)
    for path, value in ALTERNATIVE.items():
        alternative = put(alternative, path, value)
    bare = changed(yaml.safe_load((BAD / "base.yaml").read_text()), {"metadata": {"name": "bare"}})
    bare = put(bare, "spec.dataset.uri", "hf://acme/chats")
    manifests = {"full": full, "alternative": alternative, "bare": bare}
    return {name: api.create(manifest, dry_run=False) for name, manifest in manifests.items()}


def held(paths: list[str]) -> list[str]:
    """Those that may not change."""
    return [path for path in paths if path not in MUTABLE]


def holder(stored: Mapping[str, dict[str, Any]], path: str) -> dict[str, Any]:
    return stored["alternative"] if path in ALTERNATIVE else stored["full"]


def test_updates_are_tried_on_every_leaf_of_the_schema() -> None:
    """A new field without a case here fails this test."""
    assert set(OTHER) == set(leaves())


@pytest.mark.parametrize("path", held(leaves()))
def test_a_change_of_what_defines_the_run_is_refused(api: Api, stored: Mapping[str, dict[str, Any]], path: str) -> None:
    """Each leaf is refused by its own path."""
    update = put(holder(stored, path), path, OTHER[path])
    (refusal,) = refusals(lambda: api.replace(update))
    assert refusal.field == path
    saw(
        Sees(
            refusal=(
                path,
                "create a new LoRAFineTune",
            )
        ),
        text=f"{refusal.field}: {refusal.message}",
    )


@pytest.mark.parametrize("path", held(optional_parts(defaulted=True)))
def test_taking_away_what_defines_the_run_is_refused(api: Api, stored: Mapping[str, dict[str, Any]], path: str) -> None:
    """Each optional field is held, whether the API server would put a default in its place or not."""
    update = put(holder(stored, path), path, None)
    (refusal,) = refusals(lambda: api.replace(update))
    assert refusal.field == path
    saw(
        Sees(
            refusal=(
                path,
                "create a new LoRAFineTune",
            )
        ),
        text=f"{refusal.field}: {refusal.message}",
    )


@pytest.mark.parametrize("path", [*held(optional_parts(defaulted=False)), "spec.activeDeadlineSeconds"])
def test_adding_what_defines_the_run_is_refused(api: Api, stored: Mapping[str, dict[str, Any]], path: str) -> None:
    """Each optional field that a bare resource lacks cannot be put in later."""
    value = OTHER.get(path, {"name": "other"})
    update = put(stored["bare"], path, value)
    found = refusals(lambda: api.replace(update))
    # Some fields ask for another one besides, which a bare resource lacks as well.
    rules = ("immutable", "a deadline can be raised or removed, but not")
    assert [refusal.field for refusal in found if any(rule in refusal.message for rule in rules)] == [path]
    assert {refusal.field for refusal in found} == {path}


@pytest.mark.parametrize("path", sorted(MUTABLE))
def test_what_may_change_can_be_changed_added_and_taken_away(
    api: Api, stored: Mapping[str, dict[str, Any]], path: str
) -> None:
    """A deadline cannot be added later: it would be less than what the run had."""
    assert get(api.replace(put(holder(stored, path), path, OTHER[path])), path) == OTHER[path]
    api.replace(put(holder(stored, path), path, None))
    if path != "spec.activeDeadlineSeconds":
        assert get(api.replace(put(stored["bare"], path, OTHER[path])), path) == OTHER[path]


def test_a_deadline_can_be_raised_and_removed_but_not_lowered(api: Api, stored: Mapping[str, dict[str, Any]]) -> None:
    """Nobody shortens a run by accident, and the sentence says how to stop one."""
    path = "spec.activeDeadlineSeconds"
    full = stored["full"]
    assert get(api.replace(put(full, path, full["spec"]["activeDeadlineSeconds"] + 1)), path) == 86401
    assert get(api.replace(put(full, path, None)), path) is None
    (found,) = refusals(lambda: api.replace(put(full, path, 86399)))
    assert (found.field, "set suspend to true or delete" in found.message) == (path, True)


def test_the_former_default_of_the_quantization_may_become_auto(api: Api) -> None:
    """As kubectl replace of a file asks that names none; nothing else may, and there is no way back."""
    path = "spec.quantization"
    for name, began in (("was-none", "None"), ("was-nf4", "NF4")):
        manifest = changed(example("minimal.yaml"), {"metadata": {"name": name}, "spec": {"quantization": began}})
        written = api.create(manifest, dry_run=False)
        if began == "None":
            assert get(api.replace(put(written, path, None)), path) == "Auto"
            assert get(api.replace(put(written, path, "Auto")), path) == "Auto"
        else:
            (found,) = refusals(lambda written=written: api.replace(put(written, path, "Auto")))  # type: ignore[misc]
            assert (found.field, "immutable" in found.message) == (path, True)
    auto = api.create(changed(example("minimal.yaml"), {"metadata": {"name": "is-auto"}}), dry_run=False)
    (found,) = refusals(lambda: api.replace(put(auto, path, "None")))
    assert (found.field, "immutable" in found.message) == (path, True)


def test_a_number_may_be_written_in_each_of_its_ways(api: Api) -> None:
    """Quoted with an exponent, and epochs with quotes or without: that is the same run, and the same resource."""
    path, training = "spec.training.epochs", {"learningRate": "2e-4", "weightDecay": "1E-2", "epochs": 2}
    named = changed(example("minimal.yaml"), {"metadata": {"name": "two-ways"}, "spec": {"training": training}})
    written = api.create(named, dry_run=False)
    assert (get(written, path), get(written, "spec.training.learningRate")) == (2, "2e-4")
    assert get(api.replace(put(written, path, "2")), path) == "2"
    for other in (1, "1", "2.5"):
        (found,) = refusals(lambda other=other: api.replace(put(written, path, other)))  # type: ignore[misc]
        assert (found.field, "immutable" in found.message) == (path, True)


def test_the_former_default_of_the_gpus_name_may_be_left_out(api: Api) -> None:
    """As kubectl replace of a file asks that names none; it cannot be added, and another name stays."""
    path = "spec.resources.gpuResourceName"
    for name, began in (("was-default", "nvidia.com/gpu"), ("was-named", "amd.com/gpu")):
        named = changed(example("minimal.yaml"), {"metadata": {"name": name}})
        written = api.create(put(named, path, began), dry_run=False)
        if began == "nvidia.com/gpu":
            assert get(api.replace(put(written, path, None)), path) is None
        else:
            (found,) = refusals(lambda written=written: api.replace(put(written, path, None)))  # type: ignore[misc]
            assert (found.field, "immutable" in found.message) == (path, True)


def test_sections_of_defaults_may_be_left_out_of_an_update(api: Api, stored: Mapping[str, dict[str, Any]]) -> None:
    """Taking away what equals the defaults changes nothing, so it is allowed."""
    bare = stored["bare"]
    update = bare
    for path in (
        "spec.lora",
        "spec.training",
        "spec.resources",
        "spec.scheduling",
        "spec.checkpoint",
        "spec.tracking",
        "spec.quantization",
        "spec.suspend",
    ):
        update = put(update, path, None)
    assert api.replace(update)["spec"] == bare["spec"]
