"""The acceptance of a GPU: whether it trains correctly, within the planned memory, and how fast.

    python benchmarks/gpu_acceptance.py [--parts device attention ...] [--minutes 20] [--json FILE]

Models have random weights, by their configurations: nothing is downloaded. Each part runs in a process of its own, in
the order correctness, memory, speed, so that a crash of one leaves the others. A check that lacks a package, a second
GPU or the time says "not run". `--device cpu --tiny` runs the same code on a CPU and proves nothing about a GPU.
Exit code: 0 where nothing failed and something passed, else 1.
"""

import argparse
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Timer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "trainer_image")]

from benchmarks.acceptance.findings import Finding, State, from_json, line, record, summary, to_json

from lora_trainer.host.child import stage_environment

PARTS = (
    *("device", "attention", "kernels", "quantized", "adapters", "shortage", "resume", "groups"),
    *("fit", "speed", "rival"),
)
"""In this order; each is a file in `benchmarks/acceptance`."""
_ENDS = {"fit": 0.5, "speed": 0.7}
"""The share of all time by which a part has to end for those that follow it."""
_DEVICE = "its device"
"""The check that fails where there is no device to check."""
_GRACE_S = 30.0
"""For a check that has begun when time is up."""


def run_part(part: str, kind: str, *, tiny: bool, ends: float) -> Iterator[Finding]:
    """A part's findings, computed in this process."""
    from benchmarks.acceptance.bench import open_bench, run_checks  # noqa: PLC0415 - only a part's process needs PyTorch

    from lora_trainer.errors import TrainerError  # noqa: PLC0415 - as above

    try:
        bench = open_bench(kind, tiny=tiny, ends=ends)
    except TrainerError as error:
        yield Finding(part=part, check=_DEVICE, state=State.FAILED, said=str(error))
        return
    yield from run_checks(part, importlib.import_module(f"benchmarks.acceptance.{part}").checks(bench), bench)


def in_process(part: str, kind: str, *, tiny: bool, seconds: float) -> Iterator[Finding]:
    """The same, computed in another process; one more finding where it ends before its time."""
    options = ("--alone", part, "--device", kind, "--seconds", f"{seconds:.0f}", *(["--tiny"] if tiny else []))
    late = Event()
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, *options]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            # As a training has it: PyTorch's allocator for one.
            env=stage_environment(),
        )

        def stop() -> None:
            late.set()
            # With the processes that it has started itself.
            os.killpg(process.pid, signal.SIGKILL)

        timer = Timer(seconds + _GRACE_S, stop)
        timer.start()
        assert process.stdout is not None
        try:
            yield from filter(None, map(from_json, process.stdout))
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()
        if code:
            errors.seek(0)
            last = (errors.read().strip() or "it printed nothing").splitlines()[-1]
            said = "a check took longer than the time that was left" if late.is_set() else f"exit code {code}: {last}"
            yield Finding(part=part, check="its process", state=State.FAILED, said=said[:300])


def share(part: str, parts: Sequence[str]) -> float:
    """Of all time, that by which a part has to end. The rival needs none where it is not installed."""
    after = [*parts[parts.index(part) + 1 :]]
    if after == ["rival"] and importlib.util.find_spec("trl") is None:
        return 1.0
    return _ENDS.get(part, 1.0) if after else 1.0


def accept(parts: list[str], kind: str, *, tiny: bool, minutes: float) -> Iterator[Finding]:
    """All parts, one after the other, within so many minutes."""
    started = time.monotonic()
    for part in parts:
        left = started + share(part, parts) * 60 * minutes - time.monotonic()
        if left <= 0:
            yield Finding(part=part, check="all", state=State.NOT_RUN, said="no time is left: raise --minutes")
        else:
            for finding in in_process(part, kind, tiny=tiny, seconds=left):
                yield finding
                if finding.check == _DEVICE:
                    return


def main() -> int:
    """Run, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="a file for the record, - for the end of the output")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="models that even a CPU takes seconds for")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        logging.disable(logging.WARNING)
        ends = time.monotonic() + options.seconds
        for finding in run_part(options.alone, options.device, tiny=options.tiny, ends=ends):
            print(to_json(finding), flush=True)
        return 0
    findings: list[Finding] = []
    began = datetime.now(UTC)
    # In the order that matters, whatever the order they were named in.
    parts = [part for part in PARTS if part in options.parts]
    for finding in accept(parts, options.device, tiny=options.tiny, minutes=options.minutes):
        print(line(finding), flush=True)
        findings.append(finding)
    print(summary(findings))
    text = record(findings, {"began": began.isoformat(timespec="seconds"), "device": options.device})
    if options.json == Path("-"):
        print(text)
    elif options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    states = {finding.state for finding in findings}
    return 0 if State.FAILED not in states and State.PASSED in states else 1


if __name__ == "__main__":
    sys.exit(main())
