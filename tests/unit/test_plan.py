"""`lora-trainer plan` as its user meets it: tables, JSON and YAML, one sentence for whatever is wrong."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.fit_models import MIXTRAL, MODELS, Config, llama
from tests.unit.sparse_weights import quick_digests, write_weights

from hub.server import HubServer
from lora_trainer.cli import main
from lora_trainer.commands import run_command

TRAINER = Path(__file__).parents[2] / "trainer_image"
MANIFEST: Config = {
    "apiVersion": "lora-operator.io/v1alpha1",
    "kind": "LoRAFineTune",
    "metadata": {"name": "tone"},
    "spec": {
        "model": {"uri": "hf://meta-llama/Meta-Llama-3-8B"},
        "dataset": {"uri": "hf://acme/chats"},
        "output": {"uri": "pvc://adapters/tone"},
    },
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command runs in, with x.yaml and Llama-3-8B's config.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "COLUMNS": "80"})
    # The command has a process to itself; here others' handlers stay.
    monkeypatch.setattr("lora_trainer.distributed.logs.set_up", lambda **_options: None)
    write()
    return tmp_path


def write(config: Config | None = None, **spec: Any) -> None:
    """x.yaml with these sections, and config.json."""
    manifest = {**MANIFEST, "spec": {**MANIFEST["spec"], **spec}}
    Path("x.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    Path("config.json").write_text(json.dumps(config or llama()), encoding="utf-8")


def plan(*arguments: str) -> int:
    """The exit status of the command on x.yaml."""
    return run_command(["plan", "-f", "x.yaml", *arguments])


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints on x.yaml and config.json."""
    assert plan("--config", "config.json", *arguments) == 0
    return capsys.readouterr().out


def test_the_tables_say_what_the_default_run_takes_and_where_it_fits(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For all known GPUs, in GiB."""
    lines = printed(capsys).splitlines()
    assert lines[0] == "tone: hf://meta-llama/Meta-Llama-3-8B (llama, 8,030,261,248 parameters)"
    assert "Adapter: rank 16 on 224 linear modules, 41,943,040 trained parameters (0.52%)," in lines
    (row,) = [line for line in lines if line.startswith("  None         yes           14.96 ")]
    assert sum(map(float, row.split()[2:-1])) == pytest.approx(float(row.split()[-1]), abs=0.03)
    devices = {line[:8].strip(): line for line in lines if line.endswith((" min", " h"))}
    assert re.search(
        r"  24\.0   -1\d\.\d    \+\d\.\d  -\d\.\d/2 .* None, MLPs/2 +1,\d{3}  \d+ min$", devices["RTX 4090"]
    )
    assert re.search(r"  None, kept/2 +3,\d{3}   \d min$", devices["A100 40"])
    assert re.search(r"  NF4, MLPs/2 ", devices["T4"])
    assert re.search(r"  None, kept\*4 ", devices["H200"])
    text = " ".join(" ".join(lines).split())
    assert "leaves quantization and training.activationCheckpointing to Auto" in text
    assert "It fits T4, L4, A10, RTX 4090, A100 40," in text
    assert [line.split()[0] for line in lines if "min" in line and "," in line][:2] == ["T4", "L4"]


def test_what_the_manifest_names_is_marked_and_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it does not fit."""
    write(quantization="None", training={"activationCheckpointing": "Full"})
    lines = printed(capsys).splitlines()
    assert [line[:24].split()[:3] for line in lines if line.startswith("* N")] == [["*", "None", "yes"]]
    (t4,) = [line for line in lines if line.startswith("T4 ")]
    assert t4.endswith("  nothing that fits")
    text = " ".join(" ".join(lines).split())
    assert "* the run as it is written: quantization None, recomputes activations. It fits L4, A10," in text
    assert "It does not fit T4." in text
    write(quantization="NF4")
    text = " ".join(printed(capsys).split())
    assert "The run leaves training.activationCheckpointing to Auto" in text


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("quantization", ["Auto", "None", "NF4", "INT8"])
@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_the_tables_fit_the_terminal(
    place: Path, capsys: pytest.CaptureFixture[str], columns: int, quantization: str, gpus: int
) -> None:
    """80 columns are enough for all numbers; sentences follow the width."""
    write(quantization=quantization, resources={"gpus": gpus})
    os.environ["COLUMNS"] = str(columns)
    lines = printed(capsys, "--tokens", "99999999999").splitlines()
    assert max(map(len, lines)) <= max(80, columns)
    assert all(line == line.rstrip() for line in lines)
    assert all(len(line) <= columns for line in lines if line.startswith(("Speed", "Adapter", "Main")))


@pytest.mark.parametrize(
    ("columns", "recompute", "left_out"), [(80, "Auto", "MLPs"), (80, "Selective", "kept"), (100, "Auto", "")]
)
def test_a_column_that_there_is_no_room_for_is_said_to_be_left_out(
    place: Path, capsys: pytest.CaptureFixture[str], columns: int, recompute: str, left_out: str
) -> None:
    """The legend explains it, and the run may take it."""
    write(training={"activationCheckpointing": recompute})
    os.environ["COLUMNS"] = str(columns)
    lines = printed(capsys).splitlines()
    (head,) = [line for line in lines if line.startswith("GPU ")]
    assert [name for name in ("kept", "MLPs", "recomp.") if name not in head.split()] == [left_out] * bool(left_out)
    text = " ".join(" ".join(lines).split())
    assert f"no room for {left_out}: a wider terminal" in text if left_out else "no room" not in text


def test_a_named_gpu_replaces_the_list(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name or by memory; of the latter the speed is not known."""
    text = printed(capsys, "--gpu", "h100", "--gpu", "24GiB")
    assert "\nH100 " in text
    assert re.search(r"\n24GiB     22\.1 .*/2 .*  None, recomp\.\n", text)
    assert re.search(r"\n24\.0GiB   24\.0 .*/2 .*  None, MLPs/2\n", printed(capsys, "--gpu", "24.0GiB"))
    assert "A100" not in text


def test_hours_follow_the_data_set_and_the_epochs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And are of a million tokens where nothing is known of it, as with maxSteps."""
    arguments = ("--gpu", "H100", "-o", "json")
    assert json.loads(printed(capsys, *arguments))["trained_tokens"] is None
    write(training={"epochs": "2.5"})
    assert json.loads(printed(capsys, *arguments, "--tokens", "1000"))["trained_tokens"] == 2500
    write(training={"maxSteps": 10})
    found = json.loads(printed(capsys, *arguments, "--tokens", "1000"))
    assert found["trained_tokens"] is None
    assert "training.maxSteps sets the length" in found["notes"][0]


@pytest.mark.parametrize("gpu", ["T4", "RTX 4090", "12GiB"])
def test_one_gpu_gets_the_plan_that_preflight_would_make(
    place: Path, capsys: pytest.CaptureFixture[str], gpu: str
) -> None:
    """The same choice with its reason, and the same as in the table; so does the GPU that the manifest names."""
    found = json.loads(printed(capsys, "--gpu", gpu, "-o", "json"))
    planned, taken = found["preflight"], found["gpus"][0]["default"]
    assert (planned["device"], planned["quantization"]) == (gpu, taken["quantization"])
    assert (planned["activation_checkpointing"], planned["peak_bytes"]) == (taken["recompute"], taken["peak_bytes"])
    assert planned["selective_checkpointing"] is taken["selective"]
    assert planned["reason"] in " ".join(printed(capsys, "--gpu", gpu).split())
    assert "device" not in json.loads(printed(capsys, "-o", "json"))["preflight"]
    write(resources={"gpuProducts": ["Tesla-T4"]})
    assert json.loads(printed(capsys, "-o", "json"))["preflight"]["device"] == "T4"


@pytest.mark.parametrize(
    ("resources", "name"),
    [
        ({"gpuProducts": ["Zebra-9"]}, "Zebra-9"),
        ({"gpuResourceName": "nvidia.com/mig-1g.0gb"}, "nvidia.com/mig-1g.0gb"),
        ({}, None),
    ],
)
def test_a_gpu_that_is_not_known_is_said_to_be_so(
    place: Path, capsys: pytest.CaptureFixture[str], resources: dict[str, Any], name: str | None
) -> None:
    """In one sentence with what would tell its memory; a run that names none has a row of each GPU."""
    write(resources=resources)
    table = " ".join(printed(capsys).split())
    assert ("Note: the memory of" in table) is (name is not None)
    assert name is None or (
        f"Note: the memory of {name} is not known here, so that what is Auto is settled on the GPU that the training "
        "finds: " in table
    )


def test_advice_knows_the_gpu_that_was_asked_about(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quantizing what would fit in full is said to be of no use, where the card is known."""
    write(quantization="NF4")
    said = "Set spec.quantization to Auto or None: the base fits in 16 bits"
    assert said in " ".join(printed(capsys, "--gpu", "H100").split())
    assert said not in " ".join(printed(capsys, "--gpu", "T4").split())
    assert said not in " ".join(printed(capsys).split())


def test_json_and_yaml_hold_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With bytes instead of GiB, and every option."""
    from_json = json.loads(printed(capsys, "-o", "json"))
    assert yaml.safe_load(printed(capsys, "-o", "yaml")) == from_json
    assert from_json["trainable_parameters"] == 41_943_040
    assert from_json["adapter_bytes"] == 4 * 41_943_040
    row = from_json["rows"][1]
    assert not row["default"]
    assert sum(row["memory"].values()) == row["peak_bytes"]
    assert len(from_json["gpus"]) == 10
    assert len(from_json["gpus"][0]["options"]) == 6


def test_doubts_and_refusals_are_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mixture's, and a family's that nobody knows."""
    write(MIXTRAL)
    text = " ".join(printed(capsys).split())
    assert "refused: quantization is NF4: 97% of the model's weights are experts of a mixture, which are not" in text
    assert "Not sure: what a GPU's kernel for a mixture's experts needs" in text
    write(llama(model_type="zebra"), quantization="None")
    text = " ".join(printed(capsys).split())
    assert "Not sure: its kind 'zebra' is not known here" in text
    assert "?: the estimate may be off by 30%, too much to decide." in text
    assert "It fits A100 40, A100 80, L40S, H100, H200, B200. Perhaps it fits T4, L4, A10, RTX 4090. kept" in text
    write(llama(model_type="zebra", num_local_experts=8), quantization="None")
    text = " ".join(printed(capsys).split())
    assert "?: experts are not counted, and the estimate may be off by 30%, too much to decide." in text


def test_a_run_on_the_cpu_is_planned_in_main_memory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """fp32, nothing recomputed, and less at once."""
    write(MODELS["SmolLM2-135M"][0], resources={"gpus": 0}, training={"maxSequenceLength": 512})
    found = json.loads(printed(capsys, "-o", "json"))
    assert found["micro_batch_tokens"] == 768
    planned = found["preflight"]
    assert (planned["device"], planned["quantization"], planned["activation_checkpointing"]) == ("cpu", "None", False)
    assert planned["peak_bytes"] == planned["pod_memory_bytes"] == found["pod_memory_bytes"]
    assert found["pod_memory_bytes"] / 2**20 == pytest.approx(2869, rel=0.05)
    assert "the run trains on the CPU" in found["notes"][0]


def test_a_model_on_a_claim_is_read_there_and_its_files_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the configuration does not explain is added and said."""
    folder = place / "claims" / "models" / "l3"
    folder.mkdir(parents=True)
    write(model={"uri": "pvc://models/l3"})
    Path("config.json").rename(folder / "config.json")
    arguments = ("--claims", "claims", "-o", "json")
    assert plan(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["doubts"] == []
    write_weights(folder / "model.safetensors", {"a": [8_030_261_248], "tower": [1_000_000_000]})
    assert plan(*arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 9_030_261_248
    assert found["doubts"][0].startswith("the files hold 9,030,261,248 parameters, of which config.json explains 8,030")
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert plan(*arguments) == 64
    assert "model.safetensors is not a safetensors file" in capsys.readouterr().err


def test_a_model_on_the_hub_is_known_by_its_headers(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Configuration and headers are all that is fetched: no tokenizer, no weight."""
    folder = place / "hub/models/acme/l3"
    folder.mkdir(parents=True)
    write(model={"uri": "hf://acme/l3"})
    Path("config.json").rename(folder / "config.json")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    length = write_weights(folder / "model.safetensors", {"a": [8_030_261_248], "tower": [1_000_000_000]})
    monkeypatch.setattr("hub.repositories._digests", quick_digests)
    monkeypatch.setitem(os.environ, "HF_HOME", str(place / "home"))
    with HubServer(place / "hub").start() as hub:
        monkeypatch.setitem(os.environ, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "home/hub"))
        assert plan("-o", "json") == 0
        # The server counts after it has written; its end waits for none of its threads.
        for _ in range(12_000):
            found = {
                path.rsplit("/", 1)[1]: count["bytes"] for path, count in hub.served().items() if "resolve" in path
            }
            if found["model.safetensors"] >= length:
                break
            time.sleep(0.01)
    assert json.loads(capsys.readouterr().out)["parameters"] == 9_030_261_248
    assert found["model.safetensors"] == length
    assert "tokenizer.json" not in found


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--config", "none.json"], 64, "none.json cannot be read (No such file or directory)"),
        (["--config", "x.yaml"], 64, "x.yaml is not JSON"),
        (["--config", "deep.json"], 64, "deep.json cannot be read: it is nested too deeply"),
        (["--config", "config.json", "--gpu", "T5"], 64, '--gpu is "T5": must be one of T4, L4, A10'),
        (["--config", "config.json", "--gpu", "0GiB"], 64, '--gpu is "0GiB": must be from 1GiB to 1024GiB'),
    ],
)
def test_bad_input_gets_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, sentence: str
) -> None:
    """And the exit code of the contract."""
    Path("deep.json").write_text("[" * 100_000, encoding="utf-8")
    assert plan(*arguments) == status
    output = capsys.readouterr()
    assert sentence in output.err
    assert output.err.count("\n") == 1
    assert not output.out


@pytest.mark.parametrize(
    ("config", "spec", "sentence"),
    [
        (llama(hidden_size="4096"), {}, 'config.json.hidden_size is "4096": must be a whole number'),
        (llama(vocab_size=float("nan")), {}, "config.json.vocab_size is nan: must be a whole number"),
        (llama(quantization_config={"bits": 4}), {}, "config.json.quantization_config is set: must be absent"),
        (llama(), {"lora": {"layerIndices": [99]}}, "lora.layerIndices holds 99: the model has the layers 0 to 31"),
        (llama(), {"lora": {"targetModules": ["c_attn"]}}, 'lora.targetModules is "c_attn": must be a linear module'),
        (
            llama(num_attention_heads=32, num_key_value_heads=1),
            {"lora": {"rank": 256, "init": "OLoRA"}},
            "lora.rank is 256 with lora.init OLoRA: must be at most 128, the smaller side of k_proj",
        ),
        (
            llama(),
            {"resources": {"memory": "0"}},
            'spec.resources.memory is "0", which is not a usable amount of memory',
        ),
        (llama(), {"lora": {"rank": 0}}, "spec.lora.rank is 0: must be a whole number from 1 to 1024"),
    ],
)
def test_what_the_model_cannot_be_is_said(
    place: Path, capsys: pytest.CaptureFixture[str], config: Config, spec: Config, sentence: str
) -> None:
    """Of its configuration, or of the adapter on it."""
    write(config, **spec)
    assert plan("--config", "config.json") == 64
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("memory", "said"), [("3Gi", True), ("64Gi", False)])
def test_main_memory_that_is_less_than_estimated_is_noted(
    place: Path, capsys: pytest.CaptureFixture[str], memory: str, said: bool
) -> None:
    """No more than that: the rows of the data may be shorter than the run allows."""
    write(resources={"memory": memory})
    assert plan("--config", "config.json", "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    note = "resources.memory gives 3.0 GiB, less than that; preflight asks again with the data's own rows"
    assert (note in found["notes"]) is said
    assert not any("spec.resources.memory" in advice["message"] for advice in found["advice"])


def test_main_memory_of_a_divided_mixture_counts_its_experts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the GPU is known, as preflight does; else they are said to come on top, if a GPU shown divides the base."""
    more = "of main memory more for a copy of the experts; --gpu, or the GPU in resources, shows whether it is"
    write(MIXTRAL, resources={"gpus": 4, "gpuMinMemoryGiB": 80, "memory": "32Gi"})
    found = json.loads(printed(capsys, "-o", "json"))
    assert found["preflight"]["sharded_over"] == 4
    assert found["pod_memory_bytes"] == found["preflight"]["pod_memory_bytes"] > 90 * 2**30
    assert any(note.startswith("resources.memory gives 32.0 GiB, less than that") for note in found["notes"])
    text = " ".join(printed(capsys).split())
    assert f"Main memory of each pod (resources.memory): about {found['pod_memory_bytes'] / 2**30:.1f} GiB." in text
    assert more not in text
    write(MIXTRAL, resources={"gpus": 4})
    assert f"Note: a base that is divided over GPUs takes 84.0 GiB {more}." in " ".join(printed(capsys).split())
    for config, spec in (
        (MIXTRAL, {"resources": {"gpus": 1}}),
        (llama(), {"resources": {"gpus": 4}}),
        (MIXTRAL, {"resources": {"gpus": 4}, "output": {"uri": "pvc://adapters/tone", "merge": "Merged"}}),
    ):
        write(config, **spec)
        assert more not in " ".join(printed(capsys).split())


def test_a_claim_that_is_not_there_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the way out."""
    write(model={"uri": "pvc://models/l3"})
    assert plan("--claims", "claims") == 66
    assert "the claim models is not mounted" in capsys.readouterr().err


def test_an_argument_that_is_no_number_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of every command."""
    with pytest.raises(SystemExit):
        main(["plan", "-f", "x.yaml", "--tokens", "many"])
    assert "argument --tokens: is many: must be a whole number from 1" in capsys.readouterr().err


def test_no_library_is_imported_for_a_plan(place: Path) -> None:
    """Neither PyTorch nor what comes with it: a laptop answers at once."""
    program = (
        "import sys\nfrom lora_trainer.cli import main\n"
        "status = main(['plan', '-f', 'x.yaml', '--config', 'config.json'])\n"
        "print(status, [name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(TRAINER)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_plan_advises_by_what_the_manifest_and_the_model_show(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In tables and documents; of a run of defaults what its claim must have free, whatever the GPU."""
    text = " ".join(printed(capsys).split())
    assert "Warning:" not in text
    assert "Info: See that PersistentVolumeClaim adapters has 1.6 GiB free" in text
    write(MIXTRAL, training={"learningRate": "0.5", "epochs": "3"}, quantization="None")
    text = " ".join(printed(capsys).split())
    assert "Warning: Set spec.training.learningRate from 0.00005 to 0.001" in text
    assert "kind mixtral: experts (mlp.experts.gate_up_proj, mlp.experts.down_proj, 97% of the parameters))" in text
    assert text.index("Warning: ") < text.index("Info: Try one epoch first")
    found = json.loads(printed(capsys, "-o", "json"))["advice"]
    assert [one["code"] for one in found] == ["LearningRate", "ModulesNotAdapted", "SeveralEpochs"]
    assert found[0]["evidence"] == "spec.training.learningRate is 0.5"
