"""The command line of hack/cluster."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from localcluster import control_plane, lifecycle, settings, tools
from localcluster.console import Console
from localcluster.errors import ClusterError, tail
from localcluster.processes import locked

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a failure is one sentence and the end of the log that explains it."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        options.run(options, console)
    except ClusterError as error:
        console.say(f"hack/cluster: {error}")
        if error.log is not None and (text := tail(error.log)):
            console.say(f"--- the end of {error.log}:\n{text}")
        return 1
    except KeyboardInterrupt:
        console.say("hack/cluster: interrupted; run it again to go on.")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster, or leave it if it runs")
    _add_name(up)
    up.add_argument("--profile", choices=[control_plane.PROFILE], required=True)
    up.set_defaults(run=_up)
    down = commands.add_parser("down", help="end the cluster; images and volumes stay")
    _add_name(down)
    down.set_defaults(run=_down)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default=settings.DEFAULT_NAME, help="which cluster (default: %(default)s)")


def _up(options: argparse.Namespace, console: Console) -> None:
    places = settings.places(options.name)
    with locked(places.lock, waiting=console.say):
        control_plane.up(places, console)
    binaries = tools.folder(tools.kubernetes(), places.cache)
    sys.stdout.write(f"export KUBECONFIG={places.kubeconfig}\nexport PATH={binaries}:$PATH\n")


def _down(options: argparse.Namespace, console: Console) -> None:
    places = settings.places(options.name)
    with locked(places.lock, waiting=console.say):
        lifecycle.load_record(places)
        control_plane.down(places)
