"""`lora logs`: the log of the right pod, or the one that a finished run keeps beside its adapter."""

import sys
from collections.abc import Sequence

from lora_client.cluster.connection import ApiError, Cluster, Object
from lora_client.cluster.run_pods import choose, pods_of
from lora_client.errors import ClientError
from lora_client.output import Form, note, say
from lora_client.verbs.pull import read_file
from lora_client.views.resources import part, result, text, waiting_for
from lora_operator.views.model import PodView
from lora_operator.views.names import TRAIN, TRAINER_CONTAINER

_KEPT = "train.log"
_NOT_BEGUN = 400
"""Of a log whose container is still being created."""


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
    kept = _is_kept(run) and stage == TRAIN and attempt is None and index == 0
    if pod is None and kept and form is not Form.NAME:
        note(f"The pods of {name} are gone: this is {_KEPT} from beside its adapter")
        lines = read_file(cluster, run, _KEPT).splitlines(keepends=True)
        sys.stdout.buffer.writelines(lines if tail is None else lines[max(0, len(lines) - tail) :])
        sys.stdout.buffer.flush()
        return
    if pod is None:
        raise ClientError(_missing(run, pods, attempt=attempt, stage=stage, index=index))
    if form is Form.NAME:
        say(f"pod/{pod.name}")
        return
    _print(cluster, pod, follow=follow, tail=tail)


def log_so_far(cluster: Cluster, run: Object) -> str:
    """The log of a run's leader, or the one beside its adapter where the pods are gone; empty before it begins.

    Raises `ClientError`, also where the log is gone with the pods.
    """
    pods = pods_of(cluster, run)
    pod = choose(pods, attempt=None, stage=TRAIN, index=0)
    if pod is not None:
        path = cluster.path("pods", pod.name, "log")
        try:
            lines = b"".join(cluster.lines(path, {"container": TRAINER_CONTAINER}, silence_s=30.0))
        except ApiError as error:
            if error.code != _NOT_BEGUN:
                raise
            return ""
        return lines.decode(errors="replace")
    if _is_kept(run):
        return read_file(cluster, run, _KEPT).decode(errors="replace")
    if result(run):
        raise ClientError(_missing(run, pods, attempt=None, stage=TRAIN, index=0))
    return ""


def _is_kept(run: Object) -> bool:
    return bool(result(run) and text(run, "status", "artifact", "uri"))


def _print(cluster: Cluster, pod: PodView, *, follow: bool, tail: int | None) -> None:
    query = {"container": TRAINER_CONTAINER}
    query |= {"follow": "true"} if follow else {}
    query |= {"tailLines": str(tail)} if tail is not None else {}
    why = pod.trainer.waiting_reason or ("it has no node yet" if not pod.node else "")
    nothing = ClientError(
        f"Pod {pod.name} has written no log ({why or pod.phase}): lora explain NAME says what it waits for"
    )
    try:
        begun = False
        for line in cluster.lines(cluster.path("pods", pod.name, "log"), query):
            begun = True
            sys.stdout.buffer.write(line)
            if follow:
                sys.stdout.buffer.flush()
    except ApiError as error:
        if error.code != _NOT_BEGUN:
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
