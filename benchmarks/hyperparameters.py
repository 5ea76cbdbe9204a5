"""Rank, alpha, layers, quantization, dropout and epochs, one at a time, on a small real model.

    nice -n 19 .venv/bin/python benchmarks/hyperparameters.py [--threads 1] [--seeds 1 2 3] [--record]

Trains SmolLM2-135M 30 times on 1,000 short rows of `benchmarks/study/rows.py` and measures the loss of 200 held-out
rows, row by row. What a training found is appended to `--results` when it ends; started again, those that are there
are passed over, so the study goes on where it stopped. The first seed of all settings comes first. `--record` trains
nothing: it writes benchmarks/results/hyperparameters.md and docs/hyperparameters.svg from the results.
"""

import argparse
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("hack", "trainer_image", ".")]

from benchmarks.study.order import missing
from benchmarks.study.records import RESULTS, append, read
from benchmarks.study.settings import SEEDS

TABLES = RESULTS.with_suffix(".md")
PICTURE = REPOSITORY / "docs/hyperparameters.svg"


def main() -> int:
    """Train what is not there yet, or record what is."""
    options = _options()
    if options.record:
        from benchmarks.study.report import draw, render  # noqa: PLC0415 - training does without

        runs = read(options.results)
        TABLES.write_text(render(runs), encoding="utf-8")
        draw(PICTURE, runs)
        return 0
    from benchmarks.study.training import train  # noqa: PLC0415 - imports torch

    from hub.model import cache_root, ensure_model  # noqa: PLC0415 - found by the path set above

    model = options.model or ensure_model(cache_root())
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for setting, seed in missing(options.results, options.seeds):
        run = train(setting, seed, model, options.threads)
        append(options.results, run)
        loss = sum(run.sums) / sum(run.tokens)
        print(f"{setting.name}, seed {seed}: {loss:.4f} in {run.seconds:.0f} s", flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; absent: SmolLM2-135M")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines that results are added to")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--record", action="store_true", help="train nothing, write the tables and the plot")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
