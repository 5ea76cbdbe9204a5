"""Our trainer against TRL's `SFTTrainer` and the plain script of Transformers, PEFT and its Trainer, in one invocation.

    .venv/bin/python benchmarks/trainer.py [--seeds 3] [--threads 2] [--model DIR] [--workload short full]
                                           [--others SFTTrainer] [--device cuda] [--json FILE]

All have the same data, model, type (fp32 on a CPU, 16 bits on a GPU), threads, rank and modules (16, all linear ones),
prompts masked, effective batch 16. The plain script is what a user would write: rows padded to the longest of their
batch, sdpa, at its fastest micro-batch of 1, 2, 4, 8 and 16. `SFTTrainer` is at its fastest of padded, padding-free and
packed, of the same micro-batches, on a GPU with and without Liger and FlashAttention where these are installed.
Settings whose rows see each other, which is tried and not believed, or whose steps do not learn as many tokens as ours
within 5 %, are listed and do not count; where none counts, as memory suffices for none, all are tried with activations
recomputed. The fastest are found first, then all train in turns, in processes of their own, on a GPU after a first row
that is not counted. Speed counts real tokens, padding not; the loss is that of our evaluation of each model on the same
held-out rows. On a CPU, CPU seconds tell more than seconds where others use the machine too, and choose the fastest
settings.

`short` are chats with a long tail: log-normal lengths with a mean of a sixth of `--max-length`; half of each row is
its prompt. `full` are rows that all have `--full-length` tokens. A GPU's share of its peak is measured by
`benchmarks/gpu_acceptance.py`.
"""

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "hack"), str(REPOSITORY / "trainer_image")]

from benchmarks.comparison.job import RANK, Job, learned_in, read_setting, training_rows
from benchmarks.comparison.settings import EFFECTIVE, Tried, fastest

PARTS = {
    "ours": "ours.ours",
    "plain": "plain.plain",
    "plain-sweep": "plain.sweep",
    "SFTTrainer": "sft.sft",
    "SFTTrainer-sweep": "sft.sweep",
}
"""Where each is in `benchmarks.comparison`."""
OTHERS = ("plain", "SFTTrainer")
NO_TIME = "no time is left: raise --minutes"
_RECOMPUTED = ", recomputed"
Numbers = dict[str, float]


def in_process(job: Job, ends: float) -> Any:
    """Run a job in a process of its own, on one GPU; what it measured. It is killed at `ends`, by `time.monotonic`.
    Raises `SystemExit` with the end of what it said where it fails, with `NO_TIME` where it is late."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        # Transformers' Trainer takes all GPUs that it sees, and so many times the rows in a step.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0],
    }
    command = [sys.executable, __file__, "--job", job.to_json()]
    left = None if math.isinf(ends) else max(0.0, ends - time.monotonic())
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired:
        raise SystemExit(NO_TIME) from None
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(job: Job) -> str:
    """Do a job in this process; what it measured, as JSON."""
    module, name = PARTS[job.part].split(".")
    found = getattr(importlib.import_module(f"benchmarks.comparison.{module}"), name)(job)
    return json.dumps([asdict(one) for one in found] if isinstance(found, list) else found)


def at_its_fastest(job: Job, learned: float, ends: float) -> Job:
    """The job of a trainer with its fastest setting; with activations recomputed where none counts without. Raises
    `SystemExit` where none counts at all."""
    jobs = [job] if job.recompute else [job, replace(job, recompute=True)]
    tried: list[Tried] = []
    for one in jobs:
        tried = swept(one, learned, ends)
        if any(not each.left_out(learned) for each in tried):
            return replace(one, setting=fastest(tried, learned).setting)
    raise SystemExit(f"no setting of {job.part} counts: {tried[0].left_out(learned)}")


def swept(job: Job, learned: float, ends: float) -> list[Tried]:
    """The settings of a trainer that were tried; all are printed."""
    found = in_process(replace(job, part=f"{job.part}-sweep"), ends)
    tried = [Tried(**{**one, "setting": read_setting(one["setting"])}) for one in found]
    if job.part == "plain":
        tried = [replace(one, learned=learned) for one in tried]
    for one in tried:
        reason = one.left_out(learned)
        print(
            f"{job.part}, {one.setting}{_RECOMPUTED * job.recompute}: {one.seconds:.1f} s"
            f"{f' (not counted: {reason})' if reason else ''}",
            flush=True,
        )
    return tried


def compare(workload: str, options: argparse.Namespace, ends: float) -> dict[str, Any]:
    """Find the fastest settings, then train in turns; print medians and ratios. What `report` gives."""
    job = Job(
        part="ours",
        workload=workload,
        model=str(options.model),
        length=options.max_length if workload == "short" else options.full_length,
        steps=options.steps if workload == "short" else 1,
        seed=1,
        threads=options.threads,
        device=options.device,
        recompute=options.recompute,
    )
    examples = job.steps * EFFECTIVE
    print(
        f"\n## {workload}: rows of up to {job.length} tokens, {examples} examples in {job.steps} steps of {EFFECTIVE}"
    )
    learned = learned_in(training_rows(job)) / job.steps
    jobs = {"ours": job}
    for other in options.others:
        jobs[other] = at_its_fastest(replace(job, part=other), learned, ends)
    found: dict[str, list[Numbers]] = {part: [] for part in jobs}
    for seed in range(1, options.seeds + 1):
        turn = seed % len(jobs)
        for part in [*jobs][turn:] + [*jobs][:turn]:
            found[part].append(in_process(replace(jobs[part], seed=seed), ends))
    return report(jobs, found)


def report(jobs: Mapping[str, Job], found: Mapping[str, Sequence[Numbers]]) -> dict[str, Any]:
    """Print medians, and ratios of ours to the others; the same by trainer, with its setting."""
    print("| | tokens/s | seconds | CPU seconds | peak MiB | held-out loss, by seed | tokens/s, by seed |")
    print("|---|---|---|---|---|---|---|")
    record: dict[str, Any] = {}
    for part, runs in found.items():
        numbers = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        losses, speeds = (
            " ".join(f"{one[name]:.{digits}f}" for one in runs) for name, digits in (("loss", 3), ("speed", 0))
        )
        job = jobs[part]
        setting = f"{job.setting or part}{_RECOMPUTED * job.recompute}"
        record[part] = {**numbers, "setting": setting}
        print(
            f"| {part if job.setting is None else f'{part}, {setting}'} | {numbers['speed']:.0f} | "
            f"{numbers['seconds']:.1f} | {numbers['cpu']:.1f} | {numbers['peak']:.0f} | {losses} | {speeds} |"
        )
    for other in [part for part in found if part != "ours"]:
        pairs = list(zip(found["ours"], found[other], strict=True))
        speed = statistics.median(mine["speed"] / theirs["speed"] for mine, theirs in pairs)
        cpu = statistics.median(theirs["cpu"] / mine["cpu"] for mine, theirs in pairs)
        peak = statistics.median(mine["peak"] / theirs["peak"] for mine, theirs in pairs)
        record[other]["ours_to_it"] = {"speed": speed, "cpu": cpu, "peak": peak}
        print(
            f"ours to {other}, medians over seeds: {speed:.2f} of tokens/s, {cpu:.2f} of tokens per CPU second, "
            f"{peak:.2f} of peak memory"
        )
    return record


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a model folder; absent: SmolLM2-135M")
    parser.add_argument("--workload", nargs="+", choices=("short", "full"), default=["short", "full"])
    parser.add_argument("--others", nargs="+", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--recompute", action="store_true", help="recompute activations, in all three")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end without a result after so many")
    parser.add_argument("--json", type=Path, help="a file for the medians and ratios")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--full-length", type=int, default=256)
    options = parser.parse_args()
    if options.job:
        print(run(Job.from_json(options.job)))
        return
    if options.model is None:
        from hub.model import cache_root, ensure_model  # noqa: PLC0415 - not in the image of the trainer

        options.model = ensure_model(cache_root())
    where = f"fp32, {options.threads} threads" if options.device == "cpu" else "16 bits on a GPU"
    print(f"{options.model.name}, {where}, rank {RANK}, all linear modules; load {os.getloadavg()[0]:.1f}")
    ends = time.monotonic() + 60 * options.minutes
    record = {}
    for workload in options.workload:
        record[workload] = compare(workload, options, ends)
        print(f"load at its end {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
