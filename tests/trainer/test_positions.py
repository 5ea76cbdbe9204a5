"""How long a row may be where positions are looked up in a table: by Transformers' own classes, and in a run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import families, tiny
from tests.trainer.conftest import make_config
from tests.trainer.forked import ForkedRuns
from tests.trainer.runs import Workplace
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lora_trainer.errors import ConfigError, DatasetError
from lora_trainer.plan.families import TABLES, positions_of
from lora_trainer.plan.hints import spoken
from lora_trainer.spec.advice import Code
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import Summary
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.preflight import preflight

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "dff"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_size", "input_embedding_size", "output_embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("n_positions", "max_position_embeddings", "max_seq_len"), 16),
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rotary_dim": 8,
    "decoder_ffn_dim": 32,
    "attention_types": [[["global"], 1]],
    "default_language": "en_XX",
    "pronunciation_vocab_size": 8,
    "shape_vocab_size": 8,
    "vision_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
}
ANY_LENGTH = {"dbrx", "reformer", "xglm", "xlnet"}
"""Kinds whose code has such a word and no such limit, or one of its own, as Reformer, which trains on one length."""
TABLE = re.compile(
    r"Embedding\w*\(\s*(?:self\.)?(?:config\.)?(?:n_positions|max_position_embeddings|max_positions)"
    r"|create_sinusoidal_positions\(|positional_encoding\(|config\.max_seq_len\b"
)


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_a_row_has_as_many_tokens_as_the_table_and_no_more(kind: str) -> None:
    """One more is an error of PyTorch, on a GPU that of a broken one; what an absent number means is the class's."""
    default = CONFIG_MAPPING[kind]()
    without = positions_of({"model_type": kind})
    every = positions_of({**default.to_dict(), "model_type": kind})
    assert without is not None
    assert without == every
    config = CONFIG_MAPPING[kind](**{key: value for key, value in SMALL.items() if hasattr(default, key)})
    config.is_decoder = True
    found = positions_of({**config.to_dict(), "model_type": kind})
    assert found is not None
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, found.most), 3), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, found.most + 1), 3), use_cache=False)


def test_no_kind_of_transformers_with_such_a_table_is_left_out() -> None:
    """By the code of all kinds that write text from left to right; what has an encoder is refused anyway."""
    models = Path(transformers.__file__).parent / "models"
    found = set()
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        module = CONFIG_MAPPING[kind].__module__.split(".")[2]
        code = "".join(path.read_text(encoding="utf-8") for path in (models / module).glob("modeling_*.py"))
        if TABLE.search(code) and not getattr(CONFIG_MAPPING[kind](), "is_encoder_decoder", False):
            found.add(kind)
    assert found - ANY_LENGTH == set(TABLES)


def short_model(workplace: Workplace, kind: str, positions: int = 64) -> dict[str, Any]:
    """The section that names a tiny model of that kind with so few positions."""
    folder = families.make_family(workplace.claims / "models" / kind, kind)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    key = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config | {key: positions})).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return {"model": {"uri": f"pvc://models/{kind}"}}


def rows(count: int, words: int) -> list[dict[str, Any]]:
    """Different ones with about so many tokens."""
    return [{"prompt": f"Where is parcel {n}?", "completion": "winds " * words} for n in range(count)]


@pytest.fixture
def forked(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> ForkedRuns:
    """Runs in this process."""
    return ForkedRuns(workplace, capfd)


def looked_at(workplace: Workplace, **sections: Any) -> Summary:
    """Preflight of a run on the claims, in this process."""
    return preflight(make_config(**sections), Volumes(claims=workplace.claims), Hub())


def cut_rows(summary: Summary) -> str:
    """What is advised since rows are cut."""
    (found,) = [one for one in spoken(summary.advice) if one.code is Code.ROWS_CUT]
    return found.message


@pytest.mark.parametrize(("kind", "side"), [("gpt2", "training"), ("opt", "held out")])
def test_rows_beyond_the_positions_are_refused_before_a_gpu_is_asked_for(
    workplace: Workplace, forked: ForkedRuns, kind: str, side: str
) -> None:
    """By preflight and by the training, with the field and what to set it to; a held-out row as one to train on. Rows
    that are cut to as many tokens are trained on, and nothing advises to raise what cuts them."""
    sections: dict[str, Any] = short_model(workplace, kind)
    long = rows(1, 120)
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", [*rows(30, 9), *(long if side == "training" else [])])
    tiny.write_jsonl(workplace.claims / "data/held.jsonl", [*rows(4, 10), *(long if side == "held out" else [])])
    sections["dataset"] = {"validationFraction": None, "validationUri": "pvc://data/held.jsonl"}
    sections["resources"] = {"gpus": 0}
    asked = (
        rf"training.maxSequenceLength is 2048: {kind} has positions for 64 tokens, and the longest row has \d{{3}}; "
        "set it to 64 or less, at which longer rows are cut, or name a model with more positions"
    )
    with pytest.raises(ConfigError, match=asked):
        looked_at(workplace, **sections)
    ended = forked.run("-f", workplace.manifest_file(**sections))
    assert (ended.status, ended.summary.reason) == (64, Reason.CONFIG_INVALID)
    assert re.search(asked, ended.summary.message)
    sections["training"] = {"maxSteps": 2, "maxSequenceLength": 64}
    ended = forked.run("-f", workplace.manifest_file(**sections))
    assert (ended.status, ended.summary.reason) == (0, Reason.SUCCEEDED)
    assert cut_rows(ended.summary).startswith(
        "Raise spec.training.maxSequenceLength, where the model takes longer rows,"
    )
    assert cut_rows(ended.summary) == cut_rows(looked_at(workplace, **sections))


def test_rows_within_the_positions_are_no_matter_whatever_the_limit_is(workplace: Workplace) -> None:
    """The default maxSequenceLength is above what GPT-2 has."""
    sections = short_model(workplace, "gpt2")
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", rows(30, 9))
    assert looked_at(workplace, **sections).reason is Reason.PREFLIGHT_PASSED


@pytest.mark.parametrize(
    ("length", "remedy"), [(64, "stop: shorten the rows"), (63, "stop: raise it or shorten the ro")]
)
def test_to_raise_the_limit_is_no_remedy_beyond_the_positions(workplace: Workplace, length: int, remedy: str) -> None:
    """Where all rows are longer, so that no answer keeps its end."""
    sections = short_model(workplace, "gpt2")
    tiny.write_jsonl(workplace.claims / "data/train.jsonl", rows(30, 120))
    with pytest.raises(DatasetError, match=remedy):
        looked_at(workplace, **sections, training={"maxSequenceLength": length})
