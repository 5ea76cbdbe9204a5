"""`lora logs`: the log of the right pod, or the one that a finished run keeps beside its adapter."""

import sys
from collections.abc import Sequence

from lora_client.cluster.connection import ApiError, Cluster, Object
from lora_client.cluster.run_pods import choose, pods_of
from lora_client.errors import ClientError
from lora_client.output import Form, note, say
from lora_client.verbs.pull import print_file
from lora_client.views.resources import part, result, text, waiting_for
from lora_operator.views.model import PodView
from lora_operator.views.names import TRAIN, TRAINER_CONTAINER

_KEPT = "train.log"


def logs(
    cluster: Cluster,
    name: str,
    form: Form,
    *,
    attempt: int | None,
    stage: str,
    index: int,
    follow: bool,
    tail: int | None,
) -> None:
    """Print the log of a run's pod, or name the pod. Raises `ClientError`."""
    if form in (Form.JSON, Form.YAML):
        raise ClientError(f"-o is {form.value}: a log is text, so leave -o out, or use name for the pod's")
    run = cluster.get("lorafinetunes", name)
    pods = pods_of(cluster, run)
    pod = choose(pods, attempt=attempt, stage=stage, index=index)
    kept = stage == TRAIN and attempt is None and result(run) and text(run, "status", "artifact", "uri")
    if pod is None and kept and form is not Form.NAME:
        note(f"The pods of {name} are gone: this is {_KEPT} from beside its adapter")
        print_file(cluster, run, _KEPT)
        return
    if pod is None:
        raise ClientError(_missing(run, pods, attempt=attempt, stage=stage, index=index))
    if form is Form.NAME:
        say(f"pod/{pod.name}")
        return
    _print(cluster, pod, follow=follow, tail=tail)


def _print(cluster: Cluster, pod: PodView, *, follow: bool, tail: int | None) -> None:
    query = {"container": TRAINER_CONTAINER}
    query |= {"follow": "true"} if follow else {}
    query |= {"tailLines": str(tail)} if tail is not None else {}
    why = pod.trainer.waiting_reason or ("it has no node yet" if not pod.node else "")
    nothing = ClientError(
        f"Pod {pod.name} has written no log ({why or pod.phase}): lora explain says what it waits for"
    )
    try:
        begun = False
        for line in cluster.lines(cluster.path("pods", pod.name, "log"), query):
            begun = True
            sys.stdout.buffer.write(line)
            if follow:
                sys.stdout.buffer.flush()
    except ApiError as error:
        if error.code != 400:
            raise
        raise nothing from error
    if why and not begun:
        raise nothing


def _missing(run: Object, pods: Sequence[PodView], *, attempt: int | None, stage: str, index: int) -> str:
    name = run["metadata"]["name"]
    known = sorted({pod.attempt for pod in pods if pod.stage == stage})
    if not pods:
        why = waiting_for(run) or ("its pods are deleted" if part(run, "status").get("attempt") else "it has not begun")
        return f"{name} has no pod ({why}): lora explain {name} says more"
    if index and known:
        return (
            f"{name} has no pod with index {index} in attempt {attempt or known[-1]}: leave --index away for the leader"
        )
    stages = ", ".join(sorted({pod.stage for pod in pods}))
    there = f"attempts with a pod are {', '.join(map(str, known))}" if known else f"there are pods of {stages}"
    wanted = f"of attempt {attempt} " if attempt is not None else ""
    return f"{name} has no pod {wanted}of stage {stage}: {there}"
