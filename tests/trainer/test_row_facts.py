"""What preflight says of the rows: the counts are those of the training, and of a sample they come with their error."""

import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer import templates, tiny
from tests.trainer.test_data import on_claim

from lora_trainer.data import row_facts
from lora_trainer.data.counts import surely_lost
from lora_trainer.data.dataset import Data, encode, log_data
from lora_trainer.data.first_row import show_row
from lora_trainer.data.row_facts import count_rows
from lora_trainer.data.survey import DatasetIndex, load_index
from lora_trainer.data.tokens import IGNORED, Encoder
from lora_trainer.errors import DatasetError
from lora_trainer.spec.config import LossOn
from lora_trainer.spec.preflight import MOST_ROW_BYTES, RowFacts
from lora_trainer.storage.hub import Hub


def samples_of(root: Path, rows: list[dict[str, Any]], **dataset: Any) -> DatasetIndex:
    """A data set on a claim, surveyed."""
    config, volumes = on_claim(root, rows, dataset=dataset)
    return load_index(config, volumes, Hub())


def uneven(count: int) -> list[dict[str, Any]]:
    """Rows whose lengths differ, one of them empty, and two the same."""
    rows = [{"prompt": f"Where is parcel {n}?", "completion": "winds " * (1 + n * 7 % 40)} for n in range(count)]
    return [*rows, rows[3], {"prompt": "Who?", "completion": ""}]


def counted_twice(index: DatasetIndex, encoder: Encoder) -> tuple[RowFacts, Data]:
    """By preflight and by the training, which says of all rows what a preflight says."""
    facts, data = count_rows(index, encoder, 42), encode(index, encoder)
    assert data.rows == facts
    return facts, data


def test_the_counts_are_those_of_the_training(tmp_path: Path, encoder: Encoder) -> None:
    """Of rows that are cut, skipped, duplicated, held out."""
    encoder.max_length = 50
    facts, data = counted_twice(samples_of(tmp_path, uneven(60)), encoder)
    stats = data.stats
    assert (stats.train_samples, stats.validation_samples) == (len(data.training), len(data.evaluation))
    assert (stats.train_tokens, stats.target_tokens) == (data.training.lengths.sum(), data.training.targets.sum())
    assert stats.truncated_samples == data.training.truncated.sum() + data.evaluation.truncated.sum()
    assert (facts.tokens, facts.target_tokens) == (stats.train_tokens, stats.target_tokens)
    assert (facts.train_samples, facts.validation_samples) == (stats.train_samples, stats.validation_samples)
    assert (facts.truncated_samples, facts.truncated_tokens) == (stats.truncated_samples, stats.truncated_tokens)
    assert (facts.skipped_samples, facts.duplicate_samples) == (stats.skipped_samples, stats.duplicate_samples)
    assert facts.truncated_tokens > 0
    assert facts.duplicate_samples == facts.skipped_samples == 1
    assert facts.fingerprint == data.fingerprint
    assert (facts.sampled, facts.tokens_standard_error) == (None, None)


def test_lengths_are_those_of_rows_before_the_cut(tmp_path: Path, encoder: Encoder) -> None:
    """Half of the rows are not longer than the median, 95 % not longer than the other; numpy says the same."""
    index = samples_of(tmp_path, uneven(97), validationFraction="0")
    lengths = np.sort(encode(index, encoder).training.lengths)
    encoder.max_length = 30
    facts = count_rows(index, encoder, 42)
    expected = [int(np.percentile(lengths, percent, method="inverted_cdf")) for percent in (50, 95)]
    assert [facts.p50_tokens, facts.p95_tokens] == expected
    assert facts.longest_tokens == lengths[-1] > 30
    assert np.mean(lengths <= facts.p50_tokens) >= 0.5 > np.mean(lengths < facts.p50_tokens)
    few = count_rows(samples_of(tmp_path, uneven(4)[:2], validationFraction="0"), encoder, 42)
    assert few.p50_tokens < few.p95_tokens == few.longest_tokens
    assert few.p50_tokens + few.longest_tokens == few.tokens + few.truncated_tokens


def test_conversations_that_become_several_samples_count_as_in_the_training(tmp_path: Path, encoder: Encoder) -> None:
    """A row has as many tokens as all that is made of it."""
    facts, data = counted_twice(samples_of(tmp_path, tiny.chats(30)), encoder)
    assert (facts.tokens, facts.train_samples) == (data.stats.train_tokens, data.stats.train_samples)


def test_a_sample_comes_within_its_standard_error(tmp_path: Path, encoder: Encoder) -> None:
    """Over many seeds the totals scatter around the truth as the error says; the same seed draws the same rows."""
    index = samples_of(tmp_path, uneven(400))
    encoder.max_length = 40
    whole = count_rows(index, encoder, 0)
    drawn = [count_rows(index, encoder, seed, most_rows=240) for seed in range(40)]
    # The first row is always among them.
    assert {facts.sampled for facts in drawn} <= {240, 241}
    errors = [(facts.tokens - whole.tokens) / (facts.tokens_standard_error or 1) for facts in drawn]
    assert 0.7 < math.sqrt(np.mean(np.square(errors))) < 1.3
    mean = np.mean([[facts.target_tokens, facts.truncated_tokens, facts.truncated_samples] for facts in drawn], axis=0)
    assert mean == pytest.approx([whole.target_tokens, whole.truncated_tokens, whole.truncated_samples], rel=0.05)
    for facts in drawn:
        assert (facts.train_samples, facts.validation_samples) == (whole.train_samples, whole.validation_samples)
        assert (facts.skipped_samples, facts.duplicate_samples) == (whole.skipped_samples, whole.duplicate_samples)
        assert facts.first_row == whole.first_row
    assert count_rows(index, encoder, 7, most_rows=240) == drawn[7]


def test_of_large_files_fewer_rows_are_counted(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tokenize gigabytes would take longer than to begin a training."""
    index = samples_of(tmp_path, uneven(200))
    size = sum(path.stat().st_size for part in index.parts for _, path in part.files)
    monkeypatch.setattr(row_facts, "MOST_BYTES", size // 4)
    assert count_rows(index, encoder, 42).sampled is None, "at least so many rows, whatever they take"
    monkeypatch.setattr(row_facts, "FEWEST_ROWS", 1)
    assert 45 <= (count_rows(index, encoder, 42).sampled or 0) <= 55


def test_rows_that_take_too_much_memory_are_left_out(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And extrapolated to; where all are so long, they are counted all the same."""
    rows = [{"prompt": "Who?", "completion": "winds " * (200 if n == 5 else 3)} for n in range(40)]
    index = samples_of(tmp_path, rows, validationFraction="0")
    encoder.max_length = 1000
    exact = count_rows(index, encoder, 42)
    monkeypatch.setattr(row_facts, "LONGEST_CHARACTERS", 100)
    facts = count_rows(index, encoder, 42)
    assert (facts.sampled, facts.train_samples) == (39, 40)
    assert facts.tokens < exact.tokens
    assert "1 rows of more than 100 characters were not tokenized" in caplog.text
    monkeypatch.setattr(row_facts, "LONGEST_CHARACTERS", 1)
    assert count_rows(index, encoder, 42) == exact
    monkeypatch.setattr(row_facts, "MOST_CHARACTERS", 400)
    count_rows(index, encoder, 42)
    assert "1 rows of more than 400 characters were not tokenized" in caplog.text
    monkeypatch.setattr(row_facts, "MOST_CHARACTERS", 4)
    with pytest.raises(DatasetError, match=r"^40 rows have more than 4 characters.*spec\.preflight to Skip$"):
        count_rows(index, encoder, 42)


def test_conversations_of_very_many_answers_are_left_out(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All that comes before each answer is rendered once more."""
    turns = [{"role": role, "content": "winds"} for role in ("user", "assistant")]
    rows = [{"messages": turns * (90 if n == 5 else 2)} for n in range(40)]
    index = samples_of(tmp_path, rows, validationFraction="0")
    monkeypatch.setattr(row_facts, "LONGEST_CHARACTERS", 1000)
    facts = count_rows(index, encoder, 42)
    assert facts.sampled == 39
    assert "1 rows of more than 1,000 characters were not tokenized" in caplog.text


@pytest.mark.parametrize(
    ("rows", "max_length", "sentence"),
    [
        ([{"prompt": "winds " * 90, "completion": "a"}], 30, "rows have no answer left within training.maxSequence"),
        ([{"prompt": "a", "completion": "winds " * 90}], 30, "rows are longer than training.maxSequenceLength"),
    ],
    ids=["prompts alone", "answers"],
)
def test_rows_that_no_training_would_take_are_refused_as_by_it(
    tmp_path: Path, encoder: Encoder, rows: list[dict[str, Any]], max_length: int, sentence: str
) -> None:
    """With the same sentence."""
    index = samples_of(tmp_path, rows * 4)
    encoder.max_length = max_length
    with pytest.raises(DatasetError, match=sentence) as ours:
        count_rows(index, encoder, 42)
    with pytest.raises(DatasetError) as theirs:
        encode(index, encoder)
    assert str(ours.value) == str(theirs.value)


SAMPLED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "more than half is cut": (
        [{"prompt": "a", "completion": "winds " * 90}] * 3 + [{"prompt": "a", "completion": "b"}],
        "would be cut",
    ),
    "all answers are cut": ([{"prompt": "a", "completion": "winds " * 25}], "no answer keeps its end"),
    "most rows are lost": (
        [{"prompt": "winds " * 90, "completion": "a"}] * 3 + [{"prompt": "a", "completion": "b"}],
        "no answer left",
    ),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sample_refuses_only_what_is_certain_of_all_rows(
    tmp_path: Path, encoder: Encoder, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The training has counted all of them when it refuses; a sample's sentence is a warning."""
    rows, sentence = SAMPLED[name]
    index = samples_of(tmp_path, rows * 50, validationFraction="0")
    encoder.max_length = 30
    with pytest.raises(DatasetError, match=sentence):
        count_rows(index, encoder, 42)
    assert count_rows(index, encoder, 42, most_rows=len(rows) * 25).sampled
    assert "the training may say: " in caplog.text
    assert sentence in caplog.text


def test_a_sample_that_leaves_no_doubt_refuses(tmp_path: Path, encoder: Encoder) -> None:
    """Each row that was drawn has no answer left, and they are half of all."""
    index = samples_of(tmp_path, [{"prompt": "winds " * 90, "completion": "a"}] * 100, validationFraction="0")
    encoder.max_length = 30
    with pytest.raises(DatasetError, match=r"^(50 of 50|51 of 51) rows have no answer left"):
        count_rows(index, encoder, 42, most_rows=50)


@pytest.mark.parametrize(
    ("lost", "drawn", "rows", "sure"),
    [
        (10, 10, 10**6, False),
        (60, 60, 10**6, True),
        (120_000, 200_000, 10**9, True),
        (100_500, 200_000, 10**9, False),
        (53, 100, 100, False),
        (99, 100, 101, True),
        (1, 1, 1, False),
    ],
)
def test_how_many_lost_rows_of_a_sample_are_enough(lost: int, drawn: int, rows: int, sure: bool) -> None:
    """The fewer the rows, the more of them."""
    assert surely_lost(lost, drawn, rows) is sure


def test_a_few_short_rows_do_not_speak_for_long_ones(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only one short enough to be counted in little memory has no answer left, or the only ones that were drawn."""
    long, lost = {"prompt": "a", "completion": "b " * 100}, {"prompt": "b " * 40, "completion": "a"}
    index = samples_of(tmp_path, [lost, *[long] * 30], validationFraction="0")
    encoder.max_length = 30
    monkeypatch.setattr(row_facts, "LONGEST_CHARACTERS", 90)
    with pytest.raises(DatasetError, match="no answer keeps its end"):
        count_rows(index, encoder, 42)
    monkeypatch.setattr(row_facts, "LONGEST_CHARACTERS", 900)
    encoder.max_length = 300
    index = samples_of(tmp_path / "more", [{**lost, "prompt": "b " * 400}, *[long] * 30], validationFraction="0")
    draws = (np.random.default_rng(seed).choice(np.arange(31), 1, replace=False)[0] for seed in itertools.count())
    of_the_first = next(seed for seed, row in enumerate(draws) if row == 0)
    facts = count_rows(index, encoder, of_the_first, most_rows=1)
    assert (facts.train_samples, facts.skipped_samples, facts.sampled) == (30, 1, None)


def test_the_first_row_is_as_the_model_sees_it(tmp_path: Path, encoder: Encoder) -> None:
    """Template and all; what is learned is marked."""
    facts, data = counted_twice(samples_of(tmp_path, tiny.chats(12), validationFraction="0"), encoder)
    shown = json.loads(facts.first_row)
    first = data.training[0]
    assert [list(piece) for piece in shown] == [["seen"], ["learned"]]
    assert "".join(text for piece in shown for text in piece.values()) == encoder.tokenizer.decode(first.input_ids)
    assert shown[1]["learned"] == encoder.tokenizer.decode(first.input_ids[first.labels != IGNORED])
    assert shown[0]["seen"] == "<|im_start|>user\nWhere is my parcel number 0?<|im_end|>\n<|im_start|>assistant\n"


@given(pieces=st.lists(st.tuples(st.text(max_size=2000), st.booleans()), max_size=40))
def test_any_row_is_shown_printable_and_short(pieces: list[tuple[str, bool]]) -> None:
    """Control characters, directions of writing and half characters included."""
    text = show_row(pieces)
    assert len(text.encode()) <= MOST_ROW_BYTES
    assert text.isprintable()
    shown = json.loads(text)
    for piece, (original, learned) in zip(shown[:12], pieces, strict=False):
        ((kind, part),) = piece.items()
        assert kind == ("learned" if learned else "seen")
        assert part == original or all(half in original for half in part.split(" […] ")) or "[…]" in original


def test_of_long_stretches_the_middle_is_left_out() -> None:
    """A short question before a long answer stays whole."""
    shown = json.loads(show_row([("Who?", False), ("a" * 3000 + "end", True)]))
    assert shown[0] == {"seen": "Who?"}
    assert shown[1]["learned"].startswith("aaaa")
    assert shown[1]["learned"].endswith("aend")
    assert 700 < len(show_row([("Who?", False), ("a" * 3000, True)])) <= MOST_ROW_BYTES
    assert len(json.loads(show_row([("x", bool(n % 2)) for n in range(99)]))) == 13


def test_what_a_template_does_not_show_is_logged_before_a_training_and_by_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tools that it leaves out, and a thought that inference alone begins with; text has no template."""
    tokenizer = tiny.make_tokenizer(chat_template=templates.DEEPSEEK_R1)
    encoder = Encoder(tokenizer, LossOn.COMPLETION, 256, [tokenizer.eos_token_id])
    rows = [{**row, "tools": [{"name": "weather"}] if number < 7 else None} for number, row in enumerate(uneven(20))]
    index = samples_of(tmp_path, rows, validationFraction="0")
    count_rows(index, encoder, 42)
    tools, thought = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert tools.startswith(f"{index.with_tools} rows have tools, which the chat template leaves out")
    assert index.with_tools == 7
    assert thought.startswith('inference begins an answer with "<think>\\n", and the first row does not')
    caplog.clear()
    log_data(encode(index, encoder))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [tools, thought]
    caplog.clear()
    count_rows(samples_of(tmp_path, [{"text": "Ahoy"}] * 9, validationFraction="0"), encoder, 42)
    assert not caplog.records


def test_no_token_is_kept(tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is written to the disk that a pod would have to have room for."""
    caplog.set_level(logging.DEBUG)
    index = samples_of(tmp_path, uneven(30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_trainer.data.store.Writer.__enter__", None)
        patch.setattr("tempfile.mkdtemp", None)
        assert count_rows(index, encoder, 42).tokens
