"""`lora-trainer plan` on one GPU: table, verdict, plan and notes say the same, and a reader may leave early."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.fit_models import LLAMA_2_13B, MIXTRAL, Config, llama
from tests.unit.test_plan import TRAINER, place, plan, printed, write

from lora_trainer.spec.gpus import KNOWN

__all__ = ["place"]

VERDICTS = {
    True: "It fits",
    None: "It is tried, and may not fit, on",
    False: "It does not fit",
}
GPUS = [*(gpu.name for gpu in KNOWN), "16GiB", "18GiB", "24GiB", "1g.10gb", "NVIDIA-A100-SXM4-80GB"]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", [llama(), LLAMA_2_13B, MIXTRAL], ids=["8B", "13B", "Mixtral"])
def test_the_verdict_is_that_of_the_plan(
    place: Path, capsys: pytest.CaptureFixture[str], model: Config, gpu: str
) -> None:
    """In the sentence, in the table's last column and in the reason of one and the same answer."""
    write(model, quantization="None")
    found = json.loads(printed(capsys, "--gpu", gpu, "-o", "json"))
    fits, name = found["preflight"].get("fits"), found["gpus"][0]["name"]
    assert found["gpus"][0].get("fits") is fits
    lines = printed(capsys, "--gpu", gpu).splitlines()
    text = " ".join(" ".join(lines).split())
    unsure = found["gpus"][0]["default"]["fit"] == "Unsure" and fits is None
    assert f"{'Perhaps it fits' if unsure else VERDICTS[fits]} {name}." in text
    assert sum(f"{verdict} {name}." in text for verdict in (*VERDICTS.values(), "Perhaps it fits")) == 1
    (row,) = [line for line in lines if line.startswith(f"{name.removeprefix('mig-')} ") and "." in line]
    assert row.endswith({None: "  may not fit", False: "  nothing that fits"}.get(fits, ""))
    assert ("it may not fit" in found["preflight"]["reason"]) is (fits is None)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("resources", "remedy"),
    [
        (
            {"gpuProducts": ["NVIDIA-RTX-A5000"]},
            "set resources.gpuMinMemoryGiB, too, or name it in the operator's setting config.gpus to know before",
        ),
        ({"gpuResourceName": "amd.com/gpu"}, "name it in the operator's setting config.gpus to know before"),
    ],
)
def test_a_gpu_of_which_nothing_is_known_has_all_its_remedies(
    place: Path, capsys: pytest.CaptureFixture[str], resources: dict[str, Any], remedy: str
) -> None:
    """Beside a product a size tells it, too; beside another vendor's resource none may be."""
    write(resources=resources)
    assert f": {remedy}." in " ".join(printed(capsys).split())
    if "too" in remedy:
        write(resources={**resources, "gpuMinMemoryGiB": 24})
        assert "is not known here" not in printed(capsys)


@pytest.mark.parametrize("gpus", [1, 2])
def test_several_slices_are_noted(place: Path, capsys: pytest.CaptureFixture[str], gpus: int) -> None:
    """Of which NCCL takes one of a GPU."""
    write(resources={"gpus": gpus, "gpuResourceName": "nvidia.com/mig-3g.40gb"})
    note = "Note: resources.gpus is 2, slices of a GPU: a run may have one, since NCCL refuses two of the same GPU; "
    assert (note in " ".join(printed(capsys).split())) is (gpus == 2)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (llama(num_attention_heads=32, num_key_value_heads=5), "num_key_value_heads is 5: must divide"),
        (
            llama(hidden_size=4096, num_attention_heads=33, num_key_value_heads=33),
            "config.json.num_attention_heads is 33: must divide hidden_size (4,096)",
        ),
        (MIXTRAL | {"num_key_value_heads": 5}, "num_key_value_heads is 5: must divide"),
        ({"model_type": "gpt2", "n_embd": 66, "n_head": 4, "n_layer": 2, "vocab_size": 99}, "n_head is 4: must divide"),
    ],
)
def test_heads_that_cannot_be_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], config: Config, sentence: str
) -> None:
    """As Transformers does, with a GPU."""
    write(config)
    assert plan("--config", "config.json") == 64
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        llama(hidden_size=4096, num_attention_heads=33, num_key_value_heads=33, head_dim=128),
        llama(model_type="qwen2", hidden_size=4096, num_attention_heads=33, num_key_value_heads=33),
        llama(model_type="zebra", hidden_size=4096, num_attention_heads=32, num_key_value_heads=5),
        {
            "model_type": "gpt_neox",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "num_key_value_heads": 5,
            "vocab_size": 50304,
        },
    ],
    ids=["a width of its own", "a family that takes it", "an unknown family", "a number that nobody reads"],
)
def test_heads_that_may_be_are_not_refused(place: Path, config: Config) -> None:
    """Some families take what Llama does not."""
    write(config)
    assert plan("--config", "config.json") == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["plan", "-f", "x.yaml", "--config", "config.json", "-o", "json"], ["--help"], ["plan", "--help"]]
)
def test_a_reader_that_has_seen_enough_is_no_mistake(place: Path, arguments: list[str], unbuffered: str) -> None:
    """As head is, which closes the pipe: nothing on stderr, whichever command writes."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(TRAINER), "PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lora_trainer.cli", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
            timeout=300,
        )
    finally:
        os.close(writer)
    assert (done.stderr, done.returncode) == ("", 0)
