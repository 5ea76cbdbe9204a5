"""The held-out split, the counts, and where a data set is looked for."""

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.trainer import tiny
from tests.trainer.conftest import make_config

from lora_trainer.data.dataset import encode, log_data
from lora_trainer.data.row_facts import count_rows
from lora_trainer.data.store import Examples
from lora_trainer.data.survey import load_index
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import IGNORED, Encoder
from lora_trainer.errors import DatasetError, TrainerError
from lora_trainer.spec.config import DatasetFormat, LossOn, TrainConfig
from lora_trainer.storage.base import Base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes

if TYPE_CHECKING:
    from lora_trainer.spec.summary import DatasetStats


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
    rows += [{"text": "Ahoy 0", "id": 7}, {"text": "  "}, {"text": "winds " * 80}]
    config, volumes = on_claim(tmp_path, rows, dataset={"validationFraction": "0"})
    whole = len(encoder.tokenizer("winds " * 80 + "<|im_end|>")["input_ids"])
    encoder.max_length = 50
    data = encode(load_index(config, volumes, Hub()), encoder)
    lengths = [len(encoder.tokenizer(f"Ahoy {i}<|im_end|>")["input_ids"]) for i in [*range(8), 0]]
    stats = data.stats
    assert (stats.train_samples, stats.validation_samples) == (10, 0)
    assert (stats.truncated_samples, stats.skipped_samples, stats.duplicate_samples) == (1, 1, 1)
    assert stats.train_tokens == sum(lengths) + 50
    assert stats.target_tokens == stats.train_tokens - 10
    assert stats.longest_tokens == 50
    assert stats.truncated_tokens == whole - 50
    assert data.kind is DatasetFormat.TEXT


def test_cut_tokens_are_those_of_rows_that_are_cut_not_of_skipped_ones(tmp_path: Path, tiny_base: Base) -> None:
    """A row whose prompt alone is too long is skipped with all its tokens."""
    rows = [{"prompt": f"Hi {i}?", "completion": "winds " * (80 if i == 0 else 20)} for i in range(8)]
    skipped = {"prompt": "winds " * 90, "completion": "Ahoy"}
    found: list[DatasetStats] = []
    for given in (rows, [*rows, skipped]):
        config, volumes = on_claim(tmp_path / str(len(given)), given, dataset={"validationFraction": "0"})
        encoder = load_encoder(tiny_base, LossOn.COMPLETION, 60)
        found.append(encode(load_index(config, volumes, Hub()), encoder).stats)
    assert [(stats.truncated_samples, stats.skipped_samples) for stats in found] == [(1, 0), (1, 1)]
    assert found[0].truncated_tokens == found[1].truncated_tokens > 0


def test_rows_whose_prompt_has_other_tokens_at_inference_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of three: a word that the boundary divides; the third is tokenized whole."""
    tokenizer = tiny.make_tokenizer(chat_template=None)
    encoder = Encoder(tokenizer, LossOn.COMPLETION, 256, [tokenizer.eos_token_id])
    rows = [{"prompt": f"Where is my parc{cut}", "completion": f"{rest}?"} for cut, rest in (("", "el"), ("el", ""))]
    config, volumes = on_claim(tmp_path, [*rows, rows[0]], dataset={"validationFraction": "0"})
    caplog.set_level(logging.INFO)
    encode(load_index(config, volumes, Hub()), encoder)
    assert any(
        line.startswith("2 samples of 3 rows: prompt and answer are tokenized apart") for line in caplog.messages
    )


def test_a_tiny_data_set_is_evaluated_on_training_rows_and_says_so(tmp_path: Path, encoder: Encoder) -> None:
    """None are held out; of many rows 64 suffice."""
    for count in (10, 80):
        config, volumes = on_claim(tmp_path, tiny.chats(count), dataset={"validationFraction": "0.0"})
        index = load_index(config, volumes, Hub())
        data = encode(index, encoder)
        assert not data.held_out
        assert ids(data.evaluation) == ids(data.training)[:64]


def test_counts_are_logged(tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    """Of all rows, before the first one."""
    config, volumes = on_claim(tmp_path, tiny.chats(40))
    data = encode(load_index(config, volumes, Hub()), encoder)
    with caplog.at_level(logging.INFO):
        log_data(data)
    assert caplog.messages[0].startswith(f"Messages: {len(data.training)} training samples")
    assert len(caplog.messages) == 2


def test_the_first_row_is_logged_with_what_is_learned_of_it(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """On one line, of bounded length."""
    turns = [{"role": role, "content": f"Ahoy\n{'🙂' * 900}"} for role in ("user", "assistant") * 9]
    encoder.max_length = 2**20
    config, volumes = on_claim(tmp_path, [{"messages": turns}])
    with caplog.at_level(logging.INFO):
        log_data(encode(load_index(config, volumes, Hub()), encoder))
    (line,) = [message for message in caplog.messages if message.startswith("the first row")]
    shown = json.loads(line.partition(": ")[2])
    answer = f"Ahoy\n{'🙂' * 195} […] {'🙂' * 190}<|im_end|>"
    assert shown.startswith(f"<|im_start|>user\nAhoy\n{'🙂' * 178} […] ")
    assert shown.count(">>>") == shown.count("<<<") == shown.count(f">>>{answer}<<<") == 4
    assert shown.endswith("<<< […]")
    assert "\n" not in line
    assert len(line) < 4096


REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ '<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's: the last answer alone has a thought."""


def test_every_answer_of_a_rewritten_conversation_is_learned_and_counted(tmp_path: Path, tiny_base: Base) -> None:
    """Three of each row, as examples of their own on the side of the row, in the same order every time."""
    rows: list[dict[str, Any]] = []
    for i in range(8):
        turns = [(role, f"{role} {i}.{turn}") for turn in range(3) for role in ("user", "assistant")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    rows.append({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]})
    rows.append({"messages": [*rows[0]["messages"][:1], {"role": "assistant", "content": ""}, *rows[-1]["messages"]]})
    config, volumes = on_claim(tmp_path, rows)
    encoder = load_encoder(tiny_base, LossOn.COMPLETION, 512)
    encoder = Encoder(_with_template(encoder.tokenizer, REWRITES), LossOn.COMPLETION, 512, tuple(encoder.stop_ids))
    index = load_index(config, volumes, Hub())
    data = encode(index, encoder)
    stats = data.stats
    assert (stats.learned_answers, stats.skipped_answers, stats.unended_answers) == (26, 1, 0)
    assert (stats.train_samples + stats.validation_samples, stats.split_samples) == (26, 8)
    sides = []
    for side in (data.training, data.evaluation):
        texts = [encoder.tokenizer.decode(example.labels[example.labels != IGNORED]) for example in side]
        assert texts == sorted(texts, key=lambda text: [int(n) for n in re.findall(r"\d+", text)] or [9])
        sides.append({text.partition(".")[0] for text in texts})
    assert not sides[0] & {text for text in sides[1] if "assistant" in text}
    assert ids(encode(index, encoder).training) == ids(data.training)


def _with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def test_an_answer_whose_prompt_is_too_long_is_skipped_and_counted(tmp_path: Path, tiny_base: Base) -> None:
    """The others of its row are learned."""
    turns = ["Hi", "Ahoy, captain!", "x" * 400, "No"]
    rows = [{"messages": [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]}]
    config, volumes = on_claim(tmp_path, rows, dataset={"validationFraction": "0"})
    encoder = load_encoder(tiny_base, LossOn.COMPLETION, 64)
    encoder = Encoder(_with_template(encoder.tokenizer, REWRITES), LossOn.COMPLETION, 64, tuple(encoder.stop_ids))
    stats = encode(load_index(config, volumes, Hub()), encoder).stats
    assert (stats.train_samples, stats.learned_answers, stats.skipped_answers, stats.skipped_samples) == (1, 1, 1, 0)


def test_prompts_longer_than_the_longest_row_are_refused(tmp_path: Path, tiny_base: Base) -> None:
    """All labels masked: the run would learn nothing and report a loss of nothing."""
    config, volumes = on_claim(tmp_path, tiny.chats(10))
    with pytest.raises(DatasetError, match=r"10 of 10 rows have no answer left .*maxSequenceLength \(8\)"):
        encode(load_index(config, volumes, Hub()), load_encoder(tiny_base, LossOn.COMPLETION, 8))


def test_a_data_set_that_never_teaches_to_stop_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    """Without an end-of-sequence token in the tokenizer, answers would never end."""
    config, volumes = on_claim(tmp_path, tiny.chats(10))
    encoder.stop_ids = frozenset({399})
    encoder.tokenizer.eos_token = None
    with pytest.raises(DatasetError, match="no end-of-sequence token is learned"):
        encode(load_index(config, volumes, Hub()), encoder)


def test_rows_that_are_all_cut_teach_no_end_and_are_refused(tmp_path: Path, tiny_base: Base) -> None:
    """The prompts fit and some of every answer, but no answer keeps its end."""
    rows = [{"prompt": "Hi?", "completion": f"{'a long answer ' * 40}{n}"} for n in range(10)]
    config, volumes = on_claim(tmp_path, rows)
    with pytest.raises(DatasetError, match=r"all 8 rows are longer than training\.maxSequenceLength \(48\)"):
        encode(load_index(config, volumes, Hub()), load_encoder(tiny_base, LossOn.COMPLETION, 48))


def test_a_run_that_would_cut_most_of_what_is_to_be_learned_is_refused(tmp_path: Path, tiny_base: Base) -> None:
    """More than half: some rows fit, so that it would run, and learn from the beginnings of the others."""
    rows = [{"text": "Fair winds, captain! " * (20 if i % 2 else 1) + str(i)} for i in range(20)]
    config, volumes = on_claim(tmp_path, rows)
    index = load_index(config, volumes, Hub())
    with pytest.raises(DatasetError, match=r"\d\d% of the tokens to be learned are beyond .* \(40\) .* split the rows"):
        encode(index, load_encoder(tiny_base, LossOn.COMPLETION, 40))
    stats = encode(index, load_encoder(tiny_base, LossOn.COMPLETION, 80)).stats
    assert stats.truncated_samples == 10
    assert 0 < stats.truncated_tokens < stats.train_tokens


def test_a_misspelt_column_of_the_input_is_refused(tmp_path: Path) -> None:
    """All rows would lose their input in silence."""
    rows = [{"instruction": "q", "ticket": "t", "output": "a"}]
    columns = {"instruction": "instruction", "input": "tikcet", "output": "output"}
    config, volumes = on_claim(tmp_path, rows, dataset={"columns": columns})
    with pytest.raises(DatasetError, match='maps input to "tikcet"'):
        load_index(config, volumes, Hub())


@pytest.mark.parametrize(
    ("row", "read", "unread"),
    [
        ({"text": "t", "summary": "s"}, {"text": "text"}, ("summary",)),
        (
            {"instruction": "q", "context": "c", "output": "a"},
            {"instruction": "instruction", "output": "output"},
            ("context",),
        ),
        (
            {"question": "q", "answer": "a", "context": "c"},
            {"instruction": "question", "input": "context", "output": "answer"},
            (),
        ),
    ],
)
def test_columns_that_are_not_read_are_logged_and_kept_for_advice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, str], read: dict[str, str], unread: tuple[str, ...]
) -> None:
    """Nobody is to learn an article without its summary, and not know."""
    config, volumes = on_claim(tmp_path, [row])
    with caplog.at_level(logging.INFO):
        columns = load_index(config, volumes, Hub()).columns
    assert (columns.read, columns.unread) == (read, unread)
    logged = [message for message in caplog.messages if "not read: " in message]
    assert logged == (
        [f"train.jsonl, line 1: columns that are read: {', '.join(read.values())}; not read: {unread[0]}"]
        if unread
        else []
    )


def test_only_empty_rows_are_refused(tmp_path: Path) -> None:
    """Rows are there, but nothing in them."""
    config, volumes = on_claim(tmp_path, [{"text": ""}, {"text": " "}])
    with pytest.raises(DatasetError, match=r"train\.jsonl, line 1: this row is empty, and so are all others"):
        load_index(config, volumes, Hub())


def test_rows_of_a_file_of_their_own_are_held_out(tmp_path: Path, encoder: Encoder) -> None:
    """All of them, none of the others; a row in both is not trained on. Copies are counted over both."""
    tiny.write_jsonl(
        tmp_path / "data/held.jsonl", [{"text": "Ahoy 3"}, {"text": ""}, {"text": "winds"}, {"text": "winds"}]
    )
    dataset = {"validationUri": "pvc://data/held.jsonl", "validationFraction": None}
    config, volumes = on_claim(tmp_path, [{"text": f"Ahoy {i}"} for i in range(8)], dataset=dataset)
    index = load_index(config, volumes, Hub())
    data = encode(index, encoder)
    assert [encoder.tokenizer.decode(e.input_ids) for e in data.evaluation] == [
        f"{text}<|im_end|>" for text in ("Ahoy 3", "winds", "winds")
    ]
    assert [encoder.tokenizer.decode(e.input_ids) for e in data.training] == [
        f"Ahoy {i}<|im_end|>" for i in (0, 1, 2, 4, 5, 6, 7)
    ]
    assert (data.held_out, data.stats.train_samples, data.stats.validation_samples) == (True, 7, 3)
    assert (data.stats.skipped_samples, data.stats.duplicate_samples) == (1, 1)
    assert index.shared == count_rows(index, encoder, 0).shared_samples == 1

    on_claim(tmp_path, [{"text": f"Ahoy {i}"} for i in range(4)], dataset=dataset)
    fewer = load_index(config, volumes, Hub())
    assert (fewer.held_out_digest, fewer.sources.fingerprint != index.sources.fingerprint) == (
        index.held_out_digest,
        True,
    )
    tiny.write_jsonl(tmp_path / "data/held.jsonl", [{"text": "Ahoy 3"}])
    others = load_index(config, volumes, Hub())
    assert others.held_out_digest != index.held_out_digest
    assert others.sources.fingerprint != fewer.sources.fingerprint


def test_rows_that_are_all_held_out_are_refused(tmp_path: Path) -> None:
    """As where the training's own file is named."""
    dataset = {"validationUri": "pvc://data/train.jsonl", "validationFraction": None}
    config, volumes = on_claim(tmp_path, tiny.chats(8), dataset=dataset)
    sentence = r"dataset\.validationUri is pvc://data/train\.jsonl: all 8 rows of dataset\.uri .* name other rows"
    with pytest.raises(DatasetError, match=sentence):
        load_index(config, volumes, Hub())


def test_the_same_rows_in_other_files_are_split_the_same(tmp_path: Path, encoder: Encoder) -> None:
    """In one file of JSONL, or in two of JSON and Parquet in another order: the same rows are held out."""
    rows = tiny.chats(40)
    config, volumes = on_claim(tmp_path, rows)
    first = encode(load_index(config, volumes, Hub()), encoder)
    folder = tmp_path / "data/set"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(rows[::-2]), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows[::2]), folder / "b.parquet")
    other = make_config(dataset={"uri": "pvc://data/set"})
    second = encode(load_index(other, volumes, Hub()), encoder)
    assert sorted(ids(first.evaluation)) == sorted(ids(second.evaluation))
    assert sorted(ids(first.training)) == sorted(ids(second.training))
    assert len(first.training) == 32


def test_a_second_reading_gives_the_very_same_examples(tmp_path: Path, encoder: Encoder) -> None:
    """As a run that goes on after an interruption needs it."""
    config, volumes = on_claim(tmp_path, tiny.chats(40))
    first, second = (encode(load_index(config, volumes, Hub()), encoder) for _ in range(2))
    assert ids(first.training) == ids(second.training)
    assert ids(first.evaluation) == ids(second.evaluation)
    assert (first.fingerprint, first.stats) == (second.fingerprint, second.stats)


def test_rows_that_change_during_a_run_are_reported(tmp_path: Path, encoder: Encoder) -> None:
    """Files are read twice; a row that has become empty in between was neither checked nor counted."""
    config, volumes = on_claim(tmp_path, [{"text": "Ahoy"}, {"text": "winds"}])
    index = load_index(config, volumes, Hub())
    tiny.write_jsonl(tmp_path / "data/train.jsonl", [{"text": "Ahoy"}, {"text": ""}])
    with pytest.raises(DatasetError, match=r"train\.jsonl, line 2: the row changed while it was read"):
        encode(index, encoder)
    tiny.write_jsonl(tmp_path / "data/train.jsonl", [{"text": "Ahoy"}])
    with pytest.raises(DatasetError, match=r"train\.jsonl: 1 rows are gone since the first reading"):
        encode(index, encoder)


def _rows(rows: list[Any], **dataset: Any) -> Any:
    def prepare(root: Path) -> dict[str, Any]:
        tiny.write_jsonl(root / "data/train.jsonl", rows)
        return dataset

    return prepare


def _bytes(content: bytes, name: str = "train.jsonl") -> Any:
    def prepare(root: Path) -> dict[str, Any]:
        (root / "data").mkdir()
        (root / "data" / name).write_bytes(content)
        return {"uri": f"pvc://data/{name}"}

    return prepare


def _held_out(content: str) -> Any:
    def prepare(root: Path) -> dict[str, Any]:
        tiny.write_jsonl(root / "data/train.jsonl", GOOD)
        (root / "data/held.jsonl").write_text(content, encoding="utf-8")
        return {"validationUri": "pvc://data/held.jsonl", "validationFraction": None}

    return prepare


def _numbers_in_parquet(root: Path) -> dict[str, Any]:
    (root / "data").mkdir()
    pq.write_table(pa.table({"text": [1, 2]}), root / "data/train.parquet")
    return {"uri": "pvc://data/train.parquet"}


GOOD = [{"text": "Ahoy"}] * 3
BAD_INPUT: list[tuple[Any, int, str]] = [
    (lambda root: (root / "data").mkdir(), 66, "dataset.uri is pvc://data/train.jsonl: there is no such file"),
    (_bytes(b""), 65, "train.jsonl has no rows: a data set needs at least one"),
    (_bytes(b"[]", "a.json"), 65, "a.json has no rows"),
    (_bytes(b"text\n", "a.csv"), 65, "a.csv has no rows"),
    (_bytes(b"PAR1 and more", "a.parquet"), 65, "a.parquet: cannot be read as Parquet"),
    (_numbers_in_parquet, 65, "train.parquet, row 1: field 'text' is a number, but must be text"),
    (
        _bytes(b'{"text": "a"}\n{"text": "b"\n'),
        65,
        "train.jsonl, line 2: not JSON (Expecting ',' delimiter at column 13)",
    ),
    (_bytes(b'{"text": "a"}\n{"text": "\xff"}\n'), 65, "train.jsonl, line 2: not UTF-8 (byte 0xff); save the file as"),
    (_bytes(b'{"text": "' + b"x" * 17 * 2**20), 65, "train.jsonl, line 1: the row has more than 16 MiB; split it"),
    (
        _rows([{"query": "q", "reply": "a"}]),
        65,
        "train.jsonl, line 1: the columns are query, reply, which fit no format",
    ),
    (
        _rows([{"text": "a"}, {"txt": "b"}]),
        65,
        "train.jsonl, line 2: missing field 'text', which the format Text needs",
    ),
    (_rows([{"text": ""}] * 3), 65, "train.jsonl, line 1: this row is empty, and so are all others"),
    (
        _rows([{"messages": [{"role": "user", "content": "q"}, {"role": "bear", "content": "a"}]}]),
        65,
        (
            "train.jsonl, line 1: this row is empty, and so are all others: an answer is a turn of the role assistant "
            "(or gpt) with text, the roles here are bear, user"
        ),
    ),
    (
        _rows(GOOD, columns={"text": "txet"}),
        65,
        'train.jsonl, line 1: dataset.columns maps text to "txet", but the col',
    ),
    (_held_out(""), 65, "held.jsonl has no rows"),
    (_held_out('{"txt": "a"}'), 65, "held.jsonl, line 1: missing field 'text'"),
    (
        _rows(GOOD, validationUri="pvc://data/no.jsonl", validationFraction=None),
        66,
        "dataset.validationUri is pvc://data/",
    ),
]


@pytest.mark.parametrize(
    ("prepare", "code", "sentence"), BAD_INPUT, ids=[sentence[:50] for _, _, sentence in BAD_INPUT]
)
def test_bad_input_gets_its_code_and_one_sentence(tmp_path: Path, prepare: Any, code: int, sentence: str) -> None:
    """Before a model is looked for, with file, line or row, field and remedy."""
    dataset = prepare(tmp_path) or {}
    with pytest.raises(TrainerError) as caught:
        load_index(make_config(dataset=dataset), Volumes(claims=tmp_path), Hub())
    assert str(caught.value).startswith(sentence)
    assert int(caught.value.code) == code
    assert "\n" not in str(caught.value)
