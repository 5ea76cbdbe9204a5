"""A day of a fleet as blocks of a Prometheus, written by a small Go program on Prometheus's own package for them."""

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from benchmarks.monitored.targets import Fleet, Target

from localcluster import settings, tools
from localcluster.console import Console

SCRAPE_S = 60
BLOCKS = tools.Tool(
    name="blocks",
    module="github.com/prometheus/prometheus",
    # Debian's Prometheus is of this release.
    version="0.42.0",
    packages=("localcluster/blocks",),
    source=(Path(__file__).parent / "blocks/main.go").read_text(encoding="utf-8"),
)


def write(fleet: Fleet, folder: Path, begin_s: float, end_s: float) -> None:
    """Scrape the fleet every minute from `begin_s` to `end_s`, seconds since 1970, into blocks in a folder.

    Raises CalledProcessError where the program fails; it says why on standard error.
    """
    binary = tools.ensure(BLOCKS, settings.cache_directory(), Console()) / "blocks"
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([str(binary), str(folder)], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        before: dict[str, Target] = {}
        now_s = begin_s
        while now_s <= end_s:
            targets = {target.path: target for target in fleet.at(now_s)}
            gone = [target for path, target in before.items() if path not in targets]
            _send(process.stdin, targets.values(), gone, now_s)
            before, now_s = targets, now_s + SCRAPE_S
        process.stdin.close()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, str(binary))


def _send(pipe: IO[bytes], targets: Iterable[Target], gone: Iterable[Target], now_s: float) -> None:
    for target, text in [*((target, target.text()) for target in targets), *((target, b"") for target in gone)]:
        head = {"TimeMs": int(now_s * 1000), "Bytes": len(text), "Honor": target.honors, "Labels": dict(target.labels)}
        pipe.write(json.dumps(head).encode() + b"\n" + text)
