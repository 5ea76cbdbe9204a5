"""What the manifests of the oracle train on: tiny random models, data of every format, and configurations to plan."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.trainer import tiny
from tests.trainer.families import make_family
from tests.unit.fit_models import FURTHER, MODELS
from transformers.utils import logging

FAMILIES = ("gpt2", "mixtral", "gemma3_text", "qwen3", "mamba", "qwen2_5_vl", "bert")
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = "Ahoy, captain! Fair winds."

Rows = list[dict[str, Any]]


def lay_out(folder: Path) -> Path:
    """Write `claims`, `configmaps` and `catalogue`; they come out the same each time."""
    quiet: Any = logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    _models(folder / "claims/models")
    _data(folder / "claims/data")
    _broken(folder / "claims/data")
    tiny.write_jsonl(folder / "configmaps/chats/train.jsonl", tiny.chats(20))
    (folder / "configmaps/templates").mkdir()
    for name, text in (("mine.jinja", TEMPLATE), ("tools.jinja", TOOLS), ("broken.jinja", "{% for x in %}")):
        (folder / "configmaps/templates" / name).write_text(text, encoding="utf-8")
    (folder / "catalogue").mkdir()
    for name, config in {**{name: config for name, (config, _) in MODELS.items()}, **FURTHER}.items():
        (folder / "catalogue" / f"{name.replace(' ', '-')}.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _models(models: Path) -> None:
    tiny.make_model(models / "tiny")
    tiny.make_model(models / "untemplated", chat_template=None)
    tiny.in_16_bits(models / "tiny", models / "tiny16")
    for name in FAMILIES:
        make_family(models / name, name)


def _data(data: Path) -> None:
    tiny.write_jsonl(data / "chats.jsonl", tiny.chats(40))
    tiny.write_jsonl(data / "held.jsonl", tiny.chats(50)[40:])
    tiny.write_jsonl(data / "parts/a.jsonl", tiny.chats(12))
    tiny.write_jsonl(data / "parts/b.ndjson", tiny.chats(24)[12:])
    (data / "one.json").write_text(json.dumps(tiny.chats(12)), encoding="utf-8")
    tiny.write_jsonl(data / "turns.jsonl", map(_turns, range(24)))
    tiny.write_jsonl(data / "tools.jsonl", map(_tools, range(16)))
    tiny.write_jsonl(data / "long.jsonl", map(_long, range(24)))
    tiny.write_jsonl(data / "messy.jsonl", _messy())
    tiny.write_jsonl(data / "book.jsonl", [{"text": f"{ANSWER} " * 60_000}])
    asked = [f"{tiny.QUESTIONS[i % 5]} number {i}?" for i in range(32)]
    pairs = [{"prompt": question, "completion": f" {ANSWER}"} for question in asked]
    tiny.write_jsonl(data / "pairs.jsonl", pairs)
    (data / "pairs.csv").write_text(_csv(pairs), encoding="utf-8")
    (data / "tickets.csv").write_text(
        _csv({"ticket": row["prompt"], "reply": row["completion"], "priority": "low"} for row in pairs),
        encoding="utf-8",
    )
    alpaca = [
        {"instruction": question, "input": f"order {i}" if i % 3 else "", "output": ANSWER}
        for i, question in enumerate(asked)
    ]
    (data / "alpaca.json").write_text(json.dumps(alpaca, indent=1), encoding="utf-8")
    tiny.write_jsonl(data / "text.jsonl", [{"text": f"{question} {ANSWER}"} for question in asked])
    pq.write_table(pa.table({"text": [f"{question} {ANSWER}" for question in asked]}), data / "text.parquet")
    shared = [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": ANSWER}]}
        for question in asked
    ]
    lines = "".join(json.dumps(row) + "\n" for row in shared)
    (data / "shared.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    answers = _csv({"question": question, "answer": ANSWER} for question in asked)
    (data / "answers.csv.zst").write_bytes(pa.compress(answers.encode(), codec="zstd", asbytes=True))


def _broken(data: Path) -> None:
    good = [json.dumps(row) for row in tiny.chats(8)]
    texts = {
        "no-json.jsonl": [*good[:2], '{"messages": [', *good[2:]],
        "no-object.jsonl": [*good[:3], "[1, 2]", *good[3:]],
        "kind.jsonl": [*good[:4], '{"messages": "hello"}', *good[4:]],
        "role.jsonl": [*good[:1], '{"messages": [{"role": "wizard", "content": "Hi"}]}', *good[1:]],
        "content.jsonl": [*good[:1], '{"messages": [{"role": "user", "content": 3}]}', *good[1:]],
        "unanswered.jsonl": ['{"messages": [{"role": "user", "content": "Hi"}]}'] * 4,
        "empty.jsonl": [],
        "columns.csv": ["colour,size", "red,1", "blue,2"],
        "ragged.csv": ["prompt,completion", "a,b", "c,d,e"],
    }
    for name, written in texts.items():
        (data / name).write_text("".join(f"{line}\n" for line in written), encoding="utf-8")
    (data / "latin.jsonl").write_bytes('{"text": "caf\u00e9"}\n'.encode("latin-1"))
    (data / "cut.jsonl.gz").write_bytes(gzip.compress("\n".join(good).encode(), mtime=0)[:-20])
    (data / "no.parquet").write_bytes(b"PAR1 and nothing else")
    (data / "notes.txt").write_text("no data\n", encoding="utf-8")


def _turns(number: int) -> dict[str, Any]:
    system = [{"role": "system", "content": "Speak as a pirate."}] if number % 2 else []
    talk = [
        {"role": role, "content": content}
        for turn in range(2 + number % 2)
        for role, content in (
            ("user", f"{tiny.QUESTIONS[turn]} number {number}?"),
            ("assistant", f"{ANSWER} Turn {turn}."),
        )
    ]
    return {"messages": [*system, *talk]}


def _tools(number: int) -> dict[str, Any]:
    function = {"name": "find_order", "arguments": {"number": number}}
    declared = {"name": "find_order", "description": "Find it", "parameters": {"type": "object", "properties": {}}}
    return {
        "tools": [{"type": "function", "function": declared}],
        "messages": [
            {"role": "user", "content": f"Where is order {number}?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": "at sea"},
            {"role": "assistant", "content": f"Order {number} is at sea."},
        ],
    }


def _long(number: int) -> dict[str, Any]:
    return {"prompt": f"Tell me about {number}.", "completion": " " + f"{ANSWER} " * (1 + number % 6)}


def _messy() -> Rows:
    """Duplicates, rows without an answer to learn, and one without content."""
    blank = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": ""}]}
    several = {
        "messages": [
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "Hello again?"},
            {"role": "assistant", "content": ANSWER},
        ]
    }
    return [*tiny.chats(20), *tiny.chats(5), blank, several, {"messages": []}]


def _csv(rows: Iterable[Mapping[str, str]]) -> str:
    written = [dict(row) for row in rows]
    lines = [",".join(written[0]), *(",".join(f'"{value}"' for value in row.values()) for row in written)]
    return "".join(f"{line}\n" for line in lines)
