"""Our trainer beside TRL's `SFTTrainer` at its fastest, on the same full rows: `benchmarks/trainer.py`, a seed.

TRL is for tests and benchmarks alone: the trainer's image has none.
"""

import gc
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import trainer
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import Check, Figure, Outcome, State, judged, not_run
from benchmarks.acceptance.models import random_base
from benchmarks.acceptance.shapes import LLAMA_3_8B, ModelArchitecture
from benchmarks.acceptance.speed import modes
from benchmarks.comparison.job import WORDS

from lora_trainer.errors import out_of_memory
from lora_trainer.plan.families import architecture_of
from lora_trainer.spec.config import Quantization
from lora_trainer.spec.gpus import by_product
from lora_trainer.train.resolve_auto import gpu_of

WANTED = 1.0
"""Times the tokens a second of TRL's, on an H100. As with the part `speed`, less is no fault of a GPU."""
TOKENS = 4096
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_FREE = 1.1
"""Bytes that are free for each that the base's files have."""
_SHORT = re.compile(r"out of memory|OutOfMemory|memory does not suffice|ALLOC_FAILED")


def checks(bench: Bench) -> Iterator[Check]:
    """The only one."""
    if bench.tiny:
        tiny = {**bench.sizes, "model_type": "llama"}
        yield Check(name="tiny, 64", run=partial(_compared, bench, tiny, 64))
        return
    yield Check(name=f"Llama-3-8B, {TOKENS}", run=partial(_compared, bench, LLAMA_3_8B, TOKENS))


def _compared(bench: Bench, shape: ModelArchitecture, tokens: int) -> Outcome:
    if importlib.util.find_spec("trl") is None:
        return not_run("the package trl is absent")
    if not (bench.on_gpu or bench.tiny):
        return not_run("the speed of a CPU is measured by benchmarks/trainer.py")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "base"
        needed = _FREE * bench.device.dtype.itemsize * architecture_of(shape).parameters
        if shutil.disk_usage(name).free < needed:
            return not_run(
                f"its base takes {needed / 1e9:.0f} GB of disk, more than {tempfile.gettempdir()} has free: set TMPDIR"
            )
        try:
            options = {option: value for option, value in shape.items() if option != "model_type"}
            random_base(folder, str(shape["model_type"]), options, bench.device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return not_run("does not fit this GPU")
        write_tokenizer(folder)
        # For the processes of the benchmark.
        gc.collect()
        bench.device.give_back()
        return _told(bench, *_benchmark(bench, shape, tokens, folder))


def write_tokenizer(folder: Path) -> None:
    """One that knows the words of the benchmark's rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - takes seconds to import
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - as above

    vocabulary = {word: number for number, word in enumerate((*_SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - of a vocabulary
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    library: Any = PreTrainedTokenizerFast
    library(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def _benchmark(bench: Bench, shape: ModelArchitecture, tokens: int, base: Path) -> tuple[dict[str, Any] | None, str]:
    """What the benchmark has found; None where it failed, with the last that it said."""
    kept = base.with_name("found.json")
    recompute = modes(gpu_of(bench.device), shape, Quantization.NONE, tokens)[0].recomputes
    command = [
        *(sys.executable, trainer.__file__),
        *("--model", str(base)),
        *("--workload", "full", "--full-length", str(tokens)),
        *("--others", "SFTTrainer", "--seeds", "1"),
        *("--device", "cuda" if bench.on_gpu else "cpu"),
        *("--minutes", f"{(bench.ends - time.monotonic()) / 60:.2f}"),
        *("--json", str(kept)),
        *(["--recompute"] if recompute else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, (done.stderr.strip() or "it printed nothing").splitlines()[-1]
    return json.loads(kept.read_text(encoding="utf-8"))["full"], ""


def _told(bench: Bench, found: dict[str, Any] | None, last: str) -> Outcome:
    """Passed where ours is as fast as wanted; a slower one is measured."""
    if found is None:
        if last == trainer.NO_TIME:
            return not_run(last)
        return not_run("does not fit this GPU") if _SHORT.search(last) else judged(False, last[:300])
    ours, theirs = found["ours"], found["SFTTrainer"]
    ratios = theirs["ours_to_it"]
    figures: dict[str, Figure] = {
        "ratio": ratios["speed"],
        "peak_ratio": ratios["peak"],
        "setting": theirs["setting"],
        **{f"ours: {name}": value for name, value in ours.items()},
        **{f"SFTTrainer: {name}": theirs[name] for name in ours},
    }
    said = (
        f"tokens/s to {theirs['speed']:,.0f} of SFTTrainer at its fastest ({theirs['setting']}), {ratios['peak']:.2f} "
        f"of its memory, loss {ours['loss']:.3f} to {theirs['loss']:.3f}"
    )
    start = f"{ratios['speed']:.2f} times: {ours['speed']:,.0f} "
    gpu = by_product(bench.device.name)
    if gpu is None or gpu.name != "H100":
        return Outcome(state=State.MEASURED, said=start + said, figures=figures)
    figures = {**figures, "wanted_ratio": WANTED}
    if ratios["speed"] < WANTED:
        return Outcome(state=State.MEASURED, said=f"{start}{said}, below the wanted {WANTED:.2f}", figures=figures)
    return Outcome(state=State.PASSED, said=f"{start}{said}, {WANTED:.2f} wanted", figures=figures)
