"""The command line of hack/cluster."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import TYPE_CHECKING

from localcluster import (
    addons,
    control_plane,
    images,
    lifecycle,
    node,
    packages,
    ports,
    settings,
    status,
    targets,
    tools,
)
from localcluster.api import ApiError
from localcluster.client import uses_own_cluster
from localcluster.console import Console
from localcluster.errors import ClusterError
from localcluster.forwarder import Route, enter_network
from localcluster.imagespec import IMAGES, OPERATOR, PREFLIGHT, TRAINER
from localcluster.processes import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localcluster.lifecycle import Record
    from localcluster.settings import Places

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


_DEFAULT_IMAGES = (OPERATOR.name, TRAINER.name, PREFLIGHT.name)
_NOTHING_TO_DO = "CLUSTER=current: the cluster of the current kubeconfig context is used as it is; nothing to do."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a failure is one sentence and the end of the log that explains it."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        options.run(options, console)
    except ClusterError as error:
        console.say(f"hack/cluster: {error.explained()}")
        return 1
    except (ApiError, HTTPException) as error:
        console.say(f"hack/cluster: the API server did not do what was asked: {error}")
        return 1
    except BrokenPipeError:
        # Whoever read the output has gone, as `| head` does; Python must not complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        console.say("hack/cluster: interrupted; run it again to go on.")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)

    up = _command(commands, "up", _up, "start the cluster, or leave it as it is if it runs")
    up.add_argument("--profile", choices=[node.PROFILE, control_plane.PROFILE], default=node.PROFILE)
    up.add_argument("--api-port", type=int, default=settings.API_PORT, help="port on 127.0.0.1 (default: %(default)s)")
    up.add_argument(
        "--registry-port", type=int, default=settings.REGISTRY_PORT, help="port on 127.0.0.1 (default: %(default)s)"
    )
    _command(commands, "down", _down, "end the cluster; images and the data of volumes stay")
    _command(commands, "status", _status, "show what runs")
    _add_builds(commands)
    gpus = _command(commands, "gpus", _gpus, "let the node offer N nvidia.com/gpu, with no device behind them")
    gpus.add_argument("count", type=int)
    addon = _command(commands, "addon", _addon, "install a controller, built from its Go module, or a Prometheus")
    addon.add_argument("addons", nargs="+", choices=addons.NAMES, metavar="ADDON", help=", ".join(addons.NAMES))
    addon.add_argument("--remove", action="store_true", help="uninstall instead")
    forward = _command(commands, "forward", _forward, "lead a port of 127.0.0.1 into the cluster until it ends")
    forward.add_argument("local_port", type=int)
    forward.add_argument("target", help="NAMESPACE/service/NAME:PORT, NAMESPACE/pod/NAME:PORT or ADDRESS:PORT")
    execute = _command(commands, "exec", _exec, "run a command in the node's network")
    execute.add_argument("argv", nargs="+", metavar="COMMAND")
    return parser


def _add_builds(commands: _Commands) -> None:
    build = _command(commands, "build", _build, "build Kubernetes and the images at the same time; start nothing")
    _add_images(build)
    build.add_argument(
        "--servers",
        action="store_true",
        help="what tests need beside the cluster, as well: an S3 server, Kueue, ...",
    )
    pushed = _command(commands, "images", _images, "build the images and push them to the registry")
    _add_images(pushed)
    pushed.add_argument("--json", action="store_true", help="print the references as JSON")
    purge = _command(commands, "purge", _purge, "delete what was built and downloaded, after `down`")
    purge.add_argument("--volumes", action="store_true", help="delete the data of the cluster's volumes too")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help=f"of {', '.join(IMAGES)}; default: {' '.join(_DEFAULT_IMAGES)}"
    )


def _command(
    commands: _Commands,
    name: str,
    run: Callable[[argparse.Namespace, Console], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("--name", default=settings.DEFAULT_NAME, help="which cluster (default: %(default)s)")
    parser.set_defaults(run=run)
    return parser


def _up(options: argparse.Namespace, console: Console) -> None:
    if uses_own_cluster():
        console.say(_NOTHING_TO_DO)
        return
    places = settings.places(options.name)
    with locked(places.lock, waiting=console.say):
        _require_profile(places, options.profile)
        if options.profile == control_plane.PROFILE:
            control_plane.up(places, console)
        else:
            node.up(places, console, api_port=options.api_port, registry_port=options.registry_port)
    folders = [tools.folder(tool, places.cache) for tool in (tools.kubernetes(), tools.HELM)]
    print(f"export KUBECONFIG={places.kubeconfig}")
    print(f"export PATH={':'.join(str(folder) for folder in folders if folder.is_dir())}:$PATH")


def _down(options: argparse.Namespace, console: Console) -> None:
    if uses_own_cluster():
        console.say(_NOTHING_TO_DO)
        return
    places = settings.places(options.name)
    with locked(places.lock, waiting=console.say), console.step(f"end cluster {places.name}"):
        node.down(places)
        places.lock.unlink()
    if places.volumes.is_dir() and any(places.volumes.iterdir()):
        console.say(f"The data of volumes stays in {places.volumes}; `hack/cluster purge --volumes` deletes it.")


def _build(options: argparse.Namespace, console: Console) -> None:
    names = _image_names(options)
    if uses_own_cluster():
        console.say(_NOTHING_TO_DO)
        return
    places = settings.places(options.name)
    # One apt-get for both: the package database has one lock.
    packages.ensure(packages.EVERYTHING, console, places.cache / "packages.log")
    with ThreadPoolExecutor() as pool:
        builder = images.LocalBuilder(cache=places.cache, console=console)
        tools_built = pool.submit(node.prepare, places, console, tools.SERVERS if options.servers else ())
        images_built = pool.submit(images.build_all, names, builder)
        tools_built.result()
        images_built.result()


def _images(options: argparse.Namespace, console: Console) -> None:
    names = _image_names(options)
    places = settings.places(options.name)
    if uses_own_cluster():
        prefix = os.environ.get("IMAGE_PREFIX", "")
        if not prefix:
            raise ClusterError(
                "CLUSTER=current needs IMAGE_PREFIX=, the registry and path where your cluster pulls from, for"
                " instance IMAGE_PREFIX=ghcr.io/acme."
            )
        references = images.build_for_registry(names, prefix, places.cache, console)
    else:
        builder = images.LocalBuilder(cache=places.cache, console=console)
        references = images.provide_all(names, builder, _registry_port(places))
    if options.json:
        print(json.dumps(references, indent=2))
    else:
        for name, reference in references.items():
            print(f"{name:<12} {reference}")


def _image_names(options: argparse.Namespace) -> list[str]:
    if unknown := set(options.images) - set(IMAGES):
        raise ClusterError(f"There is no image {min(unknown)!r}: choose from {', '.join(IMAGES)}.")
    return options.images or list(_DEFAULT_IMAGES)


def _purge(options: argparse.Namespace, console: Console) -> None:
    places = settings.places(options.name)
    with locked(places.lock, waiting=console.say):
        # The cache is every cluster's, whatever its name.
        for name in lifecycle.running_names(places):
            raise ClusterError(f"Cluster {name} runs: end it first with `hack/cluster down --name {name}`.")
        with console.step(f"delete {places.cache}"):
            shutil.rmtree(places.cache, ignore_errors=True)
        if options.volumes:
            with console.step(f"delete {places.volumes}"):
                shutil.rmtree(places.volumes, ignore_errors=True)


def _require_profile(places: Places, profile: str) -> None:
    record = lifecycle.load_record(places)
    if record is not None and record.profile != profile:
        raise ClusterError(
            f"Cluster {places.name} has the profile {record.profile}: choose another --name, or end it first with"
            f" `hack/cluster down --name {places.name}`."
        )


def _record(places: Places) -> Record:
    record = lifecycle.load_record(places)
    if record is None or not lifecycle.is_running(places):
        raise ClusterError(f"Cluster {places.name} does not run: start it with `hack/cluster up`.")
    return record


def _require_local(options: argparse.Namespace) -> None:
    if uses_own_cluster():
        raise ClusterError(
            f"CLUSTER=current: `hack/cluster {options.command}` is for the local cluster only: use kubectl, or unset"
            " CLUSTER."
        )


def _status(options: argparse.Namespace, console: Console) -> None:
    _require_local(options)
    for line in status.describe(settings.places(options.name)):
        print(line, flush=True)


def _gpus(options: argparse.Namespace, console: Console) -> None:
    _require_local(options)
    places = settings.places(options.name)
    node.set_gpus(lifecycle.api(places, _record(places).api_port), options.count)
    console.say(
        f"{settings.NODE_NAME} offers {options.count} nvidia.com/gpu. They are not real: pods that ask for them are"
        " scheduled, and find no GPU."
    )


def _addon(options: argparse.Namespace, console: Console) -> None:
    _require_local(options)
    places = settings.places(options.name)
    registry_port = _registry_port(places)
    for name in options.addons:
        if options.remove:
            addons.remove(name, places, console)
        else:
            addons.install(name, places, console, registry_port)


def _registry_port(places: Places) -> int:
    port = _record(places).registry_port
    if port is None:
        raise ClusterError(f"Cluster {places.name} has no registry: it has only a control plane.")
    return port


def _forward(options: argparse.Namespace, console: Console) -> None:
    _require_local(options)
    places = settings.places(options.name)
    server = lifecycle.api(places, _record(places).api_port)
    ports.require_free(options.local_port, "another LOCAL_PORT")
    host, port = targets.resolve(options.target, server)
    route = Route(local_port=options.local_port, host=host, port=port)
    node.start_forwarder(places, [route], str(options.local_port))
    console.say(f"127.0.0.1:{options.local_port} leads to {host}:{port} until the cluster ends.")


def _exec(options: argparse.Namespace, console: Console) -> None:
    _require_local(options)
    enter_network(node.node_pid(settings.places(options.name)))
    os.execvp(options.argv[0], options.argv)  # noqa: S606 - what the command is for
