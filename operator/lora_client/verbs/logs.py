"""`lora logs`: the log of the right pod, or the one that a finished run keeps beside its adapter."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from lora_client.cluster.connection import ApiError, Cluster, Object
from lora_client.cluster.run_pods import choose, pods_of
from lora_client.errors import ClientError
from lora_client.output import Form, note, put_log, say
from lora_client.verbs.pull import read_file
from lora_client.views.resources import name_of, part, result, text, waiting_for
from lora_client.views.uses import uses
from lora_operator.model.names import PREFLIGHT, TRAIN, TRAINER_CONTAINER
from lora_operator.model.objects import PodView
from lora_trainer.spec.names import run_suffix

_KEPT = "train.log"
_CHECKPOINTS = ".lora-checkpoints"
_NOT_BEGUN = 400
"""Of a log whose container is still being created."""


def logs(
    cluster: Cluster,
    name: str,
    form: Form,
    *,
    attempt: int | None,
    stage: str | None,
    index: int,
    follow: bool,
    tail: int | None,
) -> None:
    """Print the log of a run's pod, or name the pod; without a stage that of the preflight where there is no other.

    Raises `ClientError`.
    """
    if stage not in (None, TRAIN, PREFLIGHT):
        raise ClientError(f"--stage is {stage}: must be {TRAIN} or {PREFLIGHT}")
    if form in (Form.JSON, Form.YAML):
        raise ClientError(f"-o is {form.value}: a log is text, so leave -o out, or use name for the pod's")
    run = cluster.get("lorafinetunes", name)
    pods = pods_of(cluster, run)
    pod = choose(pods, attempt=attempt, stage=stage or TRAIN, index=index)
    kept = _is_kept(run) and stage in (None, TRAIN) and attempt is None and index == 0
    if pod is None and kept and form is not Form.NAME:
        _require_on_claim(run)
        note(f"The pods of {name} are gone: this is {_KEPT} from beside its adapter")
        lines = read_file(cluster, run, _KEPT).splitlines(keepends=True)
        for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
            put_log(line)
        sys.stdout.buffer.flush()
        return
    if pod is None and stage is None and index == 0 and not kept:
        pod = choose(pods, attempt=attempt, stage=PREFLIGHT, index=0)
        if pod is not None:
            note(f"This is the log of the preflight: the training of {name} has no pod")
    if pod is None:
        raise ClientError(_missing(run, pods, attempt=attempt, stage=stage or TRAIN, index=index))
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
        _require_on_claim(run)
        return read_file(cluster, run, _KEPT).decode(errors="replace")
    if result(run):
        raise ClientError(_missing(run, pods, attempt=None, stage=TRAIN, index=0))
    return ""


def _is_kept(run: Object) -> bool:
    return bool(result(run) and text(run, "status", "artifact", "uri"))


def _require_on_claim(run: Object) -> None:
    """Raises `ClientError` where no pod can read what was kept."""
    if not text(run, "status", "artifact", "uri").startswith("pvc://"):
        raise ClientError(f"The pods of {name_of(run)} are gone, and {_KEPT} is beside its adapter: {uses(run)}")


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
            put_log(line)
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
        begun = "its pods are deleted" if part(run, "status").get("attempt") else "it has not begun"
        why = waiting_for(run, datetime.now(UTC)) or begun
        return f"{name} has no pod ({why}): {_instead(run)}"
    if index and known:
        return f"{name} has no pod with index {index} in attempt {attempt or known[-1]}: omit --index for the leader"
    stages = ", ".join(sorted({pod.stage for pod in pods}))
    there = f"attempts with a pod are {', '.join(map(str, known))}" if known else f"there are pods of {stages}"
    wanted = f"of attempt {attempt} " if attempt is not None else ""
    return f"{name} has no pod {wanted}of stage {stage}: {there}"


def _instead(run: Object) -> str:
    """What says more of a run without pods: of one that failed, the log beside its checkpoints."""
    name, claim = name_of(run), text(run, "status", "resolved", "pod", "checkpointClaim")
    if not result(run):
        return f"lora explain {name} says more"
    if _is_kept(run):
        return f"lora logs {name} prints the log beside its adapter"
    if not claim:
        return f"lora status {name} says how it ended"
    folder = f"{_CHECKPOINTS}/{name}-{run_suffix(text(run, 'metadata', 'uid'))}"
    return f"if it had saved a checkpoint, its log is {folder}/{_KEPT} on the claim {claim}"
