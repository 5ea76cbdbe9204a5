"""Prometheus beside the demo: installed before the chart, whose monitors and rules it follows, and drawn afterwards."""

import os
import subprocess
from typing import TYPE_CHECKING

from demoflow import cluster
from demoflow.errors import DemoError
from demoflow.packages import PYTHON
from localcluster import client, prometheus, settings

if TYPE_CHECKING:
    from pathlib import Path

    from localcluster.console import Console

_SCRAPE_S, _DRAWN_S = 5, 10
"""Between samples, and between points: the quickstart takes some minutes."""
FLAGS = (
    *(f"--set=metrics.{each}.enabled=true" for each in ("serviceMonitor", "podMonitor", "prometheusRule")),
    *(f"--set=metrics.{monitor}.interval={_SCRAPE_S}s" for monitor in ("serviceMonitor", "podMonitor")),
    "--set=metrics.prometheusRule.runbookURL=https://git.example.com/lora-finetune-operator/docs/runbooks",
)
"""Of the chart."""


def is_wanted() -> bool:
    """Whether the user asked for it by MONITORING=1. Raises DemoError for another value, and for another cluster."""
    value = os.environ.get("MONITORING", "")
    if value not in ("", "0", "1"):
        raise DemoError(f"MONITORING={value} must be 1, to have a Prometheus beside the demo, or 0.")
    if value == "1" and client.uses_own_cluster():
        raise DemoError(
            "MONITORING=1 is for the local cluster: leave it out, and switch the chart's monitors on for your own"
            " Prometheus, as docs/monitoring.md says."
        )
    return value == "1"


def install() -> None:
    """Install Prometheus, or leave the one that is there. Raises DemoError."""
    cluster.hack_cluster("addon", prometheus.NAME)


def show(name: str, namespace: str, minutes: float, console: "Console") -> str:
    """Draw both dashboards of the last minutes; returns lines with all addresses. Raises DemoError."""
    addresses = prometheus.addresses(settings.places(settings.DEFAULT_NAME))
    folder = settings.cache_directory() / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"  {program:<13} {url}" for program, url in addresses.items()]
    with console.step("draw both dashboards from their own queries"):
        for board, flags in {"fleet": (), "run": (f"--namespace={namespace}", f"--name={name}")}.items():
            picture = folder / f"{board}.png"
            _draw(board, addresses["Prometheus"], picture, f"--minutes={minutes}", f"--scrape={_DRAWN_S}", *flags)
            lines.append(f"  LoRA {board:<8} {picture}")
    return "\n".join(["Monitoring:", *lines])


def _draw(board: str, address: str, picture: "Path", *flags: str) -> None:
    program = settings.REPOSITORY / "hack" / "dashboard-picture"
    command = [str(PYTHON), str(program), board, address, str(picture), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"The dashboard {board} could not be drawn: {done.stderr.strip().splitlines()[-1]}")
