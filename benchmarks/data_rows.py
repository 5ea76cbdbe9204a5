"""What reading a large data set costs: rows per second, and the resident set of the process that reads it.

    .venv/bin/python benchmarks/data_rows.py [--rows 1000000] [--text | --preflight] [--model FOLDER]

Writes a Parquet file of generated chats (with --text of lines of some fifteen tokens), then reads, checks, splits and
encodes it in processes of its own, as a run does before its training, with the tokenizer of the model in FOLDER
(SmolLM2-135M-Instruct, which `make test` fetches). Prints the resident set over time, of which what is mapped from
files can be taken back by the kernel, and the totals. With --preflight the file is JSONL of chats of some 2 KB, read as
by a preflight in a process without PyTorch; --counted bounds the rows that are tokenized.
"""

import argparse
import contextlib
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "hack"), str(REPOSITORY / "trainer_image")]

from hub.model import cache_root, ensure_model
from lora_trainer.data.dataset import encode
from lora_trainer.data.row_facts import MOST_ROWS, count_rows
from lora_trainer.data.survey import load_index
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import RunOptions, train_config
from lora_trainer.storage.base import open_folder
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes

_GROUP_ROWS = 100_000
_SAMPLE_S = 1.0
TEXT = (
    "the order of your parcel card delivery refund account please we have sent it to address and will be with you in "
    "three days thank for question can I change password open close when where how shop app number invoice paid"
)
WORDS = TEXT.split()


def main() -> None:
    """Write, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--text", action="store_true", help="short lines of text instead of chats")
    parser.add_argument("--preflight", action="store_true", help="JSONL, checked and counted as before a training")
    parser.add_argument("--counted", type=int, default=MOST_ROWS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = options.model or ensure_model(cache_root())
    if options.read is not None:
        if options.preflight:
            count(options.read, model, options.counted)
        else:
            read(options.read, model)
        print(f"largest resident set {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB", flush=True)
        return
    print(f"machine: {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="data-rows-") as folder:
        started = time.monotonic()
        form = "jsonl" if options.preflight else "parquet"
        path = Path(folder) / f"claims/data/train.{form}"
        path.parent.mkdir(parents=True)
        if options.preflight:
            write_lines(path, options.rows)
        else:
            write(path, options.rows, text_table if options.text else chat_table)
        size = path.stat().st_size / 2**20
        print(f"{options.rows:,} rows in {size:,.0f} MiB of {form}, written in {time.monotonic() - started:.0f} s\n")
        more = ["--preflight", "--counted", str(options.counted)] if options.preflight else []
        watch(Path(folder), model, options.rows, more)


def write(path: Path, rows: int, table_of: Callable[[np.random.Generator, range], pa.Table]) -> None:
    """A Parquet file of rows of which no two are alike."""
    random = np.random.Generator(np.random.PCG64(1))
    with pq.ParquetWriter(path, table_of(random, range(1)).schema, compression="zstd") as writer:
        for start in range(0, rows, _GROUP_ROWS):
            numbers = range(start, min(start + _GROUP_ROWS, rows))
            writer.write_table(table_of(random, numbers), row_group_size=10_000)


def write_lines(path: Path, rows: int) -> None:
    """A file of JSONL with chats of some 2 KB, a thousand different ones with the row's number before each turn."""
    random = np.random.Generator(np.random.PCG64(1))
    chats = [(sentence(random, 40), sentence(random, 330)) for _ in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            question, answer = chats[number % len(chats)]
            file.write(
                f'{{"messages": [{{"role": "user", "content": "{number} {question}?"}}, '
                f'{{"role": "assistant", "content": "{number} {answer}."}}]}}\n'
            )


def chat_table(random: np.random.Generator, numbers: range) -> pa.Table:
    """Chats of about a hundred tokens."""
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    chats = [
        [
            {"role": "user", "content": f"{sentence(random, 20)} {number}?"},
            {"role": "assistant", "content": f"{sentence(random, 45)} {number}."},
        ]
        for number in numbers
    ]
    return pa.table({"messages": pa.array(chats, pa.list_(turn)), "id": pa.array(numbers, pa.int64())})


def text_table(random: np.random.Generator, numbers: range) -> pa.Table:
    """Lines of some fifteen tokens."""
    return pa.table({"text": pa.array([f"{sentence(random, 9)} {number}." for number in numbers], pa.string())})


def sentence(random: np.random.Generator, words: int) -> str:
    """Words in any order; how many varies by a half."""
    return " ".join(WORDS[i] for i in random.integers(0, len(WORDS), random.integers(words // 2, words * 3 // 2)))


def watch(folder: Path, model: Path, rows: int, more: Sequence[str] = ()) -> None:
    """Run the reading process and print its resident set while it goes on."""
    started = time.monotonic()
    command = [
        sys.executable,
        str(Path(__file__)),
        "--read",
        str(folder),
        "--model",
        str(model),
        "--rows",
        str(rows),
        *more,
    ]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "TMPDIR": str(folder)}
    print("| seconds | resident set, MiB | of it own memory | of it mapped files |\n|---|---|---|---|")
    with subprocess.Popen(command, env=environment) as process:
        peak, due_s = 0.0, 0.0
        for resident, own, mapped in resident_sets(process):
            peak = max(peak, resident)
            passed = time.monotonic() - started
            if passed >= due_s:
                print(f"| {passed:.0f} | {resident:.0f} | {own:.0f} | {mapped:.0f} |", flush=True)
                due_s = max(passed + 5, passed * 1.25)
        seconds = time.monotonic() - started
    if process.returncode:
        sys.exit(process.returncode)
    print(f"\n{rows:,} rows in {seconds:.0f} s: {rows / seconds:,.0f} rows/s; peak resident set {peak:.0f} MiB")


def resident_sets(process: "subprocess.Popen[bytes]") -> Iterator[tuple[float, float, float]]:
    """Resident set of the process and those that it started, its anonymous and its file-backed part, in MiB, once a
    second until the process ends. What several of them share counts once (the kernel's proportional set size)."""
    while process.poll() is None:
        sums = [0.0, 0.0, 0.0]
        for number in [process.pid, *children(process.pid)]:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="ascii")
                fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
                for i, name in enumerate(("Pss", "Pss_Anon", "Pss_File")):
                    sums[i] += int(fields[name].split()[0]) / 1024
        yield sums[0], sums[1], sums[2]
        time.sleep(_SAMPLE_S)


def children(number: int) -> list[int]:
    """The processes that a process started."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    return []


def configuration(form: str) -> TrainConfig:
    """Of a run on the claim, with the defaults of a manifest."""
    spec: dict[str, Any] = {
        "model": {"uri": "pvc://models/m"},
        "dataset": {"uri": f"pvc://data/train.{form}"},
        "output": {"uri": "pvc://adapters/out"},
    }
    document = {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": "rows"},
        "spec": spec,
    }
    return train_config(document, RunOptions(uid="u", allow_cpu=True, strict=True))


def count(folder: Path, model: Path, most_rows: int) -> None:
    """What a preflight does with the data of a run."""
    # None is what Python takes for a module that is not there: the preflight's image has none of them.
    absent: dict[str, Any] = dict.fromkeys(("torch", "peft", "bitsandbytes", "accelerate"))
    sys.modules.update(**absent)
    config = configuration("jsonl")
    training = config.training
    encoder = load_encoder(open_folder(model), training.loss_on, training.max_sequence_length)
    started = time.monotonic()
    samples = load_index(config, Volumes(claims=folder / "claims"), Hub())
    checked = time.monotonic()
    print(f"checked and split in {checked - started:.0f} s", flush=True)
    facts = count_rows(samples, encoder, training.seed, most_rows=most_rows)
    seconds = time.monotonic() - checked
    counted = facts.sampled or facts.train_samples + facts.validation_samples
    print(f"{counted:,} rows counted in {seconds:.0f} s, {counted / seconds:,.0f} a second: {facts}", flush=True)


def read(folder: Path, model: Path) -> None:
    """What a run does with its data before its training."""
    config = configuration("parquet")
    encoder = load_encoder(open_folder(model), config.training.loss_on, config.training.max_sequence_length)
    started = time.monotonic()
    samples = load_index(config, Volumes(claims=folder / "claims"), Hub())
    checked = time.monotonic()
    print(f"checked and split in {checked - started:.0f} s", flush=True)
    data = encode(samples, encoder, folder / "tokens")
    stats = data.stats
    print(f"encoded in {time.monotonic() - checked:.0f} s: {stats}", flush=True)
    order = np.random.Generator(np.random.PCG64(1)).permutation(len(data.training))[:20_000]
    started = time.monotonic()
    tokens = sum(data.training[int(row)].length for row in order)
    print(f"{len(order)} rows at random read in {time.monotonic() - started:.1f} s ({tokens} tokens)", flush=True)


if __name__ == "__main__":
    main()
