"""What is found out before a GPU is asked for: the same without PyTorch, and one sentence for whatever is wrong."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.component.patience import eventually
from tests.trainer import families, tiny
from tests.trainer.conftest import make_config
from tests.trainer.runs import TRAINER, Workplace
from tests.trainer.servers import Proxy

from hub.access import Restriction
from hub.faults import Fault
from hub.server import HubServer
from lora_trainer import commands
from lora_trainer.data.survey import load_index
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.errors import AccessDeniedError, ConfigError, NotFoundError, TrainerError
from lora_trainer.model.adapter import plan_adapter
from lora_trainer.model.loading import skeleton
from lora_trainer.plan.answer import Asked
from lora_trainer.plan.hints import spoken
from lora_trainer.plan_run import plan_run
from lora_trainer.spec.advice import Code
from lora_trainer.spec.codec import encode
from lora_trainer.spec.config import Quantization
from lora_trainer.spec.preflight import OutputCheck
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import Alternative, RunPlan
from lora_trainer.spec.summary import Summary
from lora_trainer.storage.base import open_folder
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.preflight import preflight

WITHOUT_TORCH = (
    "import sys\n"
    "for name in ('torch', 'peft', 'bitsandbytes', 'accelerate'): sys.modules[name] = None\n"
    "from lora_trainer.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
"""None in `sys.modules` is what Python takes for a module that is not there."""

CLASSES = (
    "import sys\n"
    "for name in ('torch', 'peft', 'bitsandbytes', 'accelerate'): sys.modules[name] = None\n"
    "import transformers\n"
    "from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES as names\n"
    "lacking = []\n"
    "for name in sorted({name for name in names.values() if name}):\n"
    "    try:\n"
    "        getattr(transformers, name).from_pretrained\n"
    "    except ImportError as error:\n"
    "        if 'SentencePiece' not in str(error): lacking.append((name, str(error)))\n"
    "print(len(names), lacking)\n"
)


def looked_at(workplace: Workplace, **sections: Any) -> Summary:
    """Preflight of a run on the claims, in this process."""
    return preflight(make_config(**sections), Volumes(claims=workplace.claims), Hub())


def without_torch(workplace: Workplace, **sections: Any) -> tuple[int, str, Summary]:
    """The same in a process of its own that has no PyTorch; its exit status, and what it printed."""
    arguments = ["preflight", "-f", workplace.manifest_file(**sections), "--claims", workplace.claims]
    arguments += ["--termination-log", workplace.termination_log]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TRAINER)},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, workplace.summary()


def test_without_pytorch_the_same_is_found_out(workplace: Workplace) -> None:
    """Every count, the first row, the plan: the tokenizer and the template are the training's."""
    sections = {"lora": {"rank": 4, "layers": "Attention"}, "training": {"maxSequenceLength": 40}}
    status, printed, found = without_torch(workplace, **sections)
    assert (status, found.reason) == (0, Reason.PREFLIGHT_PASSED)
    assert found == looked_at(workplace, **sections)
    assert found.preflight is not None
    assert found.preflight.output is OutputCheck.AT_TRAINING
    assert found.preflight.model.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert found.message.endswith("are good; pvc://adapters/out is tried when the training begins")
    lines = printed.splitlines()
    assert lines[0] == found.message
    rows = found.preflight.dataset
    assert lines[2] == "  in 8 of 14 linear modules (q_proj, k_proj, v_proj, o_proj)"
    assert lines[3] == "Rows: 32 to train on, 8 held out; 0 skipped, 0 duplicates"
    assert lines[4] == f"Tokens: {rows.tokens:,}, {rows.target_tokens:,} of them learned"
    assert lines[6] == f"  {rows.truncated_tokens:,} are cut off {rows.truncated_samples:,} rows"
    assert lines[7] == f"First row: {rows.first_row}"


def test_every_tokenizer_of_transformers_can_be_imported_without_pytorch() -> None:
    """None needs to be read in another way; those that lack SentencePiece lack it in the training, too."""
    done = subprocess.run([sys.executable, "-c", CLASSES], capture_output=True, text=True, check=True)
    count, lacking = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert int(count) > 100
    assert lacking == "[]"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
def test_the_model_is_what_the_training_will_load(workplace: Workplace, kind: str) -> None:
    """Linear modules, resolved names, counts, bytes of weights: by headers alone, and as PyTorch counts them."""
    folder = families.make_family(workplace.claims / "models" / kind, kind)
    sections = {"model": {"uri": f"pvc://models/{kind}"}, "lora": {"rank": 4}}
    found = looked_at(workplace, **sections).preflight
    assert found is not None
    loaded = skeleton(open_folder(folder))
    plan = plan_adapter(make_config(**sections).lora, loaded.model, loaded.linear, Quantization.NONE)
    assert found.model.known
    assert (found.model.linear_modules, found.model.adapted) == (len(loaded.linear), len(plan.modules))
    assert set(found.model.target_modules) == set(plan.names)
    assert found.model.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert found.model.trainable_parameters == sum(4 * sum(loaded.linear[name]) for name in plan.modules)
    assert found.model.weight_bytes == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.2)
    assert found.model.revision == ""


def test_a_family_that_is_not_known_is_said_to_be_so(workplace: Workplace) -> None:
    """Its parameters are those of its files; a name that it may have is not refused."""
    families.make_family(workplace.claims / "models/other", "stablelm")
    sections = {"model": {"uri": "pvc://models/other"}, "lora": {"targetModules": ["strange_proj", "q_proj"]}}
    found = looked_at(workplace, **sections)
    assert found.preflight is not None
    assert found.plan is not None
    assert not found.preflight.model.known
    assert found.plan.spread > 0
    assert found.preflight.model.parameters == sum(
        parameter.numel() for parameter in skeleton(open_folder(workplace.claims / "models/other")).model.parameters()
    )


def test_every_row_is_counted_as_the_training_counts_it(workplace: Workplace) -> None:
    """Held-out rows by the same draw, tokens by the same template."""
    found = looked_at(workplace).preflight
    assert found is not None
    config, volumes = make_config(), Volumes(claims=workplace.claims)
    samples = load_index(config, volumes, Hub())
    assert found.dataset.validation_samples == sum(int(part.held_out.sum()) for part in samples.parts) == 8
    assert found.dataset.fingerprint == samples.sources.fingerprint
    encoder = load_encoder(open_folder(workplace.claims / "models/tiny"), config.training.loss_on, 2048)
    assert encoder.has_template
    assert found.dataset.first_row.startswith('[{"seen":"<|im_start|>user')


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        ({"model_type": "zebra", "num_attention_heads": None, "attention_heads": 4}, {}),
        ({"model_type": "gemma3n_text", "intermediate_size": [128, 128]}, {}),
        ({"model_type": "zebra"}, {"targetModules": ["c_attn"]}),
    ],
    ids=["other names of numbers", "a list of widths", "names that only the model knows"],
)
def test_a_guess_is_no_reason_to_refuse(workplace: Workplace, config: dict[str, Any], lora: dict[str, Any]) -> None:
    """The training looks at the model itself: the plan knows the weights alone, and there is no advice on capacity."""
    path = workplace.claims / "models/tiny/config.json"
    path.write_text(json.dumps(KEYS | config), encoding="utf-8")
    found = looked_at(workplace, lora=lora, quantization="Auto", resources={"gpuMinMemoryGiB": 24})
    assert found.reason is Reason.PREFLIGHT_PASSED
    assert found.preflight is not None
    assert found.plan is not None
    assert (found.plan.quantization, found.plan.device, found.plan.fits) == (Quantization.AUTO, None, None)
    assert found.plan.weight_bytes == 2 * found.preflight.model.parameters
    assert (
        "training settles Auto by them: it would be None, since unquantized weights take 0.0 GiB" in found.plan.reason
    )
    assert not found.preflight.model.known
    assert found.preflight.model.parameters > 0
    assert "of layers that are not known here" in found.message
    assert "RankTooLow" not in {advice.code for advice in found.advice}


def test_content_that_is_not_read_is_warned_of(workplace: Workplace) -> None:
    """Before a GPU learns the articles alone."""
    rows = [{"text": f"the article {i}", "summary": "short"} for i in range(40)]
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", rows)
    (found,) = [one for one in spoken(looked_at(workplace).advice) if one.code is Code.COLUMNS_NOT_READ]
    assert "Auto reads the columns text, but not summary" in found.evidence


NESTED = '{"model_type": "llama", "rope_scaling": ' + '{"a":' * 100_000
KEYS: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 402}
KEYS |= {"intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
HOSTILE: dict[str, tuple[str, str]] = {
    "no JSON": ("{model_type: llama}", "its config.json is not a configuration with a model_type"),
    "a list": ("[1]", "its config.json is not a configuration with a model_type"),
    "no keys": ("{}", "its config.json is not a configuration with a model_type"),
    "a number as family": (json.dumps(KEYS | {"model_type": 5}), "config.json.model_type is 5: must be a string"),
    "text for a number": (json.dumps(KEYS | {"hidden_size": "64"}), 'config.json.hidden_size is "64": must be a whole'),
    "NaN": (json.dumps(KEYS | {"vocab_size": float("nan")}), "config.json.vocab_size is nan: must be a whole number"),
    "negative": (json.dumps(KEYS | {"num_hidden_layers": -1}), "config.json.num_hidden_layers is -1: must be a whole"),
    "2^63": (json.dumps(KEYS | {"intermediate_size": 2**63}), "config.json.intermediate_size is 9223372036854775808:"),
    "nested": (NESTED, "its config.json is not a configuration with a model_type"),
    "not UTF-8": ("\udcff", "its config.json is not a configuration with a model_type"),
    "megabytes": (json.dumps(KEYS | {"x": "x" * 2**20}), "config.json has over 1,048,576 characters"),
    "quantized": (json.dumps(KEYS | {"quantization_config": {"bits": 4}}), "its weights are already quantized"),
    "an encoder": (json.dumps(KEYS | {"is_encoder_decoder": True}), "config.json.is_encoder_decoder is true: must be"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_configuration_that_no_model_has_gets_one_sentence(workplace: Workplace, name: str) -> None:
    """With the address, the field, the value, the rule and the remedy."""
    text, sentence = HOSTILE[name]
    path = workplace.claims / "models/tiny/config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        looked_at(workplace)
    assert str(caught.value).startswith(f"model.uri is pvc://models/tiny: {sentence}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"targetModules": ["c_attn"]}, 'lora.targetModules is "c_attn": must be a linear module of the model'),
        ({"layerIndices": [5]}, "lora.layerIndices holds 5: the model has the layers 0 to 1"),
        ({"rank": 200, "init": "PiSSA"}, "lora.rank is 200 with lora.init PiSSA: must be at most 64"),
    ],
    ids=["targets", "layers", "rank"],
)
def test_an_adapter_that_the_model_cannot_have_is_refused(
    workplace: Workplace, lora: dict[str, Any], sentence: str
) -> None:
    """Before any weight is read."""
    with pytest.raises(ConfigError) as caught:
        looked_at(workplace, lora=lora)
    assert str(caught.value).startswith(sentence)


def test_what_a_gpu_that_is_known_cannot_compute_is_refused(workplace: Workplace) -> None:
    """With the reason of the training, before it has the GPU; where the GPU may be another, that is left to it."""
    bf16 = {"training": {"precision": "BF16"}}
    with pytest.raises(ConfigError, match=r"training\.precision is BF16: T4 has no native bf16") as own:
        looked_at(workplace, **bf16, resources={"gpuProducts": ["Tesla-T4"]})
    assert own.value.reason is Reason.CONFIG_INVALID
    assert looked_at(workplace, **bf16, resources={"gpuMinMemoryGiB": 16}).reason is Reason.PREFLIGHT_PASSED


@pytest.fixture
def hub(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with a gated model, and an organisation that a token may only read."""
    (tmp_path / "hub/models/org").mkdir(parents=True)
    (tmp_path / "hub/models/org/gated").symlink_to(tiny_folder)
    gated = Restriction(visibility="gated", tokens=frozenset({"hf_other"}))
    writers = {"hf_reader": frozenset[str]()}
    with HubServer(tmp_path / "hub", restrictions={"models/org/gated": gated}, writers=writers).start() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A server that answers 403 to everything."""
    with Proxy("127.0.0.1:9") as proxy:
        proxy.inject(Fault(path="*", status=403, times=None))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("LORA_OCI_PLAIN_HTTP", proxy.url.removeprefix("http://"))
        yield proxy


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("kind", ["s3", "hf", "oci"])
def test_an_output_that_refuses_the_credentials_is_noticed(
    workplace: Workplace, refusing: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the output's own; the data set is not even read for it."""
    for name in ("OUTPUT_AWS_ACCESS_KEY_ID", "OUTPUT_AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key-of-the-output")
    monkeypatch.setenv("OUTPUT_HF_TOKEN", "hf_reader")
    addresses = {
        "s3": "s3://bucket/out",
        "hf": "hf://org/out",
        "oci": f"oci://{refusing.url.removeprefix('http://')}/org/out:v1",
    }
    (workplace.claims / "data/train.jsonl").unlink()
    with pytest.raises(AccessDeniedError) as caught:
        looked_at(workplace, output={"uri": addresses[kind]})
    assert caught.value.reason is Reason.OUTPUT_ACCESS_DENIED
    assert "output.secretRef" in str(caught.value)
    assert "key-of-the-output" not in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_failures_have_the_reasons_of_the_training(workplace: Workplace) -> None:
    """A model that is not there, one that may not be read, a data set that is not there."""
    cases: list[tuple[dict[str, Any], type[TrainerError], Reason]] = [
        ({"model": {"uri": "hf://org/none"}}, NotFoundError, Reason.MODEL_NOT_FOUND),
        ({"model": {"uri": "hf://org/gated"}}, AccessDeniedError, Reason.MODEL_ACCESS_DENIED),
        ({"dataset": {"uri": "pvc://data/none.jsonl"}}, NotFoundError, Reason.DATASET_NOT_FOUND),
    ]
    for sections, kind, reason in cases:
        with pytest.raises(kind) as caught:
            looked_at(workplace, **sections)
        assert caught.value.reason is reason


def test_data_is_fetched_once(workplace: Workplace, hub: HubServer, tmp_path: Path) -> None:
    """To be checked and to be counted: what was fetched is read again."""
    path = tmp_path / "hub/datasets/org/chats/train.jsonl"
    tiny.write_jsonl(path, tiny.chats(12))
    looked_at(workplace, dataset={"uri": "hf://org/chats"})

    def sent() -> int:
        return sum(count["bytes"] for name, count in hub.served().items() if name.endswith("train.jsonl"))

    # The server counts after it has written.
    eventually(lambda: sent() >= path.stat().st_size, "the server has counted")
    assert sent() == path.stat().st_size


def _plan(*, fits: bool | None, device: str | None) -> RunPlan:
    found: dict[str, Any] = dict.fromkeys(("peak_bytes", "weight_bytes", "adapter_bytes", "activation_bytes"), 10**10)
    return RunPlan(
        **found,
        quantization=Quantization.NONE,
        activation_checkpointing=True,
        micro_batch_tokens=4096,
        other_bytes=1,
        pod_memory_bytes=1,
        trainable_parameters=1,
        adapter_file_bytes=1,
        device=device,
        fits=fits,
        reason="so it is",
        alternatives=tuple(Alternative(change=f"spec.x: {n}", peak_bytes=n, fits=n > 1) for n in range(6)),
    )


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"quantization": "NF4", "training": {"activationCheckpointing": "Full"}},
        {"lora": {"dropout": "0.1", "rank": 64}, "training": {"microBatchSize": 2}},
        {"resources": {"gpuProducts": ["Tesla-T4"], "gpus": 2}},
    ],
    ids=str,
)
def test_the_plan_of_a_spec_says_what_its_preflight_will(workplace: Workplace, spec: dict[str, Any]) -> None:
    """Where rows are as long as they may be, all that both can know is equal, also for the device of the manifest."""
    dataset = looked_at(workplace).preflight
    assert dataset is not None
    training = {**spec.get("training", {}), "maxSequenceLength": dataset.dataset.longest_tokens}
    sections = {"resources": {"gpuMinMemoryGiB": 24}, **spec, "training": training}
    found = looked_at(workplace, **sections).plan
    planned = plan_run(make_config(**sections), Volumes(claims=workplace.claims), Asked()).preflight
    assert found is not None
    assert found.device is not None
    # The length of the training needs the number of tokens.
    assert planned == dataclasses.replace(found, seconds=None)


@pytest.mark.parametrize("kind", ["opt", "bloom"])
def test_of_a_family_that_is_counted_by_weights_both_say_the_same(workplace: Workplace, kind: str) -> None:
    """Whether the GPU is known or not."""
    path = families.make_family(workplace.claims / "models" / kind, kind) / "config.json"
    # Published ones lack what they name otherwise.
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({name: config[name] for name in config.keys() - KEYS.keys() | {"model_type"}}), encoding="utf-8"
    )
    sections: dict[str, Any] = {"model": {"uri": f"pvc://models/{kind}"}}
    dataset = looked_at(workplace, **sections).preflight
    assert dataset is not None
    sections["training"] = {"maxSequenceLength": dataset.dataset.longest_tokens}
    for resources in ({"gpuMinMemoryGiB": 24}, {"gpus": 1}, {"gpus": 0}):
        found = looked_at(workplace, **sections, resources=resources)
        planned = plan_run(make_config(**sections, resources=resources), Volumes(claims=workplace.claims), Asked())
        assert planned.preflight is not None
        assert planned.preflight.reason.startswith("the model's layers are not known, so that memory is that of its")
        assert planned.preflight == found.plan


@pytest.mark.parametrize(("fits", "device"), [(False, None), (None, "T4"), (True, "T4"), (False, "T4")])
def test_only_what_cannot_fit_a_known_device_is_refused(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, *, fits: bool | None, device: str | None
) -> None:
    """With exit code 64, a reason of its own, and the plan that says what would fit."""
    plan = _plan(fits=fits, device=device)
    monkeypatch.setattr("lora_trainer.train.preflight.plan_of", lambda *_, **__: plan)
    monkeypatch.setattr("lora_trainer.distributed.logs.set_up", lambda **_options: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    manifest = workplace.root / "run.yaml"
    manifest.write_text(yaml.safe_dump(tiny.manifest()), encoding="utf-8")
    arguments = ["preflight", "-f", str(manifest), "--claims", str(workplace.claims)]
    status = commands.run_command([*arguments, "--termination-log", str(workplace.termination_log)])
    summary = workplace.summary()
    assert encode(summary.plan) == encode(plan)
    if fits is False and device:
        assert (status, summary.reason, summary.preflight) == (64, Reason.DOES_NOT_FIT, None)
        assert summary.message == plan.reason
    else:
        assert (status, summary.reason) == (0, Reason.PREFLIGHT_PASSED)
