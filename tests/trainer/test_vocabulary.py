"""Tokens that the model has no embedding of: refused before its weights are read, and no fault of the GPU."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.trainer.test_advising import trained

from lora_trainer.contract.exit_codes import FINAL
from lora_trainer.errors import ConfigError

ROWS = 200


@pytest.fixture
def short(tmp_path: Path, tiny_folder: Path) -> Path:
    """The tiny model with too few embeddings for its tokenizer, as where that was extended and they were not."""
    folder = shutil.copytree(tiny_folder, tmp_path / "short")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name] = weights[name][:ROWS].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": ROWS}))
    return folder


def test_a_token_without_an_embedding_is_refused(tmp_path: Path, short: Path) -> None:
    """With the token, the number of embeddings and what to do; on a GPU it would end as a device-side assert."""
    with pytest.raises(ConfigError, match=f"{ROWS} embeddings.*resize_token_embeddings") as caught:
        trained(tmp_path / "run", short, 12, training={"maxSteps": 1})
    assert caught.value.code in FINAL
