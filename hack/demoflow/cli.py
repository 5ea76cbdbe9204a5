"""The command line of hack/demo."""

import argparse
import shutil
import sys
import time
from typing import TYPE_CHECKING

from demoflow import ask, cluster, monitoring, report, run
from demoflow.errors import DemoError
from hub.deploy import deploy
from hub.model import REPO_ID, cache_root
from localcluster.client import CommandError
from localcluster.console import Console, duration
from localcluster.errors import ClusterError
from lora_client.views.answers import side_by_side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localcluster.client import Client

_HELP = """\
From nothing to a verified LoRA adapter: starts a local Kubernetes, builds the images, installs the chart, applies
examples/quickstart.yaml and shows what came of it. Run it again any time: what exists is used again, and a finished
run is never touched. MONITORING=1 installs a Prometheus beside it, and draws the dashboards. CLUSTER=current with
IMAGE_PREFIX=REGISTRY/PATH uses your own cluster and registry instead.
"""


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run the demo; a failure is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="hack/demo", description=_HELP)
    parser.add_argument("--real-hub", action="store_true", help="read the model from huggingface.co, not the stand-in")
    parser.add_argument("--timeout", type=int, default=1800, metavar="SECONDS", help="for the training (%(default)s)")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        _demo(console, with_stand_in=not options.real_hub, timeout_s=options.timeout)
    except (DemoError, CommandError) as error:
        console.say(f"hack/demo: {error}")
        return 1
    except ClusterError as error:
        console.say(f"hack/demo: {error.explained()}")
        return 1
    except KeyboardInterrupt:
        console.say("hack/demo: interrupted; run it again to go on where it was.")
        return 130
    return 0


def _demo(console: Console, *, with_stand_in: bool, timeout_s: int) -> None:
    started_s = time.monotonic()
    monitored = monitoring.is_wanted()
    client = cluster.prepare(with_stand_in=with_stand_in, draws=monitored, console=console)
    images = cluster.images(with_stand_in=with_stand_in, console=console)
    endpoint = ""
    if images.hub is not None:
        with console.step("start a stand-in for the Hugging Face Hub (for developers: no account, no internet)"):
            endpoint = deploy(client, images.hub)
    if monitored:
        monitoring.install()
    with console.step("helm upgrade --install lora-finetune-operator"):
        # The line below moves every few seconds; by default progress is written four times a minute.
        flags = ("--set=config.progressIntervalSeconds=5", *(monitoring.FLAGS if monitored else ()))
        run.install_chart(client, images, endpoint, *flags, timeout_s=300)
    applied_s = time.monotonic()
    with console.step("kubectl apply -f examples/quickstart-inputs.yaml -f examples/quickstart.yaml") as step:
        chosen = run.start(client)
        step.detail(chosen.note)
    resource = run.follow(client, chosen.name, console, timeout_s=timeout_s)
    status = resource["status"]
    uri = status["artifact"]["uri"]
    with console.step("ask base model and adapter the same three questions"):
        answers = ask.ask(client, images.trainer, uri, endpoint, namespace=run.NAMESPACE, timeout_s=600)
    folder = run.local_folder(client, uri)
    print(f"\n$ kubectl -n {run.NAMESPACE} get lft {chosen.name} -o wide\n{run.columns(client, chosen.name)}\n")
    print(report.losses(status), end="\n\n")
    print(side_by_side(answers, shutil.get_terminal_size((110, 24)).columns), end="\n\n")
    print(report.whereabouts(status["artifact"], folder), end="\n\n")
    model = str(cache_root() / "models" / REPO_ID) if with_stand_in else REPO_ID
    steps = {"model": model, "name": chosen.name, "namespace": run.NAMESPACE}
    print(report.next_steps(status["artifact"], folder, **steps, first=_opening(client)))
    if monitored:
        minutes = (time.monotonic() - applied_s) / 60 + 0.5
        print("\n" + monitoring.show(chosen.name, run.NAMESPACE, minutes, console), end="\n\n")
    print(_closing(client, with_stand_in=with_stand_in))
    print(f"\nDone in {duration(time.monotonic() - started_s)}.", file=sys.stdout)


def _opening(client: "Client") -> list[str]:
    """What kubectl and the client need to reach the cluster: nothing where it is the user's own."""
    if client.name is None:
        return []
    return report.shell(str(client.kubeconfig), client.path.split(":", maxsplit=1)[0])


def _closing(client: "Client", *, with_stand_in: bool) -> str:
    if client.name is None:
        hub = " lora-demo-hub" if with_stand_in else ""
        return (
            "  # clean up: the first line deletes the adapters of the demo with their claim\n"
            f"  kubectl delete namespace {run.NAMESPACE}{hub}\n"
            f"  helm -n {run.RELEASE_NAMESPACE} uninstall {run.RELEASE}"
        )
    return "  # end the cluster; images and adapters stay\n  hack/cluster down"
