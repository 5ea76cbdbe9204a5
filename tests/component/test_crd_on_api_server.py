"""The LoRAFineTune definition, asked through a real API server."""

import copy
import json
import re
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from tests.faults.proofs import Proofs
from tests.unit.reports import make_plan, make_preflight

from docgen.schema import Field, load, walk
from localcluster.client import Client, CommandError
from localcluster.processes import wait_until
from lora_operator.decision import results
from lora_operator.decision.blocks import block_from
from lora_operator.decision.stages.preflight import plan_block
from lora_operator.views.defaults import Defaults
from lora_operator.views.request import read_request
from lora_trainer.contract.manifest import RunOptions, train_config
from lora_trainer.contract.summary import Artifact, DatasetStats, ResolvedRun, Results

# What an administrator may set for runs that are silent.
SITE = Defaults(queue="gpus", ttl_s=86400, environment={"NCCL_DEBUG": "WARN"}, cache_claim="models")
REPOSITORY = Path(__file__).resolve().parents[2]
DEFINITION = REPOSITORY / "crds/lorafinetunes.yaml"
BAD = Path(__file__).parent / "crd_bad"
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
IDENTITY = ("lora-operator.io", "v1alpha1")
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


def leaves() -> list[str]:
    """Paths of the fields of spec that hold values; a list or a map counts as one."""
    fields = [field for field in walk(load(DEFINITION).field("spec")) if "[]" not in field.path]
    return [field.path for field in fields if not field.children or "items" in field.schema]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What the API server says about one field."""

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """LoRAFineTunes of one namespace of its own."""

    cluster: Client
    namespace: str
    objects: Any  # the generated client's types know no custom resources

    def create(self, manifest: Mapping[str, Any], *, dry_run: bool = True) -> dict[str, Any]:
        options = {"dry_run": "All"} if dry_run else {}
        return dict(
            self.objects.create_namespaced_custom_object(
                *IDENTITY, self.namespace, "lorafinetunes", manifest, **options
            )
        )

    def replace(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Try an update without storing it."""
        name = manifest["metadata"]["name"]
        return dict(
            self.objects.replace_namespaced_custom_object(
                *IDENTITY, self.namespace, "lorafinetunes", name, manifest, dry_run="All"
            )
        )

    def write_status(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        name = manifest["metadata"]["name"]
        return dict(
            self.objects.replace_namespaced_custom_object_status(
                *IDENTITY, self.namespace, "lorafinetunes", name, manifest
            )
        )

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")


@pytest.fixture(scope="module")
def api(control_plane: Client) -> Iterator[Api]:
    """The definition applied, and a namespace that is deleted afterwards."""
    connect: Any = config.new_client_from_config
    connection = connect(str(control_plane.kubeconfig))
    api = Api(
        cluster=control_plane,
        namespace=f"crd-{uuid.uuid4().hex[:8]}",
        objects=client.CustomObjectsApi(connection),
    )
    control_plane.kubectl("create", "namespace", api.namespace)
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEFINITION))
    # Its condition Established comes before the server tells clients of the new kind and of its fields.
    assert wait_until(lambda: is_explained(control_plane), timeout_s=60, interval_s=0.2)
    yield api
    control_plane.kubectl("delete", "namespace", api.namespace, "--wait=false")
    connection.close()


def is_explained(cluster: Client) -> bool:
    try:
        return "VERSION" in cluster.kubectl("explain", "lft.status.artifact.servable")
    except CommandError:
        return False


def refusals(call: Callable[[], object]) -> list[Refusal]:
    """What the API server finds wrong; the note that it looked no further is left out."""
    with pytest.raises(ApiException) as caught:
        call()
    assert caught.value.status == 422, caught.value.body
    causes = json.loads(caught.value.body or "")["details"]["causes"]
    return [Refusal(field=cause["field"], message=cause["message"]) for cause in causes if cause["field"] != "<nil>"]


def changed(document: Any, change: Any) -> Any:
    """The document with a merge patch applied: maps are merged, None removes, anything else replaces."""
    if not isinstance(change, dict):
        return change
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = changed(merged.get(key), value)
    return merged


def get(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def put(manifest: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which the field of this path has this value; None removes it."""
    copied: dict[str, Any] = copy.deepcopy(dict(manifest))
    *parents, last = path.split(".")
    inner = copied
    for part in parents:
        inner = inner.setdefault(part, {})
    if value is None:
        inner.pop(last, None)
    else:
        inner[last] = value
    return copied


def cases() -> list[Any]:
    base = yaml.safe_load((BAD / "base.yaml").read_text())
    files = [path for path in sorted(BAD.glob("*.yaml")) if path.name != "base.yaml"]
    return [
        pytest.param(changed(base, case["change"]), case["field"], case["says"], id=f"{path.stem}: {case['name']}")
        for path in files
        for case in yaml.safe_load(path.read_text())
    ]


def example(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "examples" / name).read_text()))


@pytest.mark.parametrize(("manifest", "field", "says"), cases())
def test_a_bad_manifest_is_refused_in_one_sentence_that_names_the_field(
    api: Api, manifest: dict[str, Any], field: str, says: str
) -> None:
    """Each case of crd_bad gets one complaint, about its field, with the phrase that helps."""
    found = refusals(lambda: api.create(manifest))
    assert [refusal.field for refusal in found] == [field]
    assert says in found[0].message


def test_the_manifest_that_the_bad_ones_start_from_is_good(api: Api) -> None:
    """So each case is refused for its change and for nothing else."""
    assert api.create(yaml.safe_load((BAD / "base.yaml").read_text()))["spec"]["lora"]["rank"] == 16


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_accepted_by_kubectl_with_strict_validation(api: Api, path: Path) -> None:
    """Every file in examples/ can be applied as it stands."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    out = api.kubectl("apply", "--validate=strict", "--dry-run=server", "-f", str(path))
    assert out.count("created (server dry run)") == len(documents)


def test_every_field_stands_in_the_example_of_that_name() -> None:
    """Only what would contradict another field is missing from examples/every-field.yaml."""
    full = example("every-field.yaml")
    missing = {path for path in leaves() if get(full, path) is None}
    contradicting = {"spec.dataset.validationUri", "spec.lora.layers", "spec.lora.targetParameters"}
    assert missing == contradicting | {"spec.training.maxSteps"}


def test_defaults_are_those_of_the_documentation(api: Api) -> None:
    """The minimal manifest comes back with every constant default and with nothing that is computed later."""
    created = api.create(example("minimal.yaml"))
    assert created["spec"] == {
        "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "secretRef": {"name": "hf-token"}},
        "dataset": {"uri": "hf://acme/support-chats", "format": "Auto", "split": "train"},
        "lora": {"rank": 16, "dropout": "0", "scaling": "Classic", "variant": "LoRA", "init": "Default"},
        "quantization": "Auto",
        "training": {
            "learningRate": "0.0002",
            "schedule": "Cosine",
            "warmupRatio": "0.03",
            "effectiveBatchSize": 16,
            "maxSequenceLength": 2048,
            "packing": "Enabled",
            "lossOn": "Completion",
            "optimizer": "AdamW",
            "weightDecay": "0",
            "maxGradNorm": "1",
            "precision": "Auto",
            "activationCheckpointing": "Auto",
            "kernels": "Auto",
            "seed": 42,
        },
        "resources": {"gpus": 1, "nodes": 1},
        "scheduling": {},
        "output": {"uri": "pvc://adapters/support-tone", "merge": "Adapter", "mergePrecision": "Auto"},
        "checkpoint": {"intervalSeconds": 600, "keep": 2},
        "tracking": {"kind": "None"},
        "preflight": "Run",
        "suspend": False,
        "maxRetries": 3,
    }


@pytest.mark.parametrize("name", ["minimal.yaml", "every-field.yaml", "cpu.yaml"])
def test_a_stored_resource_asks_for_the_same_run_as_its_file(api: Api, name: str) -> None:
    """The API server's defaults are those that the trainer takes when it reads the file without a cluster."""
    manifest = changed(example(name), {"metadata": {"namespace": api.namespace}})
    stored = api.create(manifest)
    options = RunOptions(uid="0", strict=True)
    assert train_config(stored, options) == train_config(manifest, options)


def test_defaults_survive_a_yaml_round_trip(api: Api) -> None:
    """What kubectl get -o yaml prints can be applied again: no default is read back as another type."""
    created = api.create(example("minimal.yaml"))
    again = yaml.safe_load(yaml.safe_dump({key: created[key] for key in ("apiVersion", "kind", "spec")}))
    again["metadata"] = {"name": "again"}
    assert api.create(again)["spec"] == created["spec"]


def test_a_new_resource_waits_for_the_operator(api: Api) -> None:
    """The conditions are there from the start, also while no operator runs."""
    conditions = api.create(example("minimal.yaml"))["status"]["conditions"]
    shown = {(c["type"], c["status"], c["reason"], c["message"]) for c in conditions}
    assert shown == {
        (kind, "Unknown", "Pending", "Waiting for the operator") for kind in ("Accepted", "Complete", "Failed")
    }


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
@pytest.mark.fault("C1")
def test_a_change_of_what_defines_the_run_is_refused(
    api: Api, stored: Mapping[str, dict[str, Any]], faults: Proofs, path: str
) -> None:
    """Each leaf is refused by its own path."""
    update = put(holder(stored, path), path, OTHER[path])
    with faults.proving("C1.spec"):
        (refusal,) = refusals(lambda: api.replace(update))
        assert refusal.field == path
    faults.saw("C1.refused", text=f"{refusal.field}: {refusal.message}", field=path)


@pytest.mark.parametrize("path", held(optional_parts(defaulted=True)))
@pytest.mark.fault("C1")
def test_taking_away_what_defines_the_run_is_refused(
    api: Api, stored: Mapping[str, dict[str, Any]], faults: Proofs, path: str
) -> None:
    """Each optional field is held, whether the API server would put a default in its place or not."""
    update = put(holder(stored, path), path, None)
    with faults.proving("C1.spec"):
        (refusal,) = refusals(lambda: api.replace(update))
        assert refusal.field == path
    faults.saw("C1.refused", text=f"{refusal.field}: {refusal.message}", field=path)


@pytest.mark.parametrize("path", [*held(optional_parts(defaulted=False)), "spec.activeDeadlineSeconds"])
@pytest.mark.fault("C1.spec")
def test_adding_what_defines_the_run_is_refused(
    api: Api, stored: Mapping[str, dict[str, Any]], faults: Proofs, path: str
) -> None:
    """Each optional field that a bare resource lacks cannot be put in later."""
    value = OTHER.get(path, {"name": "other"})
    update = put(stored["bare"], path, value)
    with faults.proving("C1.spec"):
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


def test_kubectl_get_shows_the_columns(api: Api) -> None:
    """The columns of a running resource, and three more with -o wide."""
    name = "columns"
    manifest = changed(example("minimal.yaml"), {"metadata": {"name": name}})
    written = api.create(manifest, dry_run=False)
    for condition in written["status"]["conditions"]:
        condition["reason"] = "Training" if condition["type"] == "Complete" else condition["reason"]
    progress = {
        "steps": "120/400",
        "loss": "1.234",
        "eta": "1h12m",
        "peakMemory": "18.7 GiB",
        "tokensPerSecond": "910.5",
    }
    resolved, artifact = {"quantization": "NF4"}, {"uri": "pvc://adapters/support-tone-abcde"}
    written["status"] |= {"progress": progress, "resolved": resolved, "artifact": artifact}
    api.write_status(written)

    header, row = table(api.kubectl("get", "lft", name))
    assert header == ["NAME", "STATE", "MODEL", "RANK", "QUANT", "STEP", "LOSS", "ETA", "AGE"]
    model = "hf://meta-llama/Llama-3.1-8B-Instruct"
    assert row[:-1] == [name, "Training", model, "16", "NF4", "120/400", "1.234", "1h12m"]

    header, row = table(api.kubectl("get", "lft", name, "-o", "wide"))
    assert header[9:] == ["PEAK MEMORY", "TOKENS/S", "ADAPTER"]
    assert row[9:] == ["18.7 GiB", "910.5", "pvc://adapters/support-tone-abcde"]
    assert name in api.kubectl("get", "lora")


def endless(kind: type) -> Any:
    """The dataclass with every text longer, and every number larger, than anything that makes sense."""
    largest: dict[Any, Any] = {
        str: "x" * 5000,
        int: 2**70,
        float: 1e300,
        bool: True,
        int | None: 2**70,
        float | None: 1e300,
        str | None: "x" * 5000,
        tuple[str, ...]: ("x" * 5000,) * 999,
        tuple[str, ...] | None: ("x" * 5000,) * 999,
    }
    hints = typing.get_type_hints(kind)
    return kind(
        **{f.name: largest[hints[f.name]] if hints[f.name] in largest else endless(hints[f.name]) for f in fields(kind)}
    )


def test_what_the_operator_writes_is_stored_as_it_is(api: Api) -> None:
    """Whatever a trainer says, nothing of the status is refused as out of bounds or pruned as unknown."""
    manifest = changed(example("every-field.yaml"), {"metadata": {"name": "endless", "namespace": api.namespace}})
    written = api.create(manifest, dry_run=False)
    request = read_request(written, RunOptions(uid="0"), SITE)
    written["status"] |= {
        "observedGeneration": 1,
        "resolved": results.resolved_by_request(request, "x" * 5000) | results.resolved_by_run(endless(ResolvedRun)),
        "preflight": block_from(make_preflight()),
        "plan": plan_block(make_plan()),
        "dataset": results.dataset_block(endless(DatasetStats)),
        "results": results.results_block(endless(Results)),
        "artifact": results.artifact_block(endless(Artifact)),
    }
    assert api.write_status(written)["status"] == written["status"]


def table(text: str) -> tuple[list[str], list[str]]:
    """Header and only row of kubectl's output, cut at the columns of the header."""
    header, row = text.splitlines()
    starts = [match.start() for match in re.finditer(r"(?:(?<=  )|^)\S", header)]
    ends = [*starts[1:], max(len(header), len(row))]
    pairs = list(zip(starts, ends, strict=True))
    return [header[a:b].strip() for a, b in pairs], [row[a:b].strip() for a, b in pairs]


@pytest.mark.parametrize("path", [f.path for f in walk(load(DEFINITION).root) if f.children and f.path != "metadata"])
def test_kubectl_explain_is_the_manual(api: Api, path: str) -> None:
    """kubectl explain shows the description of every field below this one."""
    text = " ".join(api.kubectl("explain", f"lft.{path.replace('[]', '')}").split())
    field = load(DEFINITION).field(path)
    assert " ".join(field.description.split()) in text
    missing = [child.path for child in field.children if " ".join(child.description.split()) not in text]
    assert not missing
    assert "<no description>" not in text
