"""Tokens that the model has no embedding of: refused before its weights are read, and no fault of the GPU."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.test_advising import trained
from transformers import AutoTokenizer

from lora_trainer.data.vocabulary import embeddings_in
from lora_trainer.errors import ConfigError
from lora_trainer.spec.exit_codes import FINAL
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.preflight import preflight

ROWS = 200


def with_rows(folder: Path, rows: int) -> Path:
    """The model with so many of its embeddings."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name] = weights[name][:rows].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return folder


@pytest.fixture
def short(tmp_path: Path, tiny_folder: Path) -> Path:
    """The tiny model with too few embeddings for its tokenizer, as where that was extended and they were not."""
    return with_rows(Path(shutil.copytree(tiny_folder, tmp_path / "short")), ROWS)


@pytest.fixture
def extended(tmp_path: Path, tiny_folder: Path) -> Path:
    """The tiny model with a tokenizer that knows two tokens more, which no row has."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "extended"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens(["<|tool|>", "<|image|>"]) == 2
    tokenizer.save_pretrained(folder)
    return folder


def train(folder: Path, model: Path) -> None:
    """One step on a few rows."""
    trained(folder / "run", model, 12, training={"maxSteps": 1})


def look(folder: Path, model: Path) -> None:
    """A preflight of the same."""
    claims = folder / "claims"
    tiny.write_jsonl(claims / "data/train.jsonl", tiny.chats(12))
    shutil.copytree(model, claims / "models/tiny")
    found = preflight(make_config(training={"maxSteps": 1}), Volumes(claims=claims), Hub())
    assert found.reason is Reason.PREFLIGHT_PASSED


@pytest.mark.parametrize("run", [train, look])
def test_a_token_without_an_embedding_is_refused(
    tmp_path: Path, short: Path, run: Callable[[Path, Path], None]
) -> None:
    """With the token, the number of embeddings and what to do; on a GPU it would end as a device-side assert. Before a
    GPU is asked for, too."""
    with pytest.raises(ConfigError, match=f"{ROWS} embeddings.*resize_token_embeddings") as caught:
        run(tmp_path, short)
    assert caught.value.code in FINAL


@pytest.mark.parametrize("run", [train, look])
def test_tokens_that_the_data_does_not_use_need_no_embeddings(
    tmp_path: Path, extended: Path, run: Callable[[Path, Path], None]
) -> None:
    """Published tokenizers know more than their models."""
    known: Any = AutoTokenizer.from_pretrained(extended)
    assert len(known) > (embeddings_in(extended) or 0)
    run(tmp_path, extended)


CONFIGS: list[tuple[dict[str, Any], int | None]] = [
    ({"vocab_size": 100}, 100),
    ({"vocab_size": 7, "text_config": {"vocab_size": 100}}, 100),
    ({"vocab_size": 100, "text_config": {}}, 100),
    ({"vocab_size": 100, "text_config": None}, 100),
    ({"text_config": {"model_type": "llama"}}, None),
    ({"vocab_size": True}, None),
    ({"vocab_size": "100"}, None),
    ({"pad": "y" * 2**20, "vocab_size": 100}, None),
    ({"model_type": "mllama", "text_config": {"vocab_size": 100}}, 108),
    ({"model_type": "mllama_text_model", "vocab_size": 100}, 108),
    ({"model_type": "moshi", "vocab_size": 100}, 101),
    ({"model_type": "molmo2", "text_config": {"model_type": "molmo2_text", "vocab_size": 100}}, 228),
    ({"model_type": "molmo2", "text_config": {"vocab_size": 100, "additional_vocab_size": 4}}, 104),
    ({"vocab_size": 100, "additional_vocab_size": "4"}, None),
]


@pytest.mark.parametrize(("config", "rows"), CONFIGS, ids=[str(config)[:70] for config, _ in CONFIGS])
def test_the_number_of_embeddings_is_read_of_whatever_somebody_wrote(
    tmp_path: Path, config: dict[str, Any], rows: int | None
) -> None:
    """Some kinds have more than their vocabulary; what cannot be read refuses nothing."""
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert embeddings_in(tmp_path) == rows
