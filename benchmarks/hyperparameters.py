"""Rank, alpha, layers, quantization, dropout and epochs, one at a time, on a small real model.

    nice -n 19 .venv/bin/python benchmarks/hyperparameters.py [--threads 1] [--seeds 1 2 3] [--record]

Trains SmolLM2-135M 30 times on 1,000 short rows of `benchmarks/study/rows.py` and measures the loss of 200 held-out
rows, row by row. Each training is a process of its own; what it found is appended to `--results` when it ends. Started
again, those that are there are passed over, so the study goes on where it stopped. The first seed of all settings comes
first. `--record` writes the table and the plot of docs/hyperparameters.md from the results, and trains nothing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "trainer_image", ".")]

from benchmarks.study.records import Run, append, read
from benchmarks.study.settings import ALL, RATE_SEED, RATES, SEEDS, SETTINGS, UNTRAINED, Setting

RESULTS = REPOSITORY / "benchmarks/results/hyperparameters.jsonl"


def main() -> int:
    """Train what is not there yet."""
    options = _options()
    if options.one:
        return _train_here(options)
    from hub.model import cache_root, ensure_model  # noqa: PLC0415 - found by the path set above

    model = options.model or ensure_model(cache_root())
    options.results.parent.mkdir(parents=True, exist_ok=True)
    wanted = list(plan(options.seeds))
    for number, (setting, seed) in enumerate(wanted, 1):
        if (setting.name, seed) in {run.key for run in read(options.results)}:
            continue
        run = in_process(setting, seed, model, options.threads)
        append(options.results, run)
        loss = sum(run.sums) / sum(run.tokens)
        print(f"{number}/{len(wanted)} {setting.name}, seed {seed}: {loss:.4f} in {run.seconds:.0f} s", flush=True)
    return 0


def plan(seeds: Sequence[int]) -> Iterator[tuple[Setting, int]]:
    """All trainings in their order: the models as they are, the learning rate, then seed by seed."""
    yield from ((setting, 0) for setting in UNTRAINED)
    yield from ((setting, RATE_SEED) for setting in RATES)
    yield from ((setting, seed) for seed in seeds for setting in SETTINGS)


def in_process(setting: Setting, seed: int, model: Path, threads: int) -> Run:
    """Train in a process of its own, so that no run leaves anything to the next."""
    command = [sys.executable, __file__, "--one", setting.name, "--seeds", str(seed), "--model", str(model)]
    command += ["--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return Run.from_line(done.stdout.splitlines()[-1])


def _train_here(options: argparse.Namespace) -> int:
    from benchmarks.study.training import train  # noqa: PLC0415 - imports torch

    setting = next(setting for setting in ALL if setting.name == options.one)
    print(json.dumps(asdict(train(setting, options.seeds[0], options.model, options.threads))))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a model folder; absent: SmolLM2-135M")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines that results are added to")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
