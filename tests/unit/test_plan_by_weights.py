"""`lora-trainer plan` of a model whose layers are not known here, and of one that takes no longer rows."""

import json
import os
from pathlib import Path

import pytest
from tests.unit.fit_models import GPT2, Config, llama
from tests.unit.sparse_weights import write_weights
from tests.unit.test_plan import plan, printed, write

OPT: Config = {"model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "vocab_size": 50272}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "COLUMNS": "80"})
    # The command has a process to itself; here others' handlers stay.
    monkeypatch.setattr("lora_trainer.distributed.logs.set_up", lambda **_options: None)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "lora", "why"),
    [
        (OPT, {}, "config.json.num_attention_heads is missing"),
        (
            llama(model_type="zebra"),
            {"targetModules": ["c_attn"]},
            "nor whether lora.targetModules names its modules: by a guess, lora.targetModules leaves no module",
        ),
        (
            llama(model_type="zebra"),
            {"layerIndices": [99]},
            "nor whether lora.layerIndices goes with them: by a guess, lora.layerIndices holds 99",
        ),
    ],
    ids=["other names of numbers", "names that only the model knows", "layers that only the model knows"],
)
def test_a_model_whose_layers_are_not_known_is_planned_by_its_weights(
    place: Path, capsys: pytest.CaptureFixture[str], config: Config, lora: Config, why: str
) -> None:
    """As preflight does: to be unknown is no reason to refuse."""
    folder = place / "claims/models/it"
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", {"a": [8_000_000_000]})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write(model={"uri": "pvc://models/it"}, resources={"memory": "1Gi"}, lora=lora)
    assert plan("--claims", "claims", "--gpu", "16GiB", "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["preflight"]["weight_bytes"]) == (8_000_000_000, 16_000_000_000)
    assert found["preflight"]["reason"].endswith(
        "it would be NF4, since unquantized weights take 14.9 GiB, more than the 11.0 GiB that weights alone may take "
        "of 16GiB"
    )
    assert [note.partition(" ")[0] for note in found["notes"]] == ["resources.memory"]
    assert plan("--claims", "claims") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"tone: pvc://models/it ({config['model_type']}, 8,000,000,000 parameters)"
    text = " ".join(" ".join(lines).split())
    assert "Plan: the model's layers are not known, so that memory is that of its unquantized weights alone" in text
    assert "Weights without quantization: 14.9 GiB; adapter and activations are added. Main memory of each" in text
    assert "Not sure: the layers of the model are not known here" in text
    assert why in text
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("form", ["table", "json"])
def test_the_configuration_alone_of_such_a_model_is_no_mistake(capsys: pytest.CaptureFixture[str], form: str) -> None:
    """It has no number of weights, which is said."""
    write(OPT)
    text = printed(capsys, "-o", form)
    said = " ".join(text.split())
    assert "a config.json alone does not have the weights: without --config those of model.uri are counted" in said
    assert "must be a family that is known here or like Llama, and config.json.num_attention_heads is missing" in said
    assert form == "table" or not {"parameters", "preflight"} & json.loads(text).keys()


@pytest.mark.parametrize(("config", "most"), [(GPT2, 1024), (OPT | {"max_position_embeddings": 512}, 512)])
def test_rows_that_may_be_longer_than_the_positions_are_noted(
    capsys: pytest.CaptureFixture[str], config: Config, most: int
) -> None:
    """Without data nobody knows whether there are any."""
    said = f"{config['model_type']} has positions for {most} tokens, and a run with a longer row is refused; set it to"
    for length in (most + 1, most):
        write(config, training={"maxSequenceLength": length})
        note = f"Note: training.maxSequenceLength is {length}: {said} {most} or less, at which longer rows are cut."
        assert (note in " ".join(printed(capsys).split())) is (length > most)
    write(llama(), training={"maxSequenceLength": 65536})
    assert "positions" not in printed(capsys)
