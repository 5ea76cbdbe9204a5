"""The held-out split, the counts, and where a data set is looked for."""

from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config

from lora_trainer.base import Base
from lora_trainer.contract.config import DatasetFormat, LossOn, TrainConfig
from lora_trainer.data import encode, encode_evaluation, load_samples
from lora_trainer.errors import DatasetError
from lora_trainer.hub import Hub
from lora_trainer.model import load_encoder
from lora_trainer.store import Examples
from lora_trainer.tokens import Encoder
from lora_trainer.volumes import Volumes


def ids(examples: Examples) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each row."""
    return [(example.input_ids.tolist(), example.labels.tolist()) for example in examples]


def on_claim(root: Path, rows: list[dict[str, Any]], **sections: Any) -> tuple[TrainConfig, Volumes]:
    """A data set on a claim and the configuration of a run on it."""
    tiny.write_jsonl(root / "data/train.jsonl", rows)
    return make_config(**sections), Volumes(claims=root)


def test_the_counts_are_exact(tmp_path: Path, encoder: Encoder) -> None:
    """Rows, tokens, cut, skipped and duplicate rows."""
    rows: list[dict[str, Any]] = [{"text": f"Ahoy {i}"} for i in range(8)]
    rows += [{"text": "Ahoy 0"}, {"text": "  "}, {"text": "winds " * 100}]
    config, volumes = on_claim(tmp_path, rows, dataset={"validationFraction": "0"})
    encoder.max_length = 50
    data = encode(load_samples(config, volumes, Hub()), encoder)
    lengths = [len(encoder.tokenizer(f"Ahoy {i}<|im_end|>")["input_ids"]) for i in [*range(8), 0]]
    stats = data.stats
    assert (stats.train_samples, stats.validation_samples) == (10, 0)
    assert (stats.truncated_samples, stats.skipped_samples, stats.duplicate_samples) == (1, 1, 1)
    assert stats.train_tokens == sum(lengths) + 50
    assert stats.target_tokens == stats.train_tokens - 10
    assert stats.longest_tokens == 50
    assert data.kind is DatasetFormat.TEXT


def test_a_tiny_data_set_is_evaluated_on_training_rows_and_says_so(tmp_path: Path, encoder: Encoder) -> None:
    """2 % of 10 rows are none."""
    config, volumes = on_claim(tmp_path, tiny.chats(10), dataset={"validationFraction": "0.02"})
    data = encode(load_samples(config, volumes, Hub()), encoder)
    assert not data.held_out
    assert ids(data.evaluation) == ids(data.training)


def test_verification_reads_the_very_rows_that_were_evaluated(tmp_path: Path, encoder: Encoder) -> None:
    """Without tokenizing the others."""
    config, volumes = on_claim(tmp_path, tiny.chats(40))
    samples = load_samples(config, volumes, Hub())
    data = encode(samples, encoder)
    assert data.held_out
    assert len(data.evaluation) == 8
    assert ids(encode_evaluation(samples, encoder)) == ids(data.evaluation)


def test_prompts_longer_than_the_longest_row_are_refused(tmp_path: Path, tiny_base: Base) -> None:
    """All labels masked: the run would learn nothing and report a loss of nothing."""
    config, volumes = on_claim(tmp_path, tiny.chats(10))
    with pytest.raises(DatasetError, match=r"10 of 10 rows have no answer left .*maxSequenceLength \(8\)"):
        encode(load_samples(config, volumes, Hub()), load_encoder(tiny_base, LossOn.COMPLETION, 8))


def test_a_data_set_that_never_teaches_to_stop_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    """Without an end-of-sequence token in the tokenizer, answers would never end."""
    config, volumes = on_claim(tmp_path, tiny.chats(10))
    encoder.stop_ids = frozenset({399})
    encoder.tokenizer.eos_token = None
    with pytest.raises(DatasetError, match="no end-of-sequence token is learned"):
        encode(load_samples(config, volumes, Hub()), encoder)


def test_rows_that_are_all_cut_teach_no_end_and_are_refused(tmp_path: Path, tiny_base: Base) -> None:
    """The prompts fit and some of every answer, but no answer keeps its end."""
    rows = [{"prompt": "Hi?", "completion": f"{'a long answer ' * 40}{n}"} for n in range(10)]
    config, volumes = on_claim(tmp_path, rows)
    with pytest.raises(DatasetError, match=r"all 8 rows are longer than training\.maxSequenceLength \(48\)"):
        encode(load_samples(config, volumes, Hub()), load_encoder(tiny_base, LossOn.COMPLETION, 48))


def test_a_misspelt_column_of_the_input_is_refused(tmp_path: Path) -> None:
    """All rows would lose their input in silence."""
    rows = [{"instruction": "q", "ticket": "t", "output": "a"}]
    columns = {"instruction": "instruction", "input": "tikcet", "output": "output"}
    config, volumes = on_claim(tmp_path, rows, dataset={"columns": columns})
    with pytest.raises(DatasetError, match='maps input to "tikcet"'):
        load_samples(config, volumes, Hub())


def test_only_empty_rows_are_refused(tmp_path: Path) -> None:
    """Rows are there, but nothing in them."""
    config, volumes = on_claim(tmp_path, [{"text": ""}, {"text": " "}])
    with pytest.raises(DatasetError, match=r"train\.jsonl, line 1: this row is empty, and so are all others"):
        load_samples(config, volumes, Hub())
