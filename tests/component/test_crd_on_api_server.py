"""The LoRAFineTune definition, asked through a real API server: what it refuses, fills in, stores and explains."""

import re
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.component.definition import BAD, DEFINITION, OF_STRUCTURE, Api, changed, example, get, leaves, refusals
from tests.unit.reports import make_plan, make_preflight

from docgen.schema import load, walk
from lora_operator.decide.blocks import block_from
from lora_operator.decide.results import plan_block, resolved_by_request
from lora_operator.model.defaults import Defaults
from lora_operator.model.request import read_request
from lora_trainer.spec.manifest import RunOptions, train_config, understand
from lora_trainer.spec.summary import Artifact, DatasetStats, ResolvedRun, Results

# What an administrator may set for runs that are silent.
SITE = Defaults(queue="gpus", ttl_s=86400, environment={"NCCL_DEBUG": "WARN"}, cache_claim="models")
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


def cases() -> list[Any]:
    base = yaml.safe_load((BAD / "base.yaml").read_text())
    files = [path for path in sorted(BAD.glob("*.yaml")) if path.name != "base.yaml"]
    return [
        pytest.param(changed(base, case["change"]), case["field"], case["says"], id=f"{path.stem}: {case['name']}")
        for path in files
        for case in yaml.safe_load(path.read_text())
    ]


@pytest.mark.parametrize(("manifest", "field", "says"), cases())
def test_a_bad_manifest_is_refused_in_one_sentence_that_names_the_field(
    api: Api, manifest: dict[str, Any], field: str, says: str
) -> None:
    """Each case of crd_bad gets one complaint, about its field, with the phrase that helps. But for structure, which
    the server has words of its own for, it ends as the sentence of whoever reads the manifest without it."""
    found = refusals(lambda: api.create(manifest))
    assert [refusal.field for refusal in found] == [field]
    assert says in found[0].message
    if not OF_STRUCTURE.search(found[0].message):
        (own,) = understand(manifest, RunOptions(uid="0", strict=True)).problems
        assert found[0].message.endswith(own.rule)


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
        "resolved": resolved_by_request(request, "x" * 5000) | block_from(endless(ResolvedRun)),
        "preflight": block_from(make_preflight()),
        "plan": plan_block(make_plan()),
        "dataset": block_from(endless(DatasetStats)),
        "results": block_from(endless(Results)),
        "artifact": block_from(endless(Artifact)),
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
