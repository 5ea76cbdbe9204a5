"""`held_out_rows.json`: anyone finds the same rows with the rule of the split and the files alone."""

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.trainer import rule_of_the_split, tiny
from tests.trainer.conftest import make_config

from lora_trainer.data.dataset import encode
from lora_trainer.data.held_out import held_out_rows, write_held_out_rows
from lora_trainer.data.row_facts import count_rows
from lora_trainer.data.survey import DatasetIndex, load_index
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import IGNORED, Encoder
from lora_trainer.spec.config import LossOn
from lora_trainer.storage.base import Base
from lora_trainer.storage.held_out_rows import HELD_OUT_ROWS
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes

Places = list[tuple[str, str, int]]
"""File, unit and number of rows."""


def document(path: Path, **dataset: Any) -> Any:
    """The file that a run on `data` below this path leaves."""
    config = make_config(dataset={"uri": "pvc://data/set", **dataset})
    return document_of(load_index(config, Volumes(claims=path), Hub()))


def document_of(index: DatasetIndex) -> Any:
    """The file that a run on these samples leaves."""
    return json.loads(held_out_rows(index).to_json())


def listed(found: Any) -> Places:
    """The rows in it."""
    return [(file["file"], file["unit"], number) for file in found["files"] for number in file["numbers"]]


def lines(name: str, text: str) -> Iterator[tuple[tuple[str, str, int], Any]]:
    """Lines of JSON with their numbers, blank ones left out."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield (name, "line", number), json.loads(line)


def rows_of(path: Path) -> Iterator[tuple[tuple[str, str, int], Any]]:
    """Every row of a file with its place, read without the trainer."""
    data, name = path.read_bytes(), path.name
    if name.endswith(".parquet"):
        for number, row in enumerate(pq.read_table(path).to_pylist(), start=1):
            yield (name, "row", number), row
        return
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    if name.endswith(".json"):
        for number, row in enumerate(json.loads(text), start=1):
            yield (name, "row", number), row
    elif name.endswith(".csv"):
        reader = csv.reader(io.StringIO(text, newline=""))
        header = next(reader)
        for cells in reader:
            yield (name, "line", reader.line_num), dict(zip(header, cells, strict=True))
    else:
        yield from lines(name, text)


def text_of(row: Any) -> str | None:
    """The text of a row, None where there is nothing to learn."""
    if "text" in row:
        return row["text"] if row["text"].strip() else None
    if "instruction" in row:
        question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        return "\0".join(("user", question, "assistant", row["output"]))
    if "prompt" in row:
        system = ("system", row["system"]) if row.get("system") else ()
        return (
            "\0".join((*system, "user", row["prompt"], "assistant", row["completion"])) if row["completion"] else None
        )
    turns = [_turn(turn) for turn in row.get("messages") or row["conversations"]]
    while turns and (turns[-1]["role"] != "assistant" or not (turns[-1]["content"] or turns[-1].get("tool_calls"))):
        turns = turns[:-1]
    parts = [part for turn in turns for part in (turn["role"], turn["content"] or "")]
    more = [{key: turn[key] for key in turn if key not in ("role", "content")} for turn in turns]
    if row.get("tools") or any(more):
        parts.append(json.dumps([row.get("tools") or [], more], sort_keys=True))
    return "\0".join(parts) if turns else None


def _turn(turn: Any) -> Any:
    """A turn of either form with its role and content."""
    if "from" not in turn:
        return turn
    if turn["from"] == "function_call":
        call = json.loads(turn["value"])
        call["arguments"] = json.loads(call["arguments"])
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    roles = {"human": "user", "gpt": "assistant", "observation": "tool"}
    return {"role": roles[turn["from"]], "content": turn["value"]}


def by_the_rule(files: Sequence[Path], fraction: float, most: int | None) -> Places:
    """The held-out rows of files, found without the trainer."""
    found = [(place, text) for path in files for place, row in rows_of(path) if (text := text_of(row)) is not None]
    held = rule_of_the_split.held_out([text for _, text in found], 42, fraction, most)
    return [found[row][0] for row in held]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "at": 7}}}


def _one_file(folder: Path) -> None:
    rows = [json.dumps(row) for row in [*tiny.chats(30), {"messages": [{"role": "user", "content": "Hi"}]}]]
    (folder / "a.jsonl").write_text("\n".join([rows[-1], "", *rows[:10], " ", "", *rows[10:30]]), encoding="utf-8")


def _several_files(folder: Path) -> None:
    rows = tiny.chats(40)
    tiny.write_jsonl(folder / "b.jsonl", rows[:9])
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows[9:20]).encode()))
    pq.write_table(pa.Table.from_pylist(rows[20:33]), folder / "c.parquet", row_group_size=4)
    (folder / "d.json").write_text(json.dumps(rows[33:], indent=2), encoding="utf-8")


def _cells_of_several_lines(folder: Path) -> None:
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("instruction", "input", "output"))
        writer.writerows(
            (f"Say\n{i}" if i % 3 else f"Say {i}", "now\nor then" if i % 2 else "", "Ahö") for i in range(30)
        )


def _tools(folder: Path) -> None:
    asked = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    answers = [{"role": "tool", "content": "no", "name": "weather"}, {"role": "assistant", "content": "Dry"}]
    rows = [{"messages": [{"role": "system", "content": f"{i}"}, *asked, *answers[: i % 3]]} for i in range(24)]
    tiny.write_jsonl(folder / "a.jsonl", [{**row, "tools": [{"name": "weather"}]} for row in rows])


def _other_forms(folder: Path) -> None:
    rows = [{"prompt": f"Where is {i}?", "completion": "" if i == 3 else f"Ahoy {i % 9}"} for i in range(20)]
    tiny.write_jsonl(
        folder / "a.jsonl", [{**row, "system": "Be brief"} if i % 2 else row for i, row in enumerate(rows)]
    )


def _share_gpt(folder: Path) -> None:
    call = json.dumps({"name": "weather", "arguments": '{"city": "Bern"}'})
    turns = [("human", "Rain?"), ("function_call", call), ("observation", "no"), ("gpt", "Dry"), ("human", "Thanks")]
    rows = [
        [{"from": role, "value": f"{value} {i}" if role == "gpt" else value} for role, value in turns]
        for i in "abcdefgh"
    ]
    pq.write_table(pa.table({"conversations": [row[: 3 + i % 3] for i, row in enumerate(rows)]}), folder / "a.parquet")


def _copies(folder: Path) -> None:
    rows = [{"text": f"Ahoy {i % 12}"} for i in range(30)]
    tiny.write_jsonl(folder / "a.jsonl", [*rows, {"text": "  "}, *rows[:7]])
    tiny.write_jsonl(folder / "b.jsonl", rows)


@pytest.mark.parametrize(
    ("write", "fraction", "most", "count"),
    [
        pytest.param(_one_file, 0.2, None, 6, id="one file"),
        pytest.param(_several_files, 0.3, None, 12, id="several files"),
        pytest.param(_several_files, 0.3, 5, 5, id="several files, at most 5"),
        pytest.param(_cells_of_several_lines, 0.5, 2000, 15, id="cells of several lines"),
        pytest.param(_tools, 0.25, None, 6, id="tools"),
        pytest.param(_other_forms, 0.3, None, 6, id="prompts and completions"),
        pytest.param(_share_gpt, 0.4, None, 3, id="ShareGPT"),
        pytest.param(_copies, 0.4, None, 30, id="copies"),
        pytest.param(_copies, 0.4, 17, 15, id="copies, at most 17"),
        pytest.param(_copies, 0.4, 3, 0, id="copies, none of which fit"),
    ],
)
def test_the_held_out_rows_follow_from_the_rule_and_the_files(
    tmp_path: Path, write: Callable[[Path], None], fraction: float, most: int | None, count: int
) -> None:
    """Whatever the files are, by their lines or rows as messages count them."""
    folder = tmp_path / "data/set"
    folder.mkdir(parents=True)
    write(folder)
    found = document(tmp_path, validationFraction=str(fraction), maxValidationRows=most)
    assert listed(found) == by_the_rule(sorted(folder.iterdir()), fraction, most)
    assert (len(listed(found)), found["held_out"], found["seed"]) == (count, count, 42)
    assert (found["validation_fraction"], found.get("max_validation_rows")) == (fraction, most or 2000)


def test_copies_that_do_not_fit_leave_room_for_what_comes_after_them(tmp_path: Path) -> None:
    """The limit is a limit: contents are passed over, and all others are trained on."""
    folder = tmp_path / "data/set"
    folder.mkdir(parents=True)
    _copies(folder)
    wide, narrow = (document(tmp_path, validationFraction="0.4", maxValidationRows=most) for most in (2000, 6))
    assert set(listed(narrow)) < set(listed(wide))
    assert 0 < narrow["held_out"] <= 6
    config = make_config(dataset={"uri": "pvc://data/set", "validationFraction": "0.4", "maxValidationRows": 6})
    index = load_index(config, Volumes(claims=tmp_path), Hub())
    assert sum(int(part.training.sum()) for part in index.parts) == 67 - narrow["held_out"]
    assert index.capped


REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ '<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_samples_of_the_listed_rows_are_what_is_evaluated(tmp_path: Path, tiny_base: Base) -> None:
    """All of them, in the order of files and rows, where rows become several samples; counts fit."""
    rows = []
    for i in range(20):
        turns = [(role, f"{role} {i}.{turn}") for turn in range(1 + i % 3) for role in ("user", "assistant")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    tiny.write_jsonl(tmp_path / "data/set/a.jsonl", rows[:8])
    tiny.write_jsonl(tmp_path / "data/set/b.jsonl", rows[8:])
    config = make_config(dataset={"uri": "pvc://data/set", "validationFraction": "0.5", "maxValidationRows": 7})
    index = load_index(config, Volumes(claims=tmp_path), Hub())
    tokenizer = load_encoder(tiny_base, LossOn.COMPLETION, 512).tokenizer
    tokenizer.chat_template = REWRITES
    encoder = Encoder(tokenizer, LossOn.COMPLETION, 512, [tokenizer.eos_token_id])
    data = encode(index, encoder)
    numbers = {"a.jsonl": 0, "b.jsonl": 8}
    chosen = [rows[numbers[file] + number - 1] for file, _, number in listed(document_of(index))]
    answers = [turn["content"] for row in chosen for turn in row["messages"] if turn["role"] == "assistant"]
    learned = [tokenizer.decode(example.labels[example.labels != IGNORED]) for example in data.evaluation]
    assert [text.removeprefix("<think>\n\n</think>\n\n").removesuffix("<|im_end|>") for text in learned] == answers
    assert data.stats.validation_samples == len(answers) > len(chosen) == 7
    assert data.evaluation.row_count == count_rows(index, encoder, 0).validation_rows == 7
    assert data.stats.train_samples == sum(len(row["messages"]) // 2 for row in rows) - len(answers)


def test_a_set_for_validation_is_evaluated_whole_unless_a_number_is_given(tmp_path: Path) -> None:
    """Then the first of the draw are, copies in their order, and the others are not used at all."""
    tiny.write_jsonl(tmp_path / "data/set/a.jsonl", [{"text": f"Ahoy {i}"} for i in range(20)])
    held = [{"text": f"winds {i % 9}"} for i in range(15)]
    tiny.write_jsonl(tmp_path / "data/held.jsonl", [held[0], {"text": ""}, *held[1:]])
    dataset = {"validationUri": "pvc://data/held.jsonl", "validationFraction": None}
    whole = document(tmp_path, **dataset)
    assert (whole["evaluated"], whole["files"]) == ("all rows of pvc://data/held.jsonl", [])
    assert (whole["rows"], whole["held_out"], "max_validation_rows" in whole) == (15, 15, False)

    some = document(tmp_path, **dataset, maxValidationRows=4)
    texts = [row["text"] for row in held]
    order = sorted(range(15), key=lambda row: rule_of_the_split.drawn(texts[row], 42))
    assert listed(some) == [("held.jsonl", "line", row + (2 if row else 1)) for row in sorted(order[:4])]
    assert (some["evaluated"], some["rows"], some["held_out"]) == ("rows of pvc://data/held.jsonl", 15, 4)
    config = make_config(dataset={"uri": "pvc://data/set", **dataset, "maxValidationRows": 4})
    index = load_index(config, Volumes(claims=tmp_path), Hub())
    used = [(int(part.training.sum()), int(part.held_out.sum())) for part in index.parts]
    assert (used, index.skipped, index.capped) == ([(20, 0), (0, 4)], 1, True)


def test_where_no_row_is_held_out_the_file_says_what_is_evaluated(tmp_path: Path) -> None:
    """The first samples of the training."""
    tiny.write_jsonl(tmp_path / "data/set/a.jsonl", tiny.chats(4))
    found = document(tmp_path, validationFraction="0")
    assert (found["held_out"], found["files"]) == (0, [])
    assert found["evaluated"] == "the first 64 samples of the training rows, since no row is held out"


def test_a_file_whose_name_is_no_utf_8_is_listed_under_it(tmp_path: Path) -> None:
    """The training is over by then: it must not fail for a name that was read all the time."""
    name = os.fsdecode(b"d\xe9tails.jsonl")
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    (folder / name).write_text("\n".join(json.dumps(row) for row in tiny.chats(30)), encoding="utf-8")
    config = make_config(dataset={"uri": "pvc://data/set", "validationFraction": "0.2"})
    write_held_out_rows(tmp_path, load_index(config, Volumes(claims=tmp_path), Hub()))
    found = json.loads((tmp_path / HELD_OUT_ROWS).read_text(encoding="utf-8"))
    assert [file["file"] for file in found["files"]] == [name]
