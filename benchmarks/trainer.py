"""Our trainer against the plain script of Transformers, PEFT and its Trainer, on the same data, in one invocation.

    .venv/bin/python benchmarks/trainer.py [--seeds 3] [--threads 2] [--model DIR] [--workload short full]

The plain script is what a user would write: rows padded to the longest of their batch, the same attention (sdpa), type
(fp32 on a CPU), threads, model, rank and modules (16, all linear ones), prompts masked, effective batch 16, at its
fastest micro-batch of 1, 2, 4, 8 and 16, which is found first. Both sides then train in turns, in processes of their
own. Speed counts real tokens, padding not; the loss is that of our evaluation of both models on the same held-out rows.
CPU seconds tell more than seconds where others use the machine too; the plain script's fastest micro-batch is chosen by
seconds.

`short` are chats with a long tail: log-normal lengths with a mean of a sixth of `--max-length`; half of each row is
its prompt. `full` are rows that all have `--full-length` tokens. A GPU's share
of its peak is measured by `benchmarks/gpu_acceptance.py`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "hack"), str(REPOSITORY / "trainer_image")]

EFFECTIVE, RANK, ALPHA, LEARNING_RATE, HELD_OUT = 16, 16, 32, 5e-4, 32
MICRO_BATCHES = (1, 2, 4, 8, 16)
SPREAD = 0.9
IGNORED = -100
WORDS = (
    *[
        "the",
        "captain",
        "sails",
        "north",
        "with",
        "calm",
        "wind",
        "and",
        "a",
        "full",
        "hold",
        "while",
        "her",
        "crew",
        "mends",
        "old",
        "nets",
    ],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process does."""

    side: str
    workload: str
    model: str
    length: int
    steps: int
    seed: int
    threads: int
    micro: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Token ids, and labels with the prompt masked."""

    input_ids: np.ndarray[Any, np.dtype[np.int64]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


def rows(job: Job, count: int, seed: int) -> list[Row]:
    """Rows in a small language in which every word has four successors, so that there is something to learn."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import

    reader: Any = AutoTokenizer
    tokenizer = reader.from_pretrained(job.model)
    language = np.array([tokenizer(f" {word}")["input_ids"][0] for word in WORDS])
    successors = np.random.default_rng(0).integers(0, len(WORDS), size=(len(WORDS), 4))
    random, mean, found = np.random.default_rng(seed), job.length / 6, []
    for _ in range(count):
        length = job.length
        if job.workload == "short":
            drawn = random.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD)
            length = int(np.clip(drawn, 8, job.length))
        word, words = int(random.integers(len(WORDS))), []
        for choice in random.integers(0, 4, size=length):
            words.append(word)
            word = int(successors[word, choice])
        ids = language[words]
        found.append(Row(input_ids=ids, labels=np.where(np.arange(length) < length // 2, IGNORED, ids)))
    return found


def examples(found: list[Row]) -> Any:
    """The rows as the trainer keeps them."""
    from lora_trainer.data.store import Examples  # noqa: PLC0415 - as above
    from lora_trainer.data.tokens import Example  # noqa: PLC0415

    return Examples.of(Example(input_ids=row.input_ids, labels=row.labels, truncated=False) for row in found)


def device_of(threads: int) -> Any:
    """The CPU in fp32."""
    import torch  # noqa: PLC0415 - as above

    from lora_trainer.model.device import Device  # noqa: PLC0415

    torch.set_num_threads(threads)
    return Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)


def held_out_loss(job: Job, model: Any) -> float:
    """Of either side's model, by the same code."""
    from lora_trainer.training.batches import Budget  # noqa: PLC0415 - as above
    from lora_trainer.training.evaluate import evaluate  # noqa: PLC0415

    held_out = examples(rows(job, HELD_OUT if job.workload == "short" else 4, 1_000_000))
    budget = Budget.of(None, job.length, tokens=1024)
    head = model.get_output_embeddings()
    return evaluate(model, head, held_out, device_of(job.threads), lambda count: None, budget=budget).loss


def ours(job: Job) -> dict[str, float]:
    """Train with our trainer's own loop."""
    device = device_of(job.threads)

    from lora_trainer.contract.config import LoraConfig, Quantization, TrainingConfig  # noqa: PLC0415
    from lora_trainer.model.attention import choose_attention  # noqa: PLC0415 - as above
    from lora_trainer.model.loading import adapt, load_model  # noqa: PLC0415
    from lora_trainer.model.lora_kernel import fuse  # noqa: PLC0415
    from lora_trainer.places.base import open_folder  # noqa: PLC0415
    from lora_trainer.training.batches import Budget, token_budget  # noqa: PLC0415
    from lora_trainer.training.loop import Training  # noqa: PLC0415

    base = open_folder(Path(job.model))
    config = LoraConfig(rank=RANK, alpha=ALPHA)
    adapted = adapt(load_model(base, Quantization.NONE, device), config, base, device, job.seed)
    packs = choose_attention(adapted.model, device).packs
    fuse(adapted.model)
    data = rows(job, job.steps * EFFECTIVE, job.seed)
    training = Training(
        adapted=adapted,
        examples=examples(data),
        config=TrainingConfig(
            learning_rate=LEARNING_RATE, warmup_ratio=0.0, effective_batch_size=EFFECTIVE, seed=job.seed
        ),
        budget=Budget.of(None, job.length, packed=packs, tokens=token_budget(device.torch_device)),
        device=device,
    )
    started, cpu = time.perf_counter(), time.process_time()
    training.run()
    spent = (time.perf_counter() - started, time.process_time() - cpu)
    return result(job, data, spent, adapted.model)


def plain(job: Job) -> dict[str, float]:
    """Train with the script that a user would write."""
    model = plain_model(job)
    data = rows(job, job.steps * EFFECTIVE, job.seed)
    return result(job, data, plain_training(job, model, data, job.micro), model)


def sweep(job: Job) -> dict[str, float]:
    """Seconds of the plain script on all the rows for each micro-batch, up to the first that is much slower than the
    best before it. A few rows would not do: what padding costs depends on who meets the long ones."""
    model, data = plain_model(job), rows(job, job.steps * EFFECTIVE, job.seed)
    plain_training(job, model, data[:1], 1)
    found: dict[str, float] = {}
    for micro in MICRO_BATCHES:
        found[str(micro)] = plain_training(job, model, data, micro)[0]
        if found[str(micro)] > 1.2 * min(found.values()):
            break
    return found


def plain_model(job: Job) -> Any:
    """The model with PEFT's adapter on all linear layers."""
    device_of(job.threads)

    import torch  # noqa: PLC0415 - as above
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    factory: Any = AutoModelForCausalLM
    torch.manual_seed(job.seed)
    model = factory.from_pretrained(job.model, dtype=torch.float32, attn_implementation="sdpa")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def plain_training(job: Job, model: Any, data: list[Row], micro: int) -> tuple[float, float]:
    """Seconds and CPU seconds of `Trainer.train` from its begin to the end of its last step."""
    import transformers  # noqa: PLC0415 - as above

    library: Any = transformers
    stamps: list[tuple[float, float]] = []

    class Clock(library.TrainerCallback):  # type: ignore[misc] # the library is untyped
        def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
            stamps.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            stamps.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        arguments = library.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=EFFECTIVE // micro,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            num_train_epochs=1,
            seed=job.seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        tokenizer = library.AutoTokenizer.from_pretrained(job.model)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        collator = library.DataCollatorForSeq2Seq(tokenizer, padding=True)
        dataset = [{"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in data]
        trainer = library.Trainer(
            model=model, args=arguments, train_dataset=dataset, data_collator=collator, callbacks=[Clock()]
        )
        trainer.train()
    return stamps[-1][0] - stamps[0][0], stamps[-1][1] - stamps[0][1]


def result(job: Job, data: list[Row], spent: tuple[float, float], model: Any) -> dict[str, float]:
    """The numbers of one training."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = sum(len(row.input_ids) for row in data)
    loss = held_out_loss(job, model)
    return {"speed": tokens / spent[0], "seconds": spent[0], "cpu": spent[1], "peak": peak, "loss": loss}


def in_process(job: Job) -> dict[str, float]:
    """Run a job in a process of its own; what it measured."""
    arguments = json.dumps({name: getattr(job, name) for name in Job.__dataclass_fields__})
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--job", arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def compare(workload: str, options: argparse.Namespace) -> None:
    """Find the plain script's fastest micro-batch, then train in turns; print medians and ratios."""
    length = options.max_length if workload == "short" else options.full_length
    steps = options.steps if workload == "short" else 1
    seeds = range(1, options.seeds + 1) if workload == "short" else range(1, 2)

    def job(side: str, seed: int, micro: int = 1) -> Job:
        return Job(
            side=side,
            workload=workload,
            model=str(options.model),
            length=length,
            steps=steps,
            seed=seed,
            threads=options.threads,
            micro=micro,
        )

    times = in_process(job("sweep", 1))
    micro = int(min(times, key=lambda name: times[name]))
    print(
        f"\n## {workload}: rows of up to {length} tokens, {steps * EFFECTIVE} examples in {steps} steps of {EFFECTIVE}"
    )
    print("plain script, seconds by micro-batch: " + ", ".join(f"{m}: {s:.1f}" for m, s in times.items()))
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for seed in seeds:
        for side in ("plain", "ours") if seed % 2 else ("ours", "plain"):
            found[side].append(in_process(job(side, seed, micro)))
    print("| | tokens/s | seconds | CPU seconds | peak MiB | held-out loss | speed by seed |")
    print("|---|---|---|---|---|---|---|")
    middle = {}
    for side, runs in found.items():
        middle[side] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        numbers = middle[side]
        label = f"plain, micro-batch {micro}" if side == "plain" else "ours"
        speeds = " ".join(f"{run['speed']:.0f}" for run in runs)
        print(
            f"| {label} | {numbers['speed']:.0f} | {numbers['seconds']:.1f} | {numbers['cpu']:.1f} | "
            f"{numbers['peak']:.0f} | {numbers['loss']:.3f} | {speeds} |"
        )
    pairs = list(zip(found["ours"], found["plain"], strict=True))
    ratio = statistics.median(mine["speed"] / theirs["speed"] for mine, theirs in pairs)
    of_cpu = statistics.median(theirs["cpu"] / mine["cpu"] for mine, theirs in pairs)
    losses = [[run["loss"] for run in runs] for runs in found.values()]
    print(f"ratio (median over seeds): {ratio:.2f} of tokens/s, {of_cpu:.2f} of tokens per CPU second")
    print(
        "held-out loss by seed: plain {}; ours {}".format(
            *(" ".join(f"{loss:.3f}" for loss in side) for side in losses)
        )
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a model folder; absent: SmolLM2-135M")
    parser.add_argument("--workload", nargs="+", choices=("short", "full"), default=["short", "full"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--full-length", type=int, default=256)
    options = parser.parse_args()
    if options.job:
        job = Job(**json.loads(options.job))
        print(json.dumps({"ours": ours, "plain": plain, "sweep": sweep}[job.side](job)))
    else:
        from hub.model import cache_root, ensure_model  # noqa: PLC0415 - found by the path set above

        options.model = options.model or ensure_model(cache_root())
        print(f"{options.model.name}, fp32, {options.threads} threads, rank {RANK}, all linear modules")
        for workload in options.workload:
            compare(workload, options)


if __name__ == "__main__":
    main()
