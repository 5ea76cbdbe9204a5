"""From a manifest to a run: defaults, rules."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import UID, make_manifest
from tests.unit.junk import damaged
from tests.unit.test_render import FULL, QUICKSTART

from lora_trainer.spec.config import (
    DatasetFormat,
    Layers,
    Quantization,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.spec.manifest import ManifestError, RunOptions, train_config
from lora_trainer.spec.template_fields import argument_value

OPTIONS = RunOptions(uid=UID, strict=True)


def run(**spec: Any) -> TrainConfig:
    """The run of a valid resource."""
    return train_config(make_manifest(spec=spec), OPTIONS)


def problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest."""
    with pytest.raises(ManifestError) as error:
        train_config(manifest, OPTIONS)
    assert str(error.value) == "; ".join(map(str, error.value.problems))
    return [str(problem) for problem in error.value.problems]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"training": {"epochs": 1}}, {"training": {"epochs": "1"}}),
        ({"training": {"epochs": 3}}, {"training": {"epochs": "3.0"}}),
        ({"training": {"learningRate": "1e-4"}}, {"training": {"learningRate": "0.0001"}}),
        (
            {"training": {"warmupRatio": "5E-2", "weightDecay": "1e-2"}},
            {"training": {"warmupRatio": "0.05", "weightDecay": "0.01"}},
        ),
        ({"lora": {"dropout": "5e-2"}}, {"lora": {"dropout": "0.05"}}),
    ],
)
def test_two_ways_to_write_a_number_ask_for_the_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The trainer's configuration is the same text, and so is what a checkpoint is known by."""
    assert run(**one).to_json() == run(**other).to_json()


def test_a_minimal_manifest_gets_the_researched_defaults() -> None:
    """Rank 16, alpha 32, all linear layers, one epoch, a held-out fiftieth."""
    config = run()
    assert (config.lora.rank, config.lora.alpha, config.lora.layers, config.lora.dropout) == (
        16,
        32,
        Layers.ALL_LINEAR,
        0.0,
    )
    assert config.quantization is Quantization.AUTO
    assert config.training == TrainingConfig()
    assert (config.training.epochs, config.training.max_steps) == (1.0, None)
    assert (config.dataset.format, config.dataset.validation_fraction) == (DatasetFormat.AUTO, 0.02)
    assert (config.device.gpus, config.device.allow_cpu) == (1, False)
    assert (config.run.namespace, config.run.name, config.run.uid, config.run.attempt) == (
        "team-a",
        "support-tone",
        UID,
        1,
    )


def test_what_auto_became_counts_for_auto_alone() -> None:
    """A resource that was replaced by its old file, which names no quantization, goes on as it began."""
    became = RunOptions(uid=UID, quantization=Quantization.NF4)
    assert train_config(make_manifest(spec={"quantization": "Auto"}), became).quantization is Quantization.NF4
    assert train_config(make_manifest(), became).quantization is Quantization.NF4
    assert train_config(make_manifest(spec={"quantization": "None"}), became).quantization is Quantization.NONE


@pytest.mark.parametrize("init", ["PiSSA", "OLoRA"])
def test_auto_goes_with_every_start_of_the_adapter(init: str) -> None:
    """It is None then."""
    assert run(lora={"init": init}).quantization is Quantization.AUTO


def test_alpha_follows_rank_unless_it_is_given() -> None:
    """Twice the rank."""
    assert run(lora={"rank": 4}).lora.alpha == 8
    assert run(lora={"rank": 4, "alpha": 4}).lora.alpha == 4


def test_steps_replace_epochs_and_modules_replace_the_preset() -> None:
    """Exactly one of each pair is set."""
    config = run(training={"maxSteps": 5}, lora={"targetModules": ["q_proj"]})
    assert (config.training.epochs, config.training.max_steps) == (None, 5)
    assert (config.lora.layers, config.lora.target_modules) == (None, ("q_proj",))


def test_held_out_rows_are_limited_unless_somebody_chose_them() -> None:
    """A number counts for either kind."""
    own = {"uri": "pvc://a/b", "validationUri": "pvc://a/c"}
    assert run().dataset.max_validation_rows == 2000
    assert run(dataset=own).dataset.max_validation_rows is None
    assert run(dataset={**own, "maxValidationRows": 5}).dataset.max_validation_rows == 5
    assert run(dataset={"uri": "pvc://a/b", "maxValidationRows": 5000}).dataset.max_validation_rows == 5000


def test_zero_is_a_value_and_not_an_absence() -> None:
    """Where the range allows it."""
    config = run(
        dataset={"uri": "pvc://a/b", "validationFraction": "0"},
        training={"warmupRatio": "0", "seed": 0},
        resources={"gpus": 0},
    )
    assert (config.dataset.validation_fraction, config.training.warmup_ratio, config.training.seed) == (0.0, 0.0, 0)
    assert config.device.gpus == 0


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"model": {}}, "spec.model.uri is missing", "must be set"),
    ({"model": {"uri": 7}}, "spec.model.uri is 7", "must be a string"),
    ({"model": {"uri": "hf://a/b", "token": "x"}}, 'spec.model.token is "x"', "there is no such field"),
    ({"model": {"uri": "hf://a/b", "secretRef": {}}}, "spec.model.secretRef.name is missing", "must be set"),
    ({"scheduling": {"tolerations": ["x"]}}, "spec.scheduling.tolerations is ['x']", "at most 32 tolerations, as in"),
    (
        {"scheduling": {"tolerations": [{"operator": "Exist"}]}},
        'spec.scheduling.tolerations[0].operator is "Exist"',
        "must be one of Exists, Equal",
    ),
    ({"resources": {"extendedResources": {"hca": 1}}}, 'spec.resources.extendedResources is "hca"', "domain/name"),
    ({"maxRetries": 99}, "spec.maxRetries is 99", "must be a whole number from 0 to 20"),
    ({"preflight": "Yes"}, 'spec.preflight is "Yes"', "must be one of Run, Skip"),
    ({"dataset": {"uri": "pvc://a/b", "format": "Chat"}}, 'spec.dataset.format is "Chat"', "one of Auto, Messages"),
    (
        {"dataset": {"uri": "pvc://a/b", "columns": {"q": "x"}}},
        'spec.dataset.columns is "q"',
        "there is a role that does not",
    ),
    (
        {"dataset": {"uri": "pvc://a/b", "columns": {"prompt": 1}}},
        "spec.dataset.columns.prompt is 1",
        'as in prompt: "1"',
    ),
    ({"dataset": {"uri": "pvc://a/b", "columns": []}}, "spec.dataset.columns is []", "must be a map"),
    (
        {"dataset": {"uri": "pvc://a/b", "columns": {"instruction": "q", "output": "a", "input": "q"}}},
        "spec.dataset.columns is {",
        "a column plays two roles: map each role to a column of its own",
    ),
    (
        {"dataset": {"uri": "pvc://a/b", "templateArguments": {"enable_thinking": False}}},
        "spec.dataset.templateArguments.enable_thinking is false",
        'must be quoted, of at most 256 characters, as in enable_thinking: "false"',
    ),
    (
        {"dataset": {"uri": "pvc://a/b", "templateArguments": {}}},
        "spec.dataset.templateArguments is {}",
        "a map of 1 to 16",
    ),
    (
        {"dataset": {"uri": "pvc://a/b", "maxValidationRows": 0}},
        "spec.dataset.maxValidationRows is 0",
        "from 1 to 10000000",
    ),
    ({"output": {"uri": "pvc://a/" + "b" * 600}}, "spec.output.uri", "of at most 512 characters"),
    ({"lora": {"rank": 0}}, "spec.lora.rank is 0", "from 1 to 1024"),
    ({"lora": {"rank": True}}, "spec.lora.rank is true", "whole number"),
    ({"lora": {"dropout": 0.1}}, "spec.lora.dropout is 0.1", "quoted decimal number"),
    ({"training": {"learningRate": 0.0002}}, "spec.training.learningRate is", 'as in learningRate: "0.0002"'),
    ({"training": {"learningRate": "1e-999999"}}, "spec.training.learningRate is", "is not a learning rate"),
    ({"training": {"learningRate": "fast"}}, "spec.training.learningRate is", "is not a learning rate"),
    ({"training": {"epochs": 1.5}}, "spec.training.epochs is 1.5", "a whole or a quoted decimal number"),
    ({"training": {"epochs": True}}, "spec.training.epochs is true", 'as in epochs: "1"'),
    ({"training": {"epochs": 10**20}}, "spec.training.epochs is", "is not a number of epochs"),
    ({"training": {"epochs": "all"}}, "spec.training.epochs is", "is not a number of epochs"),
    ({"lora": {"dropout": "0." + "1" * 30}}, "spec.lora.dropout is", "is not a dropout"),
    ({"training": {"learningRate": "2e"}}, 'spec.training.learningRate is "2e"', "is not a learning rate"),
    ({"lora": {"targetModules": "q_proj"}}, 'spec.lora.targetModules is "q_proj"', "list of at most 64"),
    ({"lora": {"layers": "All"}}, 'spec.lora.layers is "All"', "one of AllLinear"),
    ({"lora": "big"}, 'spec.lora is "big"', "must be an object"),
    ({"quantization": "INT4"}, 'spec.quantization is "INT4"', "one of Auto, None, NF4"),
    ({"lora": {"layerIndices": [-1]}}, "spec.lora.layerIndices is [-1]", "whole numbers from 0 to 1023"),
    ({"lora": {"rankPattern": {"q": 0}}}, "spec.lora.rankPattern is {'q'", "from 1 to 1024"),
    ({"checkpoint": {"keep": 0}}, "spec.checkpoint.keep is 0", "from 1 to 100"),
    (
        {"output": {"uri": "s3://adapters/a"}, "resources": {"nodes": 2}},
        "spec.resources.nodes is 2",
        "all nodes can mount: set it, or have the chart's defaults.checkpointClaim name one for new runs",
    ),
    (
        {"output": {"uri": "s3://adapters/a"}, "resumeFrom": {"name": "other"}},
        'spec.resumeFrom.name is "other"',
        "needs checkpoint.volumeClaimName",
    ),
    (
        {"output": {"uri": "s3://adapters/a", "mergePrecision": "BF16"}},
        "spec.output.mergePrecision",
        "one of Auto, FP32",
    ),
    ({"output": {"uri": "oci://ghcr.io/A"}}, 'spec.output.uri is "oci://ghcr.io/A"', "repository in lower case"),
    ({"training": {"colour": "1"}}, 'spec.training.colour is "1"', "known are activationCheckpointing"),
    ({"training": {"learningrate": "1"}}, 'spec.training.learningrate is "1"', "did you mean learningRate?"),
    ({"lora": {"rnak": 4}}, "spec.lora.rnak is 4", "did you mean rank?"),
    ({"output": None, "ouptut": "pvc://a/b"}, 'spec.ouptut is "pvc://a/b"', "did you mean output?"),
    (
        {"model": {"uri": "hf://a/b", "secretRef": {"nam": "x"}}},
        'spec.model.secretRef.nam is "x"',
        "did you mean name?",
    ),
    ({"resources": {"gpus": -1}}, "spec.resources.gpus is -1", "from 0 to"),
    ({"resources": {"gpuMinMemoryGiB": 0}}, "spec.resources.gpuMinMemoryGiB is 0", "from 1 to 1024"),
    ({"resources": {"gpuMinMemoryGiB": "24Gi"}}, 'spec.resources.gpuMinMemoryGiB is "24Gi"', "a whole number"),
    ({"resources": {"gpuMinMemoryGiB": 2**63}}, "spec.resources.gpuMinMemoryGiB is 9223372036854775808", "to 1024"),
    ({"resources": {"gpuProducts": "NVIDIA-L4"}}, 'spec.resources.gpuProducts is "NVIDIA-L4"', "list of at most 16"),
    ({"resources": {"gpuProducts": ["A"] * 17}}, "spec.resources.gpuProducts is", "list of at most 16"),
    ({"resources": {"gpuProducts": ["N" * 64]}}, "spec.resources.gpuProducts is", "of 1 to 63 characters"),
    ({"resources": {"gpuProducts": ["NVIDIA L4"]}}, 'spec.resources.gpuProducts is "NVIDIA L4"', "as in NVIDIA-L4"),
    ({"colour": "red"}, 'spec.colour is "red"', "there is no such field"),
]


@pytest.mark.parametrize(("spec", "field", "rule"), BAD, ids=[f"{field}, {rule}" for _, field, rule in BAD])
def test_a_bad_field_gets_one_sentence_with_field_value_and_rule(spec: dict[str, Any], field: str, rule: str) -> None:
    """And only one."""
    (message,) = problems(make_manifest(spec=spec))
    assert message.startswith(field)
    assert rule in message.removeprefix(field)
    assert len(message) < 400


def test_kind_version_name_and_spec_are_checked() -> None:
    """A run without a cluster is given any file."""
    found = problems({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "Not A Name"}})
    assert [message.partition(" is ")[0] for message in found[:4]] == ["apiVersion", "kind", "metadata.name", "spec"]
    assert problems({**make_manifest(), "metadata": None})[0].startswith("metadata.name is missing")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"spce": "SPEC"}, "did you mean spec?"),
        (
            {"Metadata": {"name": "tone"}},
            "there is no such field; did you mean metadata?",
        ),
        (
            {"metadata": {"name": "tone", "lables": {}}},
            "metadata.lables is {}: there is no such",
        ),
        ({"aipVersion": "v1"}, 'aipVersion is "v1": there is no such field; did you mean apiVersion?'),
        ({"data": 1}, "data is 1: there is no such field; known are apiVersion, kind, metadata, spec, status"),
        ({"spec": "text"}, 'spec is "text": must be an object with model, dataset and output'),
        ({"metadata": []}, "metadata is []: must be an object"),
    ],
)
def test_a_misspelt_field_outside_of_the_spec_gets_one_sentence(change: dict[str, Any], sentence: str) -> None:
    """That the right one is missing is the same mistake, and not said as well."""
    manifest = make_manifest()
    moved = {"spce": "spec", "Metadata": "metadata", "aipVersion": "apiVersion"}
    for key, value in change.items():
        manifest[key] = manifest["spec"] if value == "SPEC" else value
        manifest.pop(moved.get(key, ""), None)
    assert sentence in problems(manifest)[0]
    assert len(problems(manifest)) == (2 if change.get("metadata") == [] else 1)


def test_what_kubectl_prints_is_a_manifest() -> None:
    """With what the API server adds to metadata, and the status."""
    server = {"uid": "u", "resourceVersion": "1", "generation": 1, "managedFields": [], "creationTimestamp": "now"}
    manifest = make_manifest()
    printed = {**manifest, "metadata": {**manifest["metadata"], **server}, "status": {"phase": "x"}}
    assert train_config(printed, OPTIONS) == train_config(manifest, OPTIONS)


def test_without_strictness_unknown_fields_are_ignored() -> None:
    """The API server has dropped them, or a newer version knows them."""
    config = train_config(make_manifest(spec={"colour": "red", "lora": {"flavour": 1}}), RunOptions(uid=UID))
    assert config.lora.rank == 16


def test_a_value_that_is_too_long_is_shown_in_part() -> None:
    """The sentence stays one."""
    (message,) = problems(make_manifest(spec={"quantization": "x" * 900}))
    assert len(message) < 200


@given(st.sampled_from([QUICKSTART, FULL]).flatmap(lambda spec: damaged(make_manifest(spec=spec))))
def test_no_manifest_is_too_odd_for_a_run_or_a_sentence(manifest: dict[str, Any]) -> None:
    """Nothing else is raised."""
    try:
        config = train_config(manifest, OPTIONS)
    except ManifestError as error:
        stated = str(error)
    else:
        stated = config.to_json()
        assert TrainConfig.from_json(stated) == config
    assert stated


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("false", False),
        ("null", None),
        ("1.5", 1.5),
        ("low", "low"),
        ('"false"', "false"),
        ("", ""),
        ("[1]", "[1]"),
        ("NaN", "NaN"),
        ("[" * 5000, "[" * 5000),
        ("26 Jul 2024", "26 Jul 2024"),
    ],
)
def test_a_variable_of_a_template_is_what_its_text_says(text: str, value: object) -> None:
    """JSON's words, numbers and quoted texts; anything else is text."""
    found = argument_value(text)
    assert (type(found), found) == (type(value), value)
