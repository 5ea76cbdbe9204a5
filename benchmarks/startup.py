"""From the start of the trainer's process to its first optimizer step, part by part.

    .venv/bin/python benchmarks/startup.py [--model DIR] [--rounds 3]

Runs `lora-trainer run` on a data set of a few short chats, once to warm the page cache up and then `--rounds` times,
and takes the time of each line of its log. The imports of libraries are timed apart, in processes of their own. Prints
medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "hack"))

from hub.model import cache_root, ensure_model

PARTS = {
    "device ": "processes started, data read, PyTorch and PEFT imported",
    "training samples (": "configuration, digests of the model, tokenizer, tokens",
    "trainable parameters": "weights read, adapter put on",
    "kernels: ": "attention and kernels chosen",
    "loss before training": "evaluation before the training",
    "step 1/": "first step",
}
IMPORTS = ("torch", "torch, transformers, peft", "lora_trainer.train.run")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY / "trainer_image"), "HF_HUB_OFFLINE": "1"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; absent: SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = options.model or ensure_model(cache_root())
    start(model)
    rounds = [start(model) for _ in range(options.rounds)]
    print("| part | seconds |\n|---|---|")
    for part, title in PARTS.items():
        print(f"| {title} | {statistics.median(measured[part] for measured in rounds):.1f} |")
    print(f"| start to first step | {statistics.median(sum(measured.values()) for measured in rounds):.1f} |")
    for modules in IMPORTS:
        print(f"| of it `import {modules}` | {statistics.median(imported(modules) for _ in rounds):.1f} |")


def start(model: Path) -> dict[str, float]:
    """Seconds of each part of one start; the run is stopped after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        claims = Path(folder) / "claims"
        shutil.copytree(model, claims / "models/base")
        (claims / "data").mkdir()
        chats = [json.dumps(chat(number)) + "\n" for number in range(24)]
        (claims / "data/chats.jsonl").write_text("".join(chats), encoding="utf-8")
        (claims / "adapters").mkdir()
        manifest = Path(folder) / "run.yaml"
        manifest.write_text(yaml.safe_dump(resource()), encoding="utf-8")
        command = [sys.executable, "-m", "lora_trainer.cli", "run", "-f", str(manifest), "--claims", str(claims)]
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            return parts(process, began)
        finally:
            process.terminate()
            process.communicate(timeout=120)


def parts(process: "subprocess.Popen[str]", began: float) -> dict[str, float]:
    """The time until each part's line, from the one before."""
    found: dict[str, float] = {}
    lines: list[str] = []
    for line in process.stderr or ():
        lines.append(line)
        part = next((part for part in PARTS if part in line and part not in found), None)
        if part is not None:
            now = time.monotonic()
            found[part], began = now - began, now
        if "step 1/" in found:
            missing = [part for part in PARTS if part not in found]
            if missing:
                raise SystemExit(f"no line of the log holds {missing[0]!r}: PARTS is of another release")
            return found
    raise SystemExit("the run ended before its first step:\n" + "".join(lines[-20:]))


def chat(number: int) -> dict[str, Any]:
    """A short chat."""
    question, answer = f"Where is parcel {number}?", f"Parcel {number} left the port this morning."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def resource() -> dict[str, Any]:
    """A run of two steps."""
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": "startup"},
        "spec": {
            "model": {"uri": "pvc://models/base"},
            "dataset": {"uri": "pvc://data/chats.jsonl", "validationFraction": "0.1"},
            "training": {"maxSteps": 2, "effectiveBatchSize": 4},
            "output": {"uri": "pvc://adapters/out"},
        },
    }


def imported(modules: str) -> float:
    """Seconds of an import in a process of its own, the interpreter's start included."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {modules}"], env=ENVIRONMENT, check=True, capture_output=True)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
