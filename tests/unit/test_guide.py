"""`kubectl explain` gives the guide to the hyperparameters, and calls a rule of thumb one."""

from pathlib import Path

import pytest
from tests.unit.test_dropout_page import kept

from docgen.schema import load
from lora_trainer.contract.config import Layers

DEFINITION = load(Path(__file__).resolve().parents[2] / "crds/lorafinetunes.yaml")


def text_of(path: str) -> str:
    """What `kubectl explain` says of a field of the spec, on one line."""
    return " ".join(DEFINITION.field(f"spec.{path}").description.split())


@pytest.mark.parametrize(
    ("path", "guide"),
    [
        pytest.param(
            "lora.rank",
            "Rule of thumb: 4 to 8 for style and tone, or fewer than 5,000 rows; 16 to 32 for following instructions; "
            "64 to 128 for code, recall, or more than 50,000 rows; 256 and more for deep specialization.",
            id="rank",
        ),
        pytest.param(
            "lora.alpha",
            "Rule of thumb: 1 to 2 x rank; alpha = rank where the loss is noisy or diverges; at ranks of 128 and more "
            "with 2 x rank, a lower learningRate, too.",
            id="alpha",
        ),
        pytest.param("lora.layers", "but never lm_head", id="never the output embeddings"),
        pytest.param("lora.layers", "attention alone learns less even with the same number of parameters", id="layers"),
        pytest.param("lora.dropout", "a habit more than a finding", id="dropout"),
        pytest.param("quantization", "So quantize only what does not fit otherwise.", id="quantization"),
        pytest.param("training.epochs", "Absent, and without maxSteps: 1. Rule of thumb: one.", id="epochs"),
        pytest.param("training.epochs", "more data helps more than more passes", id="more data"),
    ],
)
def test_the_guide_stands_where_a_user_looks_first(path: str, guide: str) -> None:
    """Word for word, so that a shortened one shows."""
    assert guide in text_of(path)


def test_what_dropout_costs_is_what_the_fit_model_computes() -> None:
    """Activations of Llama-3-8B with and without it, all linear layers, kept."""
    without, with_it = (kept(Layers.ALL_LINEAR, dropout=dropout) for dropout in (False, True))
    share = round(100 * (with_it / without - 1))
    assert f"on Llama-3-8B by {share} %" in text_of("lora.dropout")
